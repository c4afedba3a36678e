"""The contest: agents search side by side, one Ray Tune trial per (agent, seed, budget), and are compared fairly.

All trials of a budget share the measured baseline, the latency table and the layer database, and have equally many
evaluations or equal time. While they run, nothing is measured end to end; afterwards, alone on the machine, the winner
of every trial is built and measured.

A trial's journal is the truth, as any search's is. Ray Tune keeps its own logs beside it, but its pickled state is
never read: a contest is gone on with from the journals, so that opening a folder runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.agents import label
from trimtab.errors import BadInput
from trimtab.files import write_text
from trimtab.search.contest.summary import Finished, contest_summary
from trimtab.search.contest.trial import Trial, read_trial
from trimtab.search.loop.best_policy import write_policy
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.experiment import Experiment, begin
from trimtab.search.loop.journal import read_journal
from trimtab.search.loop.pool import start_ray
from trimtab.search.progress import Progress
from trimtab.search.report.contest_report import write_contest
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting, price_first_proposals

__all__ = ["Plan", "parse_budgets", "planned", "run_contest"]


def planned(folder: Path) -> dict[str, Any]:
    """Return the agents, seeds and budgets with which a contest in a folder was last gone on with."""
    plans = [record.data for record in read_journal(folder / "journal") if record.kind == "plan"]
    if not plans:
        raise BadInput(f"there is no contest to resume in {folder}")
    return {key: plans[-1][key] for key in ("agents", "seeds", "budgets")}


def parse_budgets(text: str) -> list[dict[str, str]]:
    """Read "latency=0.5x int8,size=0.5x int8; size=0.3x": budgets by semicolons, their parts by commas.

    The parts are checked with the configuration; here a part without a name or a value is a `BadInput`.
    """
    found = []
    for budget in filter(None, (part.strip() for part in text.split(";"))):
        pairs = [part.partition("=") for part in budget.split(",")]
        if any(not (name.strip() and value.strip()) for name, _, value in pairs):
            raise BadInput(f"--budgets: {budget!r} is not name=value, like 'latency=0.5x int8,size=120 KiB'")
        found.append({name.strip(): value.strip() for name, _, value in pairs})
    if not found:
        raise BadInput("--budgets names none; write it like 'latency=0.5x int8; size=0.5x int8'")
    return found


@dataclass(frozen=True)
class Plan:
    """The competitors: every agent, with `seeds` seeds each (0, 1, ...), under every one of the `budgets`.

    `workers` trials run at a time, on a core each; 0 is one for every core.
    """

    agents: tuple[str, ...]
    seeds: int
    budgets: tuple[Mapping[str, Any], ...]
    workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "agents", tuple(map(label, self.agents)))
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise BadInput(f"--agents: name each agent once, at least one; found {', '.join(self.agents) or 'none'}")

    def trials(self, settings: Sequence[Setting]) -> list[Trial]:
        """Return all trials; those of a seed come together, so that an early end leaves whole comparisons."""
        seeds, agents = range(self.seeds), self.agents
        return [Trial(setting.budget, agent, seed) for seed in seeds for setting in settings for agent in agents]


def run_contest(
    problem: Problem, plan: Plan, folder: Path, progress: Progress, resume: bool = False, address: str | None = None
) -> tuple[dict[str, Any], bool]:
    """Run, or go on with, a contest in a folder; return its summary, and whether Ctrl-C ended it early.

    `address` is that of a Ray cluster, whose nodes need the same processor and see the folder and the cache; without
    it one is started here, on loopback. An impossible budget is an `InfeasibleBudget` and leaves no folder.
    """
    if problem.config.minimise is not None:
        raise BadInput("a contest compares accuracies under budgets: leave out minimise and keep")
    folder = folder.absolute()
    agents, workers = plan.agents, plan.workers or len(os.sched_getaffinity(0))
    with begin("contest", problem, plan.budgets, agents, folder, progress, resume) as experiment:
        experiment.journal.append("plan", {**asdict(plan), "trials": problem.config.trials})
        settings = [price_first_proposals(setting, agents, progress) for setting in experiment.settings]
        failed = _run_trials(plan, settings, folder, workers, address, progress)
        return _finish(plan, experiment, failed, progress)


def _run_trials(
    plan: Plan, settings: Sequence[Setting], folder: Path, workers: int, address: str | None, progress: Progress
) -> dict[Trial, str]:
    """Run the trials that are not finished, and return why some failed."""
    by_name = {setting.budget: setting for setting in settings}
    states = {trial: read_trial(trial, by_name[trial.budget], folder) for trial in plan.trials(settings)}
    pending = [trial for trial, (_, done) in states.items() if not done]
    if not pending:
        return {}
    progress.line(f"{len(pending)} of {len(states)} trials to run, {workers} at a time")
    started = start_ray(workers, address)
    import ray

    from trimtab.search.contest.ray_tune import run_trials

    try:
        counts = {trial.name(by_name[trial.budget].folder): len(run.evaluations) for trial, (run, _) in states.items()}
        with progress.bar("evaluations", len(states) * settings[0].problem.config.trials) as bar:

            def told(name: str, evaluations: int) -> None:
                counts[name] = evaluations
                bar.update(sum(counts.values()), name)

            return run_trials(pending, by_name, folder, workers, told)
    finally:
        if started:
            ray.shutdown()


def _finish(
    plan: Plan, experiment: Experiment, failed: Mapping[Trial, str], progress: Progress
) -> tuple[dict[str, Any], bool]:
    """Verify the winners, alone on the machine, and write the report."""
    by_name = {setting.budget: setting for setting in experiment.settings}
    finished: list[Finished] = []
    interrupted = False
    trials = plan.trials(experiment.settings)
    with progress.bar("winners verified", len(trials)) as bar:
        for count, trial in enumerate(trials):
            setting = by_name[trial.budget]
            run, done = read_trial(trial, setting, experiment.folder)
            interrupted |= not done and trial not in failed
            winner, tried = experiment.verifier.winner(setting, experiment.benches[setting.budget], run.evaluations)
            accuracy = None if winner is None else _accuracy(experiment, setting, winner)
            if winner is not None:
                write_policy(trial.folder(experiment.folder, setting), winner.policy)
            finished.append(Finished(trial, run, winner, accuracy, tried, failed.get(trial)))
            bar.update(count + 1)
    experiment.candidates.keep([one.winner.policy for one in finished if one.winner is not None])
    summary = contest_summary(experiment.settings, finished)
    write_text(experiment.folder / "compare.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_contest(summary, experiment.folder)
    return summary, interrupted


def _accuracy(experiment: Experiment, setting: Setting, winner: Evaluation) -> float:
    """Return the accuracy of a winner's finished network on the selection images."""
    judge = setting.problem.judge
    candidate = experiment.verifier.candidate(setting, winner.policy)
    return judge.graded(judge.outputs(candidate, judge.images)).accuracy
