"""Rounds of many sessions, a slice of each in turn: for networks that are not of one kind, and for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trimtab.evaluators.engines.base import EngineSession, Images, TimeSlice
from trimtab.evaluators.measure.comparison import LEAST_SLICES, SLICE_SECONDS, Compile, is_due, time_slice
from trimtab.evaluators.measure.intervals import Interval, block_interval, undisturbed_ratio

__all__ = ["LEAST_RECORDED", "LEAST_ROUNDS", "Record", "Rounds", "interleave", "record"]

#: Blocks that the rounds are cut into; there is a round for each at least.
BLOCKS = 16
LEAST_ROUNDS = BLOCKS

#: Blocks of a record at least.
LEAST_RECORDED = 48

#: For so long after a run with several threads the thread pools of OpenVINO (1.2 ms) and of torch (4 ms) still spin,
#: on the cores of whatever is measured next.
SPINNING_SECONDS = 0.006


@dataclass(frozen=True, eq=False)
class Rounds:
    """Rounds in which every session had one slice: seconds per run, and whether the system took the core away
    meanwhile, both (rounds, sessions)."""

    seconds: npt.NDArray[np.float64]
    interrupted: npt.NDArray[np.bool_]

    def time(self, session: int) -> Interval:
        """Return the seconds per run of a session."""
        return self._interval(self.seconds[:, session], [session])

    def ratio(self, session: int, reference: int) -> Interval:
        """Return how many times as long a session takes as another, from their ratio in every round."""
        return self._interval(self.seconds[:, session] / self.seconds[:, reference], [session, reference])

    def undisturbed(self, session: int, reference: int) -> Interval:
        """Return how many times as long a session takes as an unlike one, where nothing disturbs either."""
        used = self.seconds[self._whole([session, reference])]
        return undisturbed_ratio(used[:, session].tolist(), used[:, reference].tolist())

    def _interval(self, values: npt.NDArray[np.float64], sessions: list[int]) -> Interval:
        used = values[self._whole(sessions)]
        return block_interval([float(np.median(block)) for block in np.array_split(used, BLOCKS)])

    def _whole(self, sessions: list[int]) -> npt.NDArray[np.intp]:
        """Rounds in which the sessions kept the core; all of them on a machine too busy for that."""
        whole = np.flatnonzero(~self.interrupted[:, sessions].any(axis=1))
        return whole if len(whole) >= LEAST_ROUNDS else np.arange(len(self.seconds))


@dataclass(frozen=True, eq=False)
class Record:
    """Rounds of a few networks, all compiled anew for every one of the `blocks` that they were taken in.

    `took` is in seconds; `stopped_by` is "interval" where all ratios became as narrow as was asked, or "time".
    """

    rounds: Rounds
    blocks: int
    took: float
    stopped_by: Literal["interval", "time"]


def record(
    networks: Sequence[Compile],
    inputs: Images,
    *,
    precision: float,
    seconds: float,
    block_seconds: float,
    threads: int = 1,
    told: Callable[[float], None] = lambda took: None,
) -> Record:
    """Measure unlike networks in turn until half the interval of the first one's undisturbed ratio to every other is at
    most `precision` of it, or for `seconds`.

    `told` hears after every block how long it took so far. Call it inside `timing_slot`.
    """
    blocks: list[Rounds] = []
    start = time.perf_counter()
    each = min(block_seconds, seconds / LEAST_RECORDED) / len(networks)
    while True:
        timed = [(compiled(), inputs) for compiled in networks]
        blocks.append(interleave(timed, each, threads, least=LEAST_SLICES))
        took = time.perf_counter() - start
        told(took)
        if len(blocks) < LEAST_RECORDED:
            continue
        if is_due(len(blocks)):
            rounds = _joined(blocks)
            if all(rounds.undisturbed(0, other).precision <= precision for other in range(1, len(networks))):
                return Record(rounds, len(blocks), took, "interval")
        if took >= seconds:
            return Record(_joined(blocks), len(blocks), took, "time")


def _joined(blocks: Sequence[Rounds]) -> Rounds:
    return Rounds(
        np.concatenate([block.seconds for block in blocks]), np.concatenate([block.interrupted for block in blocks])
    )


def interleave(
    timed: Sequence[tuple[EngineSession, Images]], seconds: float, threads: int = 1, least: int = LEAST_ROUNDS
) -> Rounds:
    """Time many sessions, each on its own inputs (R, batch, ...), a slice of each in every round.

    Rounds go on for `seconds` for each session, and there are at least `least`. Within a round the order is
    random; every slice begins with one run that does not count, because others have had the caches. Call it inside
    `timing_slot`.
    """
    rng = np.random.default_rng(0)
    for session, inputs in timed:
        session.time(inputs, SLICE_SECONDS)
    end = time.perf_counter() + seconds * len(timed)
    rounds: list[list[TimeSlice]] = []
    while len(rounds) < least or time.perf_counter() < end:
        slices: dict[int, TimeSlice] = {}
        for index in rng.permutation(len(timed)).tolist():
            session, inputs = timed[index]
            if threads > 1:
                time.sleep(SPINNING_SECONDS)
            slices[index] = time_slice(session, inputs)
        rounds.append([slices[index] for index in range(len(timed))])
    return Rounds(
        np.array([[piece.per_run for piece in row] for row in rounds]),
        np.array([[piece.involuntary_switches > 0 for piece in row] for row in rounds]),
    )
