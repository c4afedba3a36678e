"""The last word on an evaluated policy: its finished network, built, weighed, and measured end to end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice

from trimtab import kernels
from trimtab.evaluators.end_to_end import LatencyBench
from trimtab.evaluators.lowering import lower
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.preference import ranked
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.problem import Problem
from trimtab.spaces.candidate import Candidate

__all__ = ["contenders", "verify"]

#: The most networks of one agent that are finished and measured until one meets every budget.
TRIES = 12


def contenders(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Return the evaluations to verify, the preferred one first, until one passes."""
    feasible = {e.policy.id: e for e in evaluations if e.feasible}.values()
    return list(islice(ranked(feasible), TRIES))


def verify(
    problem: Problem, baseline: Baseline, bench: LatencyBench, evaluation: Evaluation
) -> tuple[Evaluation, Candidate]:
    """Build the finished network of a policy and measure it for `measure.final_seconds`.

    Return the network, and the evaluation with measured latency and stored bytes in place of predicted ones.
    """
    candidate = problem.judge.candidate(evaluation.policy)
    latency = bench.measure(candidate, baseline.link, problem.config.measure.final_seconds, baseline.limit)
    found = evaluation.measured(latency, baseline.limit)
    return _with_size(found, kernels.stored_bytes(lower(candidate)), baseline.limits), candidate


def _with_size(evaluation: Evaluation, size: int, limits: Mapping[str, float]) -> Evaluation:
    """Put the bytes of the finished network in place of the predicted ones."""
    found = {**evaluation.violations, "size": size / limits["size"] - 1} if "size" in limits else evaluation.violations
    return replace(evaluation, cost=replace(evaluation.cost, size=size), violations=found)
