"""One trial of a contest: a whole search by one agent with one seed under one budget, in a folder of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import BadInput
from trimtab.evaluators.price.table import LatencyTable
from trimtab.files import file_name
from trimtab.search.loop.best_policy import keep_best
from trimtab.search.loop.journal import Journal, read_journal
from trimtab.search.loop.loop import AgentRun, Ledger, Memory, Searcher
from trimtab.search.loop.pool import LocalPool
from trimtab.search.progress import Progress
from trimtab.search.setup.setting import Setting, engine_of, machine_of

__all__ = ["Trial", "read_trial", "run_trial"]


@dataclass(frozen=True)
class Trial:
    """The identity of a trial: `budget` is its setting's name, `seed` the agent's alone."""

    budget: str
    agent: str
    seed: int

    def folder(self, root: Path, setting: Setting) -> Path:
        """Where the trial's journal and its best policy lie."""
        return root / "trials" / self.name(setting.folder)

    def name(self, budget: str) -> str:
        """The trial's name among files, given its budget's."""
        return f"{budget}-{file_name(self.agent)}-seed{self.seed}"


def run_trial(trial: Trial, setting: Setting, root: Path, report: Callable[[dict[str, float]], None]) -> AgentRun:
    """Run, or go on with, a trial on one thread; `report` gets its figures after every evaluation.

    Nothing is measured end to end, because other trials compute at the same time: the latency table decides.
    """
    torch.set_num_threads(1)
    config = setting.problem.config.model_copy(update={"agent": trial.agent, "baselines": (), "seed": trial.seed})
    if setting.elsewhere:
        here = " on ".join(machine_of(engine_of(setting.problem)))
        raise BadInput(f"the latency table was measured with {setting.elsewhere}, this node has {here}")
    folder = trial.folder(root, setting)
    setting = replace(setting, problem=replace(setting.problem, config=config))
    limits = setting.limits(LatencyTable(engine_of(setting.problem), setting.problem.space))
    folder.mkdir(parents=True, exist_ok=True)
    keep = keep_best(folder)

    def watch(run: AgentRun) -> None:
        keep(run)
        report(_metrics(run))

    with Journal(folder / "journal") as journal:
        searcher = Searcher(setting, limits, None, LocalPool(setting.problem.judge), Ledger(journal))
        run = searcher.run(trial.agent, Progress(), config.time_limit or math.inf, watch)
        journal.append("finished", {"trial": asdict(trial), **_asked(setting), "ended": run.ended})
    return run


def read_trial(trial: Trial, setting: Setting, root: Path) -> tuple[AgentRun, bool]:
    """Return what a trial has evaluated so far, and whether it has done all that it is asked for."""
    path = trial.folder(root, setting) / "journal"
    if not path.exists():
        return AgentRun(trial.agent, ended="interrupted"), False
    records = read_journal(path)
    run = Memory(records).run(trial.agent)
    last = records[-1] if records and records[-1].kind == "finished" else None
    if last is None:
        run.ended = "interrupted"
        return run, False
    run.ended = last.data["ended"]
    return run, run.ended == "exhausted" or all(last.data[key] == value for key, value in _asked(setting).items())


def _asked(setting: Setting) -> Mapping[str, Any]:
    return {"trials": setting.problem.config.trials, "time_limit": setting.problem.config.time_limit}


def _metrics(run: AgentRun) -> dict[str, float]:
    """What TensorBoard shows of a trial; without a feasible policy its accuracy is not a number."""
    return {
        "best_accuracy": run.best.accuracy if run.best else math.nan,
        "accuracy": run.evaluations[-1].accuracy,
        "evaluations": len(run.evaluations),
        "seconds": run.seconds,
        "asking_seconds": run.asking[-1],
    }
