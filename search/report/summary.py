"""The summary of a run: every figure that the table, the report and `--json` show, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.errors import BadInput
from trimtab.evaluators.answers import Graded, paired
from trimtab.evaluators.engines import cpu_name
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.price.cost import Cost, TableError
from trimtab.evaluators.price.parameters import count_parameters
from trimtab.search.finish.export import ExportCheck
from trimtab.search.finish.finishing import FINISHED, Finished
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.loop import AgentRun
from trimtab.search.loop.preference import nearest, preferred, tie
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.kept import Kept
from trimtab.search.setup.metric import ACCURACY, ShownMetric
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting, engine_of

__all__ = [
    "Findings",
    "Winner",
    "about",
    "best_of",
    "build_summary",
    "certificate",
    "finished_summary",
    "load_summary",
    "verdict_on_images",
]

#: The form of a summary, which changes where older ones can no longer be read.
SCHEMA = 3


@dataclass(frozen=True, eq=False)
class Winner:
    """An agent's best policy whose finished network met every budget, and its accuracy on the final images."""

    agent: str
    evaluation: Evaluation
    final_accuracy: float


def best_of(winners: Mapping[str, Winner | None]) -> Winner | None:
    """Return the preferred winner; None where there is none."""
    found = [winner for winner in winners.values() if winner]
    best = preferred(winner.evaluation for winner in found)
    return next((winner for winner in found if winner.evaluation is best), None)


