"""The timing slot and the interleaved measurement: latency as a ratio with an interval."""

from __future__ import annotations

import fcntl
import gc
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.evaluators.engines.base import EngineSession, Images

__all__ = [
    "Latency",
    "cache_dir",
    "measure",
    "median_interval",
    "noise_floor",
    "timing_cores",
    "timing_slot",
    "worker_cores",
]

SLICE_SECONDS = 0.005
LEAST_SLICES = 20

#: Neighbouring ratios share a slice of the reference: with equal noise in both networks their correlation is 1/6,
#: which makes n of them worth n / (1 + 2/6) independent ones.
SHARED_REFERENCE = 4 / 3


@dataclass(frozen=True)
class Latency:
    """A measured latency: `ratio` to the reference's with its 95 % interval [`low`, `high`].

    `seconds` and `reference_seconds` are the medians of this measurement; they differ from run to run, the ratio
    hardly. `slices` counts the ratios used, `dropped` those that the operating system interrupted; `stopped_by` is
    "interval" when the interval became narrow enough, "time" when the cap was reached.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    reference_seconds: float
    slices: int
    dropped: int
    stopped_by: str


def cache_dir() -> Path:
    """Return the folder for what trimtab measures and trains: `TRIMTAB_CACHE`, or the user's cache folder."""
    root = os.environ.get("TRIMTAB_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


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
def timing_slot(threads: int = 1) -> Iterator[None]:
    """Hold the machine's one timing slot: an exclusive lock, the thread pinned, garbage collection off.

    Where the system allows it, the thread also gets real-time priority, so that no other process takes its core.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    before = os.sched_getaffinity(0)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    collecting = gc.isenabled()
    with open(folder / "timing.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.sched_setaffinity(0, timing_cores(threads))
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        gc.disable()
        try:
            yield
        finally:
            os.sched_setscheduler(0, policy, parameters)
            os.sched_setaffinity(0, before)
            if collecting:
                gc.enable()


def measure(
    session: EngineSession,
    reference: EngineSession,
    inputs: Images,
    *,
    precision: float = 0.01,
    seconds: float = 1.0,
) -> Latency:
    """Time a session against a reference in turn, A B A B ..., and return the ratio of their times per run.

    `inputs` is (R, batch, C, H, W), rotated. Each slice of about 5 ms is divided by the mean of the reference slices
    before and after it; slices with an involuntary context switch are dropped, unless hardly any are
    without. Stops when half the interval of the median ratio is at most `precision` of it, or after `seconds`. Call it
    inside `timing_slot`.
    """
    for warmed in (reference, session):
        warmed.time(inputs, SLICE_SECONDS)
    slices: list[_Slice] = []
    end = time.perf_counter() + seconds
    before = reference.time(inputs, SLICE_SECONDS)
    while True:
        piece = session.time(inputs, SLICE_SECONDS)
        after = reference.time(inputs, SLICE_SECONDS)
        switches = before.involuntary_switches + piece.involuntary_switches + after.involuntary_switches
        beside = (before.seconds / before.runs + after.seconds / after.runs) / 2
        slices.append(_Slice(piece.seconds / piece.runs, beside, switches > 0))
        before = after
        late = time.perf_counter() >= end
        used = [s for s in slices if not s.interrupted]
        if len(used) < LEAST_SLICES and late:
            used = slices  # on a machine this busy, a median over disturbed slices is all there is
        if len(used) >= LEAST_SLICES or late:
            median, low, high = median_interval([s.seconds / s.reference for s in used], SHARED_REFERENCE)
            narrow = (high - low) / 2 <= precision * median and len(used) >= LEAST_SLICES
            if narrow or late:
                return Latency(
                    median,
                    low,
                    high,
                    seconds=float(np.median([s.seconds for s in used])),
                    reference_seconds=float(np.median([s.reference for s in used])),
                    slices=len(used),
                    dropped=len(slices) - len(used),
                    stopped_by="interval" if narrow else "time",
                )


@dataclass(frozen=True)
class _Slice:
    """Seconds per run of the measured network and of the reference beside it."""

    seconds: float
    reference: float
    interrupted: bool


def median_interval(values: Sequence[float], per_independent: float = 1.0) -> tuple[float, float, float]:
    """Return (median, low, high): the distribution-free 95 % interval of the median, by order statistics.

    `per_independent` is how many of the values are worth one independent value.
    """
    ordered = sorted(values)
    count = len(ordered)
    spread = 0.98 * math.sqrt(count * per_independent)
    low = max(0, math.floor(count / 2 - spread))
    high = min(count - 1, math.ceil(count / 2 + spread))
    return float(np.median(ordered)), ordered[low], ordered[high]


def noise_floor(
    session: EngineSession, same: EngineSession, inputs: Images, *, repeats: int = 5, seconds: float = 0.3
) -> float:
    """Return the largest deviation from 1 over several measurements of a network against itself (A/A runs)."""
    ratios = [measure(session, same, inputs, seconds=seconds).ratio for _ in range(repeats)]
    return max(abs(ratio - 1) for ratio in ratios)
