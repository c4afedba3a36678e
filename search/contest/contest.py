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
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.agents import AGENTS
from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.accuracy import accuracy_of, judging_session
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.table import LatencyTable
from trimtab.files import write_text
from trimtab.search.contest.setting import Setting, bench_of, make_setting, price_first_proposals
from trimtab.search.contest.summary import Finished, contest_summary
from trimtab.search.contest.trial import Trial, read_trial
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Journal, read_journal
from trimtab.search.loop.loop import AgentRun
from trimtab.search.loop.pool import start_ray
from trimtab.search.loop.verify import contenders, verify
from trimtab.search.progress import Progress
from trimtab.search.report.contest_report import write_contest
from trimtab.search.run import identity, prepare_folder, write_policy
from trimtab.search.setup.problem import Problem

__all__ = ["Plan", "planned", "run_contest"]


def planned(folder: Path) -> dict[str, Any]:
    """Return the agents, seeds and budgets with which a contest in a folder was last gone on with."""
    plans = [record.data for record in read_journal(folder / "journal") if record.kind == "plan"]
    if not plans:
        raise BadInput(f"there is no contest to resume in {folder}")
    return {key: plans[-1][key] for key in ("agents", "seeds", "budgets")}


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
        for agent in self.agents:
            if agent not in AGENTS:
                raise unknown_name("agent", agent, AGENTS)
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
    prepare_folder(folder, resume)
    folder = folder.absolute()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / "journal")) if resume else None
        if journal is not None:
            _check_same(problem, journal)
        table = LatencyTable(make_engine(problem.config.engine.name, problem.config.engine.threads), problem.space)
        settings: list[Setting] = []
        for budgets in plan.budgets:
            link = settings[0].baseline.link if settings else None
            settings.append(make_setting(problem, budgets, plan.agents, table, journal, progress, link))
        if journal is None:
            folder.mkdir(parents=True, exist_ok=True)
            journal = stack.enter_context(Journal(folder / "journal"))
            journal.append("contest", _identity(problem))
        write_text(folder / "config.yaml", problem.config.to_yaml())
        known = {record.data["budget"] for record in journal.records() if record.kind == "baseline"}
        for setting in settings:
            if setting.budget not in known:
                journal.append("baseline", setting.to_json())
        journal.append("plan", {**asdict(plan), "trials": problem.config.trials})
        workers = plan.workers or len(os.sched_getaffinity(0))
        settings = [price_first_proposals(setting, plan.agents, progress) for setting in settings]
        failed = _run_trials(plan, settings, folder, workers, address, progress)
        summary, interrupted = _finish(plan, settings, folder, journal, failed, progress)
    return summary, interrupted


def _identity(problem: Problem) -> dict[str, Any]:
    """What has to be the same for a contest to be gone on with; it may get more agents, seeds, budgets and trials."""
    found = identity(problem, make_engine(problem.config.engine.name, problem.config.engine.threads).signature)
    return {**found, "config": {k: v for k, v in found["config"].items() if k not in ("agent", "baselines", "budgets")}}


def _check_same(problem: Problem, journal: Journal) -> None:
    then = next((record.data for record in journal.records() if record.kind == "contest"), None)
    if then is None:
        raise BadInput(f"there is no contest to resume in {journal.path.parent}")
    now = _identity(problem)
    for key, what in (("network", "network"), ("weights", "network's weights"), ("config", "configuration")):
        if json.dumps(now[key], sort_keys=True) != json.dumps(then[key], sort_keys=True):
            raise BadInput(f"the {what} is not the one that the contest in {journal.path.parent} was started with")


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
    plan: Plan,
    settings: Sequence[Setting],
    folder: Path,
    journal: Journal,
    failed: Mapping[Trial, str],
    progress: Progress,
) -> tuple[dict[str, Any], bool]:
    """Re-check the winners, alone on the machine, and write the report."""
    by_name = {setting.budget: setting for setting in settings}
    verifier = _Verifier(journal)
    finished: list[Finished] = []
    interrupted = False
    trials = plan.trials(settings)
    with progress.bar("winners verified", len(trials)) as bar:
        for count, trial in enumerate(trials):
            setting = by_name[trial.budget]
            run, done = read_trial(trial, setting, folder)
            interrupted |= not done and trial not in failed
            winner, accuracy, tried = verifier.winner(setting, run)
            if winner is not None:
                write_policy(trial.folder(folder, setting), winner.policy)
            finished.append(Finished(trial, run, winner, accuracy, tried, failed.get(trial)))
            bar.update(count + 1)
    summary = contest_summary(settings, finished)
    write_text(folder / "compare.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_contest(summary, folder)
    return summary, interrupted


class _Verifier:
    """Measures finished networks, each once in a contest."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.known: dict[tuple[str, str], tuple[Evaluation, float]] = {}
        self.benches: dict[str, Any] = {}
        for record in journal.records():
            if record.kind == "verify":
                evaluation = Evaluation.from_json(record.data["evaluation"])
                self.known[record.data["budget"], evaluation.policy.id] = evaluation, record.data["accuracy"]

    def winner(self, setting: Setting, run: AgentRun) -> tuple[Evaluation | None, float | None, int]:
        """Return the preferred evaluation of those whose finished network meets every budget, that network's accuracy
        on the selection images, and how many networks were tried."""
        candidates = contenders(run.evaluations)
        for tried, evaluation in enumerate(candidates, 1):
            found, accuracy = self._checked(setting, evaluation)
            if found.feasible:
                return found, accuracy, tried
        return None, None, len(candidates)

    def _checked(self, setting: Setting, evaluation: Evaluation) -> tuple[Evaluation, float]:
        key = setting.budget, evaluation.policy.id
        if key not in self.known:
            if setting.budget not in self.benches:
                self.benches[setting.budget] = bench_of(setting.problem)
            found, candidate = verify(setting.problem, setting.baseline, self.benches[setting.budget], evaluation)
            judge = setting.problem.judge
            accuracy = accuracy_of(judging_session(candidate), judge.images, judge.labels)
            data = {"budget": setting.budget, "evaluation": found.to_json(), "accuracy": accuracy}
            self.journal.append("verify", data)
            self.known[key] = found, accuracy
        return self.known[key]