def load_summary(folder: Path) -> dict[str, Any]:
    """Read a finished run's summary; a folder without one that this version reads is a `BadInput`."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{folder} holds no finished run: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise BadInput(f"{path} is not a run's summary of schema {SCHEMA}, which this version reads")
    return summary


def about(problem: Problem) -> dict[str, Any]:
    """Return what every summary says of what was searched, and on what."""
    config = problem.config
    return {
        "schema": SCHEMA,
        "network": config.network.zoo or config.network.torchvision or config.network.import_,
        "data": config.data.name,
        "metric": ShownMetric.by(problem.judge).to_json(),
        "provenance": problem.splits.provenance,
        "selection_images": len(problem.judge.images),
        "engine": engine_of(problem).signature,
        "cpu": cpu_name(),
    }


@dataclass(frozen=True, eq=False)
class Findings:
    """The findings of a run.

    `winners` are by agent, `best` is the run's, as it was `finished` where it was; `front` is what no other evaluation
    beats; `finals` are the answers to the final images of the base, of its int8 form, of the finished network, and by
    policy of every winner; `refused` are the policies whose exported files were over the budget; `profile` has the
    steps of base and winner; `judging` candidates per second; `measuring` seconds.
    """

    runs: Sequence[AgentRun]
    winners: Mapping[str, Winner | None]
    best: Winner | None
    finished: Finished | None
    front: tuple[Evaluation, ...]
    finals: Mapping[str, Graded]
    checks: Sequence[ExportCheck]
    refused: Sequence[str]
    table_error: TableError
    profile: Mapping[str, list[dict[str, Any]]]
    judging: Mapping[str, float]
    measuring: Mapping[str, float]
    seconds: float


def build_summary(setting: Setting, found: Findings) -> dict[str, Any]:
    """Collect a run's figures. Latencies are in seconds, sizes in bytes, accuracies as the metric has them, and their
    changes shares, or in its units."""
    problem, baseline = setting.problem, setting.baseline
    config, space, finals = problem.config, problem.space, found.finals
    best = found.best
    return {
        **about(problem),
        "seed": config.seed,
        "trials": config.asked_trials,
        "seconds": found.seconds,
        "minimise": baseline.minimise,
        "budgets": _budgets(setting),
        "base": _form(baseline.base, count_parameters(space, space.base()), baseline.base_answers, finals["base"]),
        "int8": _form(baseline.int8, count_parameters(space, space.int8()), baseline.int8_answers, finals["int8"]),
        "link": {**baseline.link.to_json(), "int8": baseline.link.int8},
        "noise_floor": baseline.noise_floor,
        "table_error": _table_error(found.table_error),
        "margin": baseline.margin,
        "agents": [
            _agent(run, found.winners[run.agent], run.agent == config.agent, setting, finals) for run in found.runs
        ],
        "winner": None if best is None else {"agent": best.agent, "policy": best.evaluation.policy.to_json()},
        "verdict": _verdict(config.agent, found, ShownMetric.by(problem.judge)),
        **_least(baseline, found),
        "candidates_per_second": dict(found.judging),
        "finished": None,
        "exports": [asdict(check) for check in found.checks],
        "refused": list(found.refused),
        "measuring": dict(found.measuring),
        "profile": dict(found.profile),
        "layers": _layers(problem, best, found.profile.get("winner", [])),
        "points": [_point(run.agent, e) for run in found.runs for e in run.evaluations],
        "pareto": [e.policy.id for e in found.front],
        **({} if found.finished is None else finished_summary(found.finished, setting, finals)),
    }


def _budgets(setting: Setting) -> list[dict[str, Any]]:
    """The limits, of the accuracy too where it has to be kept."""
    config, baseline = setting.problem.config, setting.baseline
    rows = [
        {"name": name, "asked": str(config.budgets[name]), "limit": limit} for name, limit in baseline.limits.items()
    ]
    if config.keep is not None and baseline.kept is not None:
        asked = f"{config.keep.accuracy:g} points, {100 * config.keep.confidence:.4g} % sure"
        rows.append({"name": "accuracy", "asked": asked, "limit": baseline.kept.allowed})
    return rows


def _least(baseline: Baseline, found: Findings) -> dict[str, Any]:
    """What is known of the least cost: the `certificate` in words, and, where nothing keeps the accuracy, the network
    that was `nearest` to it; None of either where no cost is minimised."""
    if baseline.minimise is None or baseline.kept is None:
        return {"certificate": None, "nearest": None}
    everything = [e for run in found.runs for e in run.evaluations]
    everything.sort(key=lambda e: e.latency is not None)  # of several of one policy, what was measured counts
    everything += [] if found.best is None else [found.best.evaluation]
    evaluated = list({e.policy.id: e for e in everything}.values())
    told: dict[str, Any] = {"certificate": certificate(baseline.minimise, evaluated), "nearest": None}
    seen = next(nearest(evaluated), None)
    if found.best is None and seen is not None:
        told["nearest"] = {
            "policy": seen.policy.id,
            "share": list(_share(seen)),
            "kept": baseline.kept.judgement(seen.answers),
        }
    return told


def certificate(minimise: str, evaluated: Sequence[Evaluation]) -> str:
    """Say what the distinct evaluations of all agents together know of the least cost, and no more."""
    least = min((_share(e).middle for e in evaluated if e.feasible), default=None)
    count = f"{len(evaluated)} evaluation{'s' * (len(evaluated) != 1)}"
    if least is None:
        return f"Nothing was found to keep the accuracy within every budget, in {count}."
    below = sum(_share(e).middle < least for e in evaluated)
    return (
        f"Nothing below {least:.3f}x of the {minimise} was found to keep the accuracy within every budget, in {count}, "
        f"{below} of which are below it."
    )


def _share(evaluation: Evaluation) -> Interval:
    if evaluation.objective is None:
        raise ValueError(f"{evaluation.policy.id} was not judged by a cost")
    return evaluation.objective.share


def _verdict(agent: str, found: Findings, metric: ShownMetric) -> str:
    if not any(run.evaluations for run in found.runs if run.agent == agent):
        return f"{agent} evaluated nothing: the search ended before its turn."
    return verdict_on_images(agent, found.winners, metric)


def verdict_on_images(agent: str, winners: Mapping[str, Winner | None], metric: ShownMetric = ACCURACY) -> str:
    """Say whether the chosen agent's winner is more accurate than the best one of the others by more than chance."""
    own = winners[agent]
    others = {name: winner for name, winner in winners.items() if name != agent}
    if own is None:
        return f"{agent} found no network that meets every budget when measured."
    rival = best_of(others)
    if rival is None:
        return f"{agent} ran alone: nothing says whether a plain agent would have done as well."
    if own.evaluation.objective is not None:
        return _verdict_on_costs(own, rival)
    apart = paired(own.evaluation.answers, rival.evaluation.answers)
    points = metric.points if metric.scale.given is not None else f"points of proxy {metric.name}"
    difference = f"{abs(apart.value) * 100:.2f} {points} (paired standard error {apart.error * 100:.2f})"
    if not tie(own.evaluation, rival.evaluation):
        first, second = (own, rival) if apart.value > 0 else (rival, own)
        return f"{first.agent} beats {second.agent} by {difference}."
    losses = f"{own.evaluation.loss:.3g} against {rival.evaluation.loss:.3g}" + " nats" * metric.classes
    return (
        f"{agent} and {rival.agent} differ by {difference}: within the noise, {agent} does not win. Their losses are "
        f"{losses}."
    )


def _verdict_on_costs(own: Winner, rival: Winner) -> str:
    takes = " and ".join(f"{winner.agent}'s network takes {winner.evaluation.said()}" for winner in (own, rival))
    if tie(own.evaluation, rival.evaluation):
        return f"{takes}: they are not told apart, {own.agent} does not win."
    first, second = sorted((own, rival), key=lambda winner: _share(winner.evaluation).middle)
    return f"{first.agent} beats {second.agent}: {takes}."


def _form(cost: Cost, parameters: int, selection: Graded, final: Graded) -> dict[str, Any]:
    return {**asdict(cost), "parameters": parameters, "accuracy": selection.value, "final_accuracy": final.value}


