"""The figures of a contest, as plain values: what its table, its report and `--json` show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from trimtab.search.contest.statistics import (
    Steps,
    at,
    best_so_far,
    curve,
    first_reaching,
    hypervolume,
    spread,
    verdict_over_seeds,
)
from trimtab.search.contest.trial import Trial
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.loop import AgentRun
from trimtab.search.report.summary import about
from trimtab.search.setup.setting import Setting

__all__ = ["Finished", "contest_summary"]

#: Evaluations after which agents are compared, beside the last one.
MILESTONES = (40, 200, 400)

#: How far below the best accuracy of all the levels lie that agents have to reach.
BELOW = (0.05, 0.02, 0.01)

Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Finished:
    """A trial's outcome: `winner` as measured, with its proxy accuracy, `accuracy` of its finished network on the
    selection images, the number of networks `tried` until one passed, and why the trial `failed`."""

    trial: Trial
    run: AgentRun
    winner: Evaluation | None
    accuracy: float | None
    tried: int
    failed: str | None = None


def contest_summary(settings: Sequence[Setting], finished: Sequence[Finished]) -> Values:
    """Collect the figures. Latencies are in seconds, sizes in bytes, accuracies in [0, 1]."""
    problem = settings[0].problem
    config = problem.config
    budgets = [_budget(setting, [f for f in finished if f.trial.budget == setting.budget]) for setting in settings]
    winners = [f.winner for f in finished if f.winner is not None]
    evaluated = [e for f in finished for e in f.run.evaluations]
    return {
        **about(problem),
        "proxy": config.proxy,
        "trials": config.asked_trials,
        "time_limit": config.time_limit,
        "seeds": 1 + max(f.trial.seed for f in finished),
        "feasible": {
            "evaluated": len(evaluated),
            "on_the_table": sum(e.feasible for e in evaluated),
            "winners": len(winners),
            "measured": sum(e.verified for e in winners),
            "first_choices": sum(f.winner is not None and f.tried == 1 for f in finished),
            "without_winner": sum(f.winner is None for f in finished),
        },
        "failed": [{**asdict(f.trial), "error": f.failed} for f in finished if f.failed],
        "budgets": budgets,
    }


def _budget(setting: Setting, finished: Sequence[Finished]) -> Values:
    baseline, trials = setting.baseline, setting.problem.config.trials
    milestones = [*(n for n in MILESTONES if n < trials), trials]
    runs = [_run(setting, f) for f in finished]
    by_agent: dict[str, list[Values]] = {}
    for run in runs:
        by_agent.setdefault(run["agent"], []).append(run)
    top = max((run["best"] for run in runs if run["best"] is not None), default=None)
    levels = [] if top is None else [math.floor((top - below) * 200) / 200 for below in BELOW]
    return {
        "budget": setting.budget,
        "limits": dict(baseline.limits),
        "margin": baseline.margin,
        "noise_floor": baseline.noise_floor,
        "base": {**asdict(baseline.base), "accuracy": baseline.base_answers.accuracy},
        "int8": {**asdict(baseline.int8), "accuracy": baseline.int8_answers.accuracy},
        "verdicts": [
            *(verdict_over_seeds(_bests_at(by_agent, n), _after(n, trials, runs)) for n in milestones),
            verdict_over_seeds(_measured(by_agent), "the winners were measured end to end"),
        ],
        "agents": [_agent(name, own, milestones, levels) for name, own in by_agent.items()],
        "levels": levels,
        "runs": runs,
    }


def _run(setting: Setting, finished: Finished) -> Values:
    """One trial's figures; `steps` is its best-so-far curve over evaluations and over seconds."""
    run, limits = finished.run, setting.baseline.limits
    values = [e.accuracy if e.feasible else None for e in run.evaluations]
    steps = best_so_far(range(1, len(values) + 1), values)
    cost = "latency" if "latency" in limits else next(iter(limits))
    points = [(e.cost.get(cost), e.accuracy) for e in run.evaluations if e.feasible]
    late = run.asking[-max(len(run.asking) // 10, 1) :]
    count = len(run.evaluations)
    return {
        "agent": finished.trial.agent,
        "seed": finished.trial.seed,
        "ended": run.ended,
        "evaluations": count,
        "feasible": len(points),
        "seconds": run.seconds,
        "asking": {
            "median": median(run.asking) if run.asking else None,
            "late": median(late) if late else None,
            "largest": max(run.asking, default=None),
        },
        "per_second": count / run.seconds if run.seconds else None,
        "judged_per_second": count / run.judging if run.judging else None,
        "best": steps[-1][1] if steps else None,
        "steps": {
            "evaluations": steps,
            "seconds": best_so_far(run.moments, values),
        },
        "hypervolume": hypervolume(points, limits[cost], setting.problem.chance),
        "hypervolume_cost": cost,
        "winner": None if finished.winner is None else _winner(setting, finished.winner, finished.accuracy),
        "verified": finished.tried,
    }


def _winner(setting: Setting, winner: Evaluation, accuracy: float | None) -> Values:
    """A measured winner; ratios are to the uniform int8 form, where `latency` comes with its 95 % interval."""
    int8, latency = setting.baseline.int8, winner.latency
    return {
        "policy": winner.policy.id,
        "proxy_accuracy": winner.accuracy,
        "accuracy": accuracy,
        "loss": winner.loss,
        "latency": None if latency is None else list(latency.to_yardstick.times(setting.baseline.link.to_int8)),
        "size": winner.cost.size / int8.size,
        "violations": dict(winner.violations),
    }


def _agent(name: str, runs: Sequence[Values], milestones: Sequence[int], levels: Sequence[float]) -> Values:
    """One agent over its seeds: medians and ranges."""
    steps: list[Steps] = [run["steps"]["evaluations"] for run in runs]
    moments: list[Steps] = [run["steps"]["seconds"] for run in runs]
    winners = [run["winner"] for run in runs if run["winner"] is not None]
    return {
        "agent": name,
        "seeds": len(runs),
        "evaluations": _spread(run["evaluations"] for run in runs),
        "after": {str(n): _spread(at(s, n) for s in steps) for n in milestones},
        "hypervolume": _spread(run["hypervolume"] for run in runs),
        "asking": {key: _spread(run["asking"][key] for run in runs) for key in ("median", "late", "largest")},
        "seconds": _spread(run["seconds"] for run in runs),
        "per_second": _spread(run["per_second"] for run in runs),
        "judged_per_second": _spread(run["judged_per_second"] for run in runs),
        "proxy_accuracy": _spread(winner["proxy_accuracy"] for winner in winners),
        "accuracy": _spread(winner["accuracy"] for winner in winners),
        "loss": _spread(winner["loss"] for winner in winners),
        "latency": _spread(winner["latency"][0] if winner["latency"] else None for winner in winners),
        "size": _spread(winner["size"] for winner in winners),
        "reach": [_reach(level, steps, moments) for level in levels],
        "curves": {
            "evaluations": [[where, *over_seeds] for where, over_seeds in curve(steps)],
            "seconds": [[where, *over_seeds] for where, over_seeds in curve(moments)],
        },
    }


def _reach(level: float, steps: Sequence[Steps], moments: Sequence[Steps]) -> Values:
    """After how many evaluations and seconds a level is reached, by the seeds that reach it."""
    evaluations = [first_reaching(s, level) for s in steps]
    reached = sum(n is not None for n in evaluations)
    return {
        "accuracy": level,
        "seeds": reached,
        "evaluations": _spread(evaluations),
        "seconds": _spread(first_reaching(s, level) for s in moments),
    }


def _after(evaluations: int, trials: int, runs: Sequence[Values]) -> str:
    """Say after what agents are compared: the last comparison is of all that they did."""
    ends = {run["ended"] for run in runs}
    if evaluations == trials and "interrupted" in ends:
        return "what was evaluated before the interruption"
    if evaluations == trials and "time" in ends:
        return "the time limit"
    return f"{evaluations} evaluations"


def _bests_at(by_agent: Mapping[str, Sequence[Values]], evaluations: int) -> dict[str, list[float]]:
    """Every agent's best accuracy of each seed; a seed without a feasible policy has none, which is worth 0."""
    return {
        agent: [at(run["steps"]["evaluations"], evaluations) or 0.0 for run in runs] for agent, runs in by_agent.items()
    }


def _measured(by_agent: Mapping[str, Sequence[Values]]) -> dict[str, list[float]]:
    """Every agent's proxy accuracy of each seed's winner that passed its measurement; 0 where none did."""
    return {
        agent: [run["winner"]["proxy_accuracy"] if run["winner"] else 0.0 for run in runs]
        for agent, runs in by_agent.items()
    }


def _spread(values: Iterable[float | None]) -> Values | None:
    """The spread of the values that there are; None where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    middle, low, high = spread(known)
    return {"median": middle, "low": low, "high": high, "seeds": len(known)}
