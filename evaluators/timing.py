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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trimtab.evaluators.engines.base import EngineSession, Images, TimeSlice

__all__ = [
    "Estimate",
    "Latency",
    "Rounds",
    "cache_dir",
    "interleave",
    "measure",
    "median_interval",
    "noise_floor",
    "timing_cores",
    "timing_slot",
    "worker_cores",
]

#: Short, so that what disturbs the machine disturbs neighbouring slices alike.
SLICE_SECONDS = 0.002
LEAST_SLICES = 20

#: Where noise keeps the interval wide, slices count while both networks are within QUIET of the time that FASTEST of
#: their slices beat: another process that streams through the shared cache slows two networks by different factors,
#: and the question is their ratio on a machine of their own.
FASTEST, QUIET = 0.02, 1.07

#: Rounds of many sessions: fewer give no 95 % interval of a median (it would reach beyond the extremes).
LEAST_ROUNDS = 8

#: For so long after a run with several threads the thread pools of OpenVINO (1.2 ms) and of torch (4 ms) still spin,
#: on the cores of whatever is measured next.
SPINNING_SECONDS = 0.006

#: Neighbouring ratios share a slice of the reference: with equal noise in both networks their correlation is 1/6,
#: which makes n of them worth n / (1 + 2/6) independent ones.
SHARED_REFERENCE = 4 / 3


@dataclass(frozen=True)
class Latency:
    """A measured latency: `ratio` to the reference's with its 95 % interval [`low`, `high`].

    `seconds` and `reference_seconds` are the medians of this measurement; they differ from run to run, the ratio
    hardly. `slices` counts the ratios used, `dropped` those that other processes disturbed; `stopped_by` is
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
def timing_slot(threads: int = 1, pools: bool = False) -> Iterator[None]:
    """Hold the machine's one timing slot: an exclusive lock, the thread pinned, garbage collection off.

    Where the system allows it, the thread also gets real-time priority, so that no other process takes its core; with
    `pools`, so do all other threads of this process, which then should have nothing else to do.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    before = os.sched_getaffinity(0)
    collecting = gc.isenabled()
    with open(folder / "timing.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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


def measure(
    session: EngineSession,
    reference: EngineSession,
    inputs: Images,
    *,
    precision: float = 0.01,
    seconds: float = 1.0,
) -> Latency:
    """Time a session against a reference in turn, A B A B ..., and return the ratio of their times per run.

    `inputs` is (R, batch, C, H, W), rotated. Each slice of about 2 ms is divided by the mean of the reference slices
    before and after it; slices with an involuntary context switch are dropped, unless hardly any are without. Stops
    when half the interval of the median ratio is at most `precision` of it, or after `seconds`: then only those slices
    count in which neither network was slowed. Call it
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
        beside = (before.seconds / before.runs, after.seconds / after.runs)
        slices.append(_Slice(piece.seconds / piece.runs, *beside, switches > 0))
        before = after
        late = time.perf_counter() >= end
        used = [s for s in slices if not s.interrupted]
        narrow = len(used) >= LEAST_SLICES and _is_narrow(_ratio(used), precision)
        if narrow or late:
            return _latency(slices, used if narrow else _quiet(used), "interval" if narrow else "time")


def _ratio(slices: list[_Slice]) -> tuple[float, float, float]:
    return median_interval([s.seconds / s.reference for s in slices], SHARED_REFERENCE)


def _is_narrow(interval: tuple[float, float, float], precision: float) -> bool:
    median, low, high = interval
    return (high - low) / 2 <= precision * median


def _latency(slices: list[_Slice], chosen: list[_Slice], stopped_by: str) -> Latency:
    # On a machine too busy for LEAST_SLICES, a median over disturbed slices is all there is.
    used = chosen if len(chosen) >= LEAST_SLICES else slices
    return Latency(
        *_ratio(used),
        seconds=float(np.median([s.seconds for s in used])),
        reference_seconds=float(np.median([s.reference for s in used])),
        slices=len(used),
        dropped=len(slices) - len(used),
        stopped_by=stopped_by,
    )


class Estimate(NamedTuple):
    """A median with its 95 % interval [`low`, `high`]."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Rounds:
    """Rounds in which every session had one slice: seconds per run, and whether the system took the core away
    meanwhile, both (rounds, sessions)."""

    seconds: npt.NDArray[np.float64]
    interrupted: npt.NDArray[np.bool_]

    def time(self, session: int) -> Estimate:
        """Return the seconds per run of a session."""
        return Estimate(*median_interval(self._used(self.seconds[:, session], [session])))

    def ratio(self, session: int, reference: int) -> Estimate:
        """Return how many times as long a session takes as another, from their ratio in every round."""
        ratios = self.seconds[:, session] / self.seconds[:, reference]
        return Estimate(*median_interval(self._used(ratios, [session, reference])))

    def _used(self, values: npt.NDArray[np.float64], sessions: list[int]) -> list[float]:
        whole = ~self.interrupted[:, sessions].any(axis=1)
        # On a machine this busy, a median over disturbed slices is all there is.
        return list(values[whole] if whole.sum() >= LEAST_ROUNDS else values)


def interleave(timed: Sequence[tuple[EngineSession, Images]], seconds: float, threads: int = 1) -> Rounds:
    """Time many sessions, each on its own inputs (R, batch, ...), a slice of each in every round.

    Rounds go on for `seconds` for each session, and there are at least LEAST_ROUNDS. Within a round the order is
    random; every slice begins with one run that does not count, because others have had the caches. Call it inside
    `timing_slot`.
    """
    rng = np.random.default_rng(0)
    for session, inputs in timed:
        session.time(inputs, SLICE_SECONDS)
    end = time.perf_counter() + seconds * len(timed)
    rounds: list[list[TimeSlice]] = []
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() < end:
        slices: dict[int, TimeSlice] = {}
        for index in rng.permutation(len(timed)).tolist():
            session, inputs = timed[index]
            if threads > 1:
                time.sleep(SPINNING_SECONDS)
            session.time(inputs, 0.0)
            slices[index] = session.time(inputs, SLICE_SECONDS)
        rounds.append([slices[index] for index in range(len(timed))])
    return Rounds(
        np.array([[piece.seconds / piece.runs for piece in row] for row in rounds]),
        np.array([[piece.involuntary_switches > 0 for piece in row] for row in rounds]),
    )


@dataclass(frozen=True)
class _Slice:
    """Seconds per run of the measured network and of the reference before and after it."""

    seconds: float
    before: float
    after: float
    interrupted: bool

    @property
    def reference(self) -> float:
        return (self.before + self.after) / 2


def _quiet(slices: list[_Slice]) -> list[_Slice]:
    """The slices in which neither network was slow, or the LEAST_SLICES that come nearest."""
    if len(slices) <= LEAST_SLICES:
        return slices
    # All three slices are held to the same measure: ratios stay fair, however noise is distributed.
    times = np.array([(s.seconds, s.before, s.after) for s in slices])
    slowness = (times / np.quantile(times, FASTEST, axis=0)).max(axis=1)
    count = max(LEAST_SLICES, int((slowness <= QUIET).sum()))
    return [slices[index] for index in np.sort(np.argsort(slowness)[:count])]


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
