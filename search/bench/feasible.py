"""Policies to benchmark with."""

from __future__ import annotations

from dataclasses import asdict

from trimtab.agents.random import Random
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.table import LatencyTable
from trimtab.search.setup.budgets import BudgetLimits, resolve
from trimtab.search.setup.problem import Problem
from trimtab.spaces.policy import Policy

__all__ = ["random_feasible"]


def random_feasible(problem: Problem, count: int) -> list[Policy]:
    """Return random policies within the budgets, by the latency table alone: no network is measured end to end."""
    engine = make_engine(problem.config.engine.name, problem.config.engine.threads)
    model = CostModel(problem.space, LatencyTable(engine, problem.space))
    costs = [asdict(model.cost(policy)) for policy in (problem.space.base(), problem.space.int8())]
    limits = BudgetLimits(model, resolve(problem.config.parsed_budgets, *costs), seed=problem.config.seed)
    return Random(problem.space, limits, problem.config.seed).ask(count)
