"""Fills the layer database of a problem, in several processes; what is there already is not made again."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from trimtab.search.problem import Problem, open_database
from trimtab.search.progress import Progress
from trimtab.spaces.database import LayerDatabase, LayerTask

__all__ = ["Filled", "fill_database"]

#: Entries that a worker makes before it reports.
CHUNK = 16


@dataclass(frozen=True)
class Filled:
    """What filling did: entries in all and made now, their bytes on disk, and seconds."""

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
    with progress.bar("layer database", len(tasks)) as bar:
        bar.update(len(tasks) - len(missing))
        for made in _make_all(base, missing, workers):
            bar.update(len(tasks) - len(missing) + made)
    size = sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
    return Filled(str(base.folder), len(tasks), len(missing), size, time.perf_counter() - started)


def _make_all(base: LayerDatabase, tasks: Sequence[LayerTask], workers: int) -> Iterator[int]:
    """Make entries, and yield how many there are from time to time."""
    chunks = [tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK)]
    done = 0
    if workers == 0:
        for chunk in chunks:
            for task in chunk:
                base.make(task)
            done += len(chunk)
            yield done
        return
    # Forked children of a process that has used threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _start, (base,)) as pool:
        try:
            for finished in as_completed([pool.submit(_make, chunk) for chunk in chunks]):
                done += finished.result()
                yield done
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_base: LayerDatabase | None = None


def _start(base: LayerDatabase) -> None:
    global _base
    torch.set_num_threads(1)
    _base = base


def _make(tasks: Sequence[LayerTask]) -> int:
    if _base is None:
        raise RuntimeError("the worker has not been started")
    for task in tasks:
        _base.make(task)
    return len(tasks)