def _table_error(error: TableError) -> dict[str, Any]:
    known = error.networks > 0
    return {
        "median": error.median if known else None,
        "largest": error.largest if known else None,
        "networks": error.networks,
    }


def _agent(
    run: AgentRun, winner: Winner | None, chosen: bool, setting: Setting, finals: Mapping[str, Graded]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "agent": run.agent,
        "chosen": chosen,
        "evaluations": len(run.evaluations),
        "feasible": sum(e.feasible for e in run.evaluations),
        "best": None,
        "trace": _trace(run),
    }
    if winner is not None:
        row["best"] = _network(winner.evaluation, finals[winner.evaluation.policy.id], setting, finals["base"])
    return row


def finished_summary(finished: Finished, setting: Setting, finals: Mapping[str, Graded]) -> dict[str, Any]:
    """Return what a summary says once a network was trained: what it has become, how, and its exports."""
    evaluation = finished.evaluation
    network = _network(evaluation, finals[FINISHED], setting, finals["base"])
    before = finals.get(evaluation.policy.id)
    trained = {"training": dict(finished.found), "final_before": None if before is None else before.value}
    return {"finished": {**network, **trained}, "exports": [asdict(check) for check in finished.checks]}


def _network(evaluation: Evaluation, final: Graded, setting: Setting, base: Graded) -> dict[str, Any]:
    """The figures of a network that was measured; `base` are the final answers of the network as given."""
    latency, baseline = evaluation.latency, setting.baseline
    if latency is None:
        raise ValueError(f"{evaluation.policy.id} was not measured")
    return {
        "policy": evaluation.policy.id,
        "accuracy": evaluation.answers.value,
        "final_accuracy": final.value,
        "final_change": asdict(paired(final, base)),
        "loss": evaluation.loss,
        "latency": latency.to_json(),
        "latency_seconds": latency.ratio * baseline.base.latency,
        "limit_share": None if baseline.limit is None else latency.share(baseline.limit),
        "predicted_seconds": evaluation.cost.latency,
        "share": None if evaluation.objective is None else list(evaluation.objective.share),
        "kept": _kept(baseline.kept, evaluation.answers, final, base),
        "size": evaluation.cost.size,
        "macs": evaluation.cost.macs,
        "memory": evaluation.cost.memory,
        "parameters": count_parameters(setting.problem.space, evaluation.policy),
        "violations": dict(evaluation.violations),
    }


def _kept(kept: Kept | None, answers: Graded, final: Graded, base: Graded) -> dict[str, Any] | None:
    """Whether a network keeps the accuracy, on the selection images and on the final ones, where nothing was chosen."""
    if kept is None:
        return None
    return {"selection": kept.judgement(answers), "final": replace(kept, given=base).judgement(final)}


def _trace(run: AgentRun) -> list[float | None]:
    """Best feasible proxy accuracy after each evaluation; the least share of the cost, where one is minimised."""
    best: Evaluation | None = None
    trace: list[float | None] = []
    for evaluation in run.evaluations:
        if evaluation.feasible and (best is None or _worth(evaluation) > _worth(best)):
            best = evaluation
        trace.append(None if best is None else best.answers.value if best.objective is None else _share(best).middle)
    return trace


def _worth(evaluation: Evaluation) -> float:
    return evaluation.accuracy if evaluation.objective is None else -_share(evaluation).middle


def _point(agent: str, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "agent": agent,
        "policy": evaluation.policy.id,
        "accuracy": evaluation.answers.value,
        "loss": evaluation.loss,
        "latency": evaluation.cost.latency,
        "size": evaluation.cost.size,
        "macs": evaluation.cost.macs,
        "feasible": evaluation.feasible,
        "measured": evaluation.latency is not None,
    }


def _layers(problem: Problem, best: Winner | None, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The winner's decision for every layer, beside the layer's own shape and the kernels that run it."""
    if best is None:
        return []
    kernels: dict[str, dict[str, None]] = {}  # several where the layer is factorised; dicts keep the order
    for step in steps:
        if step["kernel"]:
            kernels.setdefault(step["layer"], {})[step["kernel"]] = None
    rows = []
    for shape in problem.space.layer_shapes(best.evaluation.policy):
        base = problem.space.network.node(shape.op.name)
        inputs = problem.space.network.shapes[base.inputs[0]][0]
        rows.append(
            {
                "layer": base.name,
                "kind": base.kind,
                "inputs": shape.inputs,
                "inputs_of": inputs,
                "outputs": shape.outputs,
                "outputs_of": len(base.weight),
                "kernel": list(base.weight.shape[2:]),
                **shape.decision.format.to_json(),
                "rank": shape.decision.rank,
                "form": shape.decision.form,
                "runs_as": ", ".join(kernels.get(base.name, ())),
            }
        )
    return rows
