"""The machine's timing slot and the cores that it takes."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

__all__ = ["timing_cores", "timing_slot", "worker_cores"]

# What the slot locks: a directory that the kernel makes, so that it is the same one for every process of the machine,
# whoever owns it and wherever it keeps its files, and nothing is left behind.
LOCKED = "/sys/devices/system/cpu"


def timing_cores(threads: int = 1) -> frozenset[int]:
    """Return the cores that measurements are pinned to: the last ones that this process may use."""
    return frozenset(sorted(_allowed_cores())[-threads:])


def worker_cores(threads: int = 1) -> frozenset[int]:
    """Return the cores that are left to accuracy workers; all of them where nothing would be left."""
    return frozenset(_allowed_cores() - timing_cores(threads)) or frozenset(_allowed_cores())


def _allowed_cores() -> set[int]:
    # The main thread's mask: a measuring thread is itself pinned while it asks.
    return os.sched_getaffinity(os.getpid())


@contextmanager
def timing_slot(threads: int = 1, pools: bool = False) -> Iterator[None]:
    """Hold the machine's one timing slot: an exclusive lock, the thread pinned, garbage collection off. It waits for
    whoever measures at the time, of this process or of another.

    Where the system allows it, the thread also gets real-time priority, so that no other process takes its core; with
    `pools`, so do all other threads of this process, which then should have nothing else to do.
    """
    before = os.sched_getaffinity(0)
    collecting = gc.isenabled()
    with _lock(LOCKED):
        os.sched_setaffinity(0, timing_cores(threads))
        gc.disable()
        try:
            with _real_time_priority(sorted(map(int, os.listdir("/proc/self/task"))) if pools else [0]):
                yield
        finally:
            os.sched_setaffinity(0, before)
            if collecting:
                gc.enable()


@contextmanager
def _lock(directory: str) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # A process forked meanwhile has the lock as well: closing alone would leave it locked.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def _real_time_priority(tasks: Sequence[int]) -> Iterator[None]:
    """Raise threads above every ordinary process, where that is permitted; a thread may have ended meanwhile."""
    raised = []
    for task in tasks:
        with suppress(PermissionError, ProcessLookupError):
            before = (os.sched_getscheduler(task), os.sched_getparam(task))
            os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))
            raised.append((task, before))
    try:
        yield
    finally:
        for task, (policy, parameters) in raised:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(task, policy, parameters)
