"""The agent factory: agents for a problem, with the estimates that they need, and what they would propose first.

Agents go where the latency table is too fast, and nothing else would notice before their best is measured: so what they
propose first is measured end to end, the table is fitted to it, and the margin becomes wide enough for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from trimtab.agents import AGENTS
from trimtab.agents.base import Agent, Estimates
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.fill import fill_database
from trimtab.search.setup.problem import Problem, open_database
from trimtab.spaces.policy import Policy

__all__ = ["FIRST_PROPOSALS", "estimates_for", "fill_for", "first_proposals", "make_agent"]

#: Proposals of every agent.
FIRST_PROPOSALS = 4


def first_proposals(
    problem: Problem, agents: Sequence[str], progress: Progress
) -> Callable[[BudgetLimits], list[Policy]]:
    """Return what gives the agents' first proposals under some limits; it fills the layer database if they need it."""

    def propose(limits: BudgetLimits) -> list[Policy]:
        fill_for(problem, agents, progress)
        return [policy for agent in agents for policy in make_agent(problem, agent, limits).ask(FIRST_PROPOSALS)]

    return propose


def fill_for(problem: Problem, agents: Sequence[str], progress: Progress) -> None:
    """Fill the layer database where the proxy or an agent needs it, on every core, or here for `workers: 0`."""
    if problem.config.proxy == "layers" or any(AGENTS[name].needs_estimates for name in agents):
        fill_database(problem, len(os.sched_getaffinity(0)) if problem.config.workers else 0, progress)


def make_agent(problem: Problem, name: str, limits: BudgetLimits) -> Agent:
    """Return a fresh agent of the configuration's seed."""
    return AGENTS[name](problem.space, limits, problem.config.seed, estimates_for(problem, name))


def estimates_for(problem: Problem, agent: str) -> Estimates | None:
    """Return the layer database for an agent, where it is there."""
    if problem.config.proxy != "layers" and not AGENTS[agent].needs_estimates:
        return None
    return open_database(problem.space, problem.judge.calibration)
