"""Rounds of many sessions: a slice of each in turn, for benchmarks that compare all with all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.evaluators.comparison import SLICE_SECONDS, time_slice
from trimtab.evaluators.engines.base import EngineSession, Images, TimeSlice
from trimtab.evaluators.intervals import Interval, block_interval

__all__ = ["LEAST_ROUNDS", "Rounds", "interleave"]

#: Blocks that the rounds are cut into; there is a round for each at least.
BLOCKS = 16
LEAST_ROUNDS = BLOCKS

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

    def _interval(self, values: npt.NDArray[np.float64], sessions: list[int]) -> Interval:
        whole = ~self.interrupted[:, sessions].any(axis=1)
        # On a machine this busy, medians over disturbed slices are all there is.
        used = values[whole] if whole.sum() >= LEAST_ROUNDS else values
        return block_interval([float(np.median(block)) for block in np.array_split(used, BLOCKS)])


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
            slices[index] = time_slice(session, inputs)
        rounds.append([slices[index] for index in range(len(timed))])
    return Rounds(
        np.array([[piece.per_run for piece in row] for row in rounds]),
        np.array([[piece.involuntary_switches > 0 for piece in row] for row in rounds]),
    )
