"""Filling of a problem's layer database, in several processes; what is there already is not made again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.search.progress import Progress
from trimtab.search.setup.problem import Problem, open_database
from trimtab.search.setup.processes import in_processes
from trimtab.spaces.repairs.database import LayerDatabase, LayerTask

__all__ = ["Filled", "fill_database"]

#: Entries that a worker makes before it reports.
CHUNK = 16


@dataclass(frozen=True)
class Filled:
    """The result of filling: entries in all and made now, their bytes on disk, and seconds."""

    folder: str
    entries: int
    made: int
    size: int
    seconds: float


def fill_database(problem: Problem, workers: int, progress: Progress) -> Filled:
    """Make every entry that a search in the problem's space will ask for; `workers` 0 is this process alone.

    It may be stopped at any moment: entries are there whole or not at all, and the next call makes the rest.
    """
    started = time.perf_counter()
    base = open_database(problem.space, problem.judge.calibration)
    tasks = base.tasks()
    missing = base.missing(tasks)
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    with progress.bar("layer database", len(tasks)) as bar:
        bar.update(len(tasks) - len(missing))
        made = 0
        for chunk, _ in in_processes(_Maker, (base,), chunks, workers):
            made += len(chunk)
            bar.update(len(tasks) - len(missing) + made)
    size = sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
    return Filled(str(base.folder), len(tasks), len(missing), size, time.perf_counter() - started)


class _Maker:
    """Makes entries."""

    def __init__(self, base: LayerDatabase) -> None:
        self.base = base

    def __call__(self, tasks: Sequence[LayerTask]) -> None:
        for task in tasks:
            self.base.make(task)
