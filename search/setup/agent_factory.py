"""The agent factory: agents for a problem, with the estimates that they need, and what they would propose first.

Agents go where the latency table is too fast, and nothing else would notice before their best is measured: so what they
propose first is measured end to end, the table is fitted to it, and the margin becomes wide enough for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from trimtab.agents import chosen
from trimtab.agents.base import Agent
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.fill import fill_database
from trimtab.search.setup.problem import Problem
from trimtab.spaces.policy import Policy

__all__ = ["FIRST_PROPOSALS", "fill_for", "first_proposals", "make_agent"]

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
    """Fill the layer database where an agent gets it, on every core, or here for `workers: 0`."""
    if any(_gets_estimates(problem, name) for name in agents):
        fill_database(problem, len(os.sched_getaffinity(0)) if problem.config.workers else 0, progress)


def make_agent(problem: Problem, name: str, limits: BudgetLimits) -> Agent:
    """Return a fresh agent of the configuration's seed, chosen by its label, with its estimates if it gets any."""
    estimates = problem.layer_database if _gets_estimates(problem, name) else None
    return chosen(name).make(problem.space, limits, problem.config.seed, estimates)


def _gets_estimates(problem: Problem, agent: str) -> bool:
    """Whether an agent gets the layer database: whatever runs beside it, so that its proposals depend on it alone."""
    return problem.config.proxy == "layers" or chosen(agent).agent.needs_estimates
