"""Agents, which decide: each proposes policies by `ask` and learns from `tell`."""

from trimtab.agents.amc import Amc, AmcSac, AmcTd3
from trimtab.agents.base import CHECKED, Agent, Estimates, Limits, Parameters, Score
from trimtab.agents.evolution import Evolution
from trimtab.agents.gp import Gp
from trimtab.agents.greedy import Greedy
from trimtab.agents.haq import Haq
from trimtab.agents.milp import Milp
from trimtab.agents.nsga2 import Nsga2
from trimtab.agents.random import Random, RandomProjected
from trimtab.agents.registry import AGENTS, ChosenAgent, chosen, label, make
from trimtab.agents.tpe import Tpe
from trimtab.agents.uniform import Uniform

__all__ = [
    "AGENTS",
    "CHECKED",
    "Agent",
    "Amc",
    "AmcSac",
    "AmcTd3",
    "ChosenAgent",
    "Estimates",
    "Evolution",
    "Gp",
    "Greedy",
    "Haq",
    "Limits",
    "Milp",
    "Nsga2",
    "Parameters",
    "Random",
    "RandomProjected",
    "Score",
    "Tpe",
    "Uniform",
    "chosen",
    "label",
    "make",
]
