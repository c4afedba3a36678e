"""Processes that do the same work on many things."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

__all__ = ["in_processes"]

#: Seconds of work that this process does before it starts others, which takes each of them as long: often that is all.
HERE = 5.0

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    make: Callable[..., Callable[[Task], Result]], arguments: Sequence[Any], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) for every task, as they are finished; `workers` 0 is this process alone, in their order.

    Each process makes its own worker once, by `make(*arguments)`. Where the caller stops early, or a task fails, the
    tasks that have not begun are dropped.
    """
    work, end = make(*arguments), time.perf_counter() + (HERE if workers else math.inf)
    here = 0
    while here < len(tasks) and time.perf_counter() < end:
        yield tasks[here], work(tasks[here])
        here += 1
    if here == len(tasks):
        return
    # Forked children of a process that has used threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _start, (make, arguments)) as pool:
        running = {pool.submit(_work, task): task for task in tasks[here:]}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker: Callable[[Any], Any] | None = None


def _start(make: Callable[..., Callable[[Any], Any]], arguments: Sequence[Any]) -> None:
    global _worker
    _worker = make(*arguments)


def _work(task: Any) -> Any:
    if _worker is None:
        raise RuntimeError("the process has not been started")
    return _worker(task)
