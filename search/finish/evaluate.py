"""One policy, measured: what `trimtab evaluate` prints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from trimtab import kernels
from trimtab.evaluators.accuracy import accuracy_of, judging_session
from trimtab.evaluators.cost import CostModel
from trimtab.evaluators.end_to_end import LatencyBench
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.table import LatencyTable
from trimtab.search.finish.run_link import measured_link
from trimtab.search.progress import Progress
from trimtab.search.setup.problem import Problem
from trimtab.spaces.policy import Policy

__all__ = ["evaluate_policy"]


def evaluate_policy(problem: Problem, policy: Policy, progress: Progress, run: Path | None = None) -> dict[str, Any]:
    """Return a policy's figures: accuracies in [0, 1], latency in seconds relative to the fp32 base, bytes, MACs.

    `run` is the folder of the run that the policy comes from: its latency is then chained to the network as given by
    the link that the run measured, and held to the budgets resolved from it, if it was on this machine.
    """
    problem.space.check(policy)
    config = problem.config
    engine = make_engine(config.engine.name, config.engine.threads)
    candidate = problem.judge.candidate(policy)
    session = judging_session(candidate)
    bench = LatencyBench(engine, problem.space, problem.judge.images, config.measure.precision)
    link, limit = measured_link(problem, run, progress)
    latency = bench.measure(candidate, link, config.measure.final_seconds, limit)
    model = CostModel(problem.space, LatencyTable(engine, problem.space))
    return {
        "policy": policy.id,
        "engine": engine.signature,
        "accuracy": accuracy_of(session, problem.judge.images, problem.judge.labels),
        "loss": problem.judge.loss(session.run(problem.judge.images)),
        "final_accuracy": accuracy_of(session, *problem.splits.final()),
        "provenance": problem.splits.provenance,
        "latency": latency.to_json(),
        "limit": limit,
        "verdict": None if limit is None else latency.verdict(limit),
        "noise_floor": bench.noise_floor(link),
        "size": kernels.stored_bytes(lower(candidate)),
        "macs": model.get(policy, "macs"),
        "memory": model.get(policy, "memory"),
        "kernels": dict(Counter(name for name in map(model.table.kernel, model.steps(policy).elements()) if name)),
    }
