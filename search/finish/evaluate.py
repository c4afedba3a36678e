"""One policy, measured: what `trimtab evaluate` prints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from trimtab import kernels
from trimtab.evaluators.answers import Graded
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.table import LatencyTable
from trimtab.search.finish.run_link import PATIENCE, measured_link
from trimtab.search.loop.candidates import candidate_of
from trimtab.search.progress import Progress
from trimtab.search.setup.kept import Kept
from trimtab.search.setup.metric import ShownMetric
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import bench_of
from trimtab.spaces.policy import Policy

__all__ = ["evaluate_policy"]


def evaluate_policy(problem: Problem, policy: Policy, progress: Progress, run: Path | None = None) -> dict[str, Any]:
    """Return a policy's figures: accuracies in [0, 1], latency in seconds and relative to the fp32 base and to its int8
    form, bytes, MACs; and of the latency budget the share that it takes, with the interval that decisions rest on.

    `run` is the folder of the run that the policy comes from: the policy's finished network is then opened where the
    run has it, and its latency chained to the network as given by the link that the run measured, and held to the
    budgets resolved from it, if that was on this machine.
    """
    problem.space.check(policy)
    candidate = candidate_of(problem, policy, run)
    judge, (images, targets) = problem.judge, problem.splits.final()
    outputs, wanted = judge.outputs(candidate, judge.images), judge.wanted(images, targets)
    bench = bench_of(problem)
    link, limit = measured_link(problem, bench, run, progress)
    answers = judge.graded(outputs), judge.held_to(wanted, judge.outputs(candidate, images))
    seconds = problem.config.measure.final_seconds * (1 if limit is None else PATIENCE)
    latency = bench.measure(candidate, link, seconds, limit)
    model = CostModel(problem.space, LatencyTable(bench.engine, problem.space))
    return {
        "policy": policy.id,
        "engine": bench.engine.signature,
        "metric": ShownMetric.by(judge).to_json(),
        "accuracy": answers[0].value,
        "loss": judge.loss(outputs),
        "final_accuracy": answers[1].value,
        "kept": _kept(problem, *answers),
        "provenance": problem.splits.provenance,
        "latency": latency.to_json(),
        "to_int8": latency.to_yardstick.times(link.to_int8),
        "budget": problem.config.budgets.get("latency"),
        "budget_share": None if limit is None else latency.share(limit),
        "verdict": None if limit is None else latency.verdict(limit),
        "noise_floor": bench.noise_floor(link),
        "size": kernels.stored_bytes(lower(candidate)),
        "macs": model.get(policy, "macs"),
        "memory": model.get(policy, "memory"),
        "kernels": dict(Counter(name for name in map(model.table.kernel, model.steps(policy).elements()) if name)),
    }


def _kept(problem: Problem, selection: Graded, final: Graded) -> dict[str, Any] | None:
    """Whether answers to both kinds of images keep the accuracy that a configuration says; None where it says none."""
    if problem.config.keep is None:
        return None
    judge, given = problem.judge, problem.judge.candidate(problem.space.base())
    images, targets = problem.splits.final()
    as_given = {
        "selection": judge.graded(judge.outputs(given, judge.images)),
        "final": judge.held_to(judge.wanted(images, targets), judge.outputs(given, images)),
    }
    answers = {"selection": selection, "final": final}
    return {name: Kept.asked(problem.config.keep, each).judgement(answers[name]) for name, each in as_given.items()}
