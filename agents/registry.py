"""The agents by the names that configurations use."""

from __future__ import annotations

from trimtab.agents.amc import Amc, AmcSac, AmcTd3
from trimtab.agents.base import Agent, Estimates, Limits
from trimtab.agents.evolution import Evolution
from trimtab.agents.gp import Gp
from trimtab.agents.greedy import Greedy
from trimtab.agents.haq import Haq
from trimtab.agents.milp import Milp
from trimtab.agents.nsga2 import Nsga2
from trimtab.agents.random import Random, RandomProjected
from trimtab.agents.tpe import Tpe
from trimtab.agents.uniform import Uniform
from trimtab.errors import unknown_name
from trimtab.spaces import Space

__all__ = ["AGENTS", "make"]

AGENTS: dict[str, type[Agent]] = {
    agent.name: agent
    for agent in (
        Uniform,
        Random,
        RandomProjected,
        Greedy,
        Milp,
        Evolution,
        Tpe,
        Nsga2,
        Gp,
        Amc,
        AmcTd3,
        AmcSac,
        Haq,
    )
}


def make(name: str, space: Space, limits: Limits, seed: int, estimates: Estimates | None = None) -> Agent:
    """Return a fresh agent; an unknown name is a `BadInput` that lists the known ones."""
    if name not in AGENTS:
        raise unknown_name("agent", name, AGENTS)
    return AGENTS[name](space, limits, seed, estimates)
