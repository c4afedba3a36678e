"""The comparison of two networks in time: measured in turn, in blocks, for as long as the question needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trimtab.evaluators.engines.base import EngineSession, Images, TimeSlice
from trimtab.evaluators.measure.intervals import LOOKS, Interval, block_interval, decision_interval, memory

__all__ = [
    "BLOCK_SECONDS",
    "Block",
    "Comparison",
    "Compile",
    "Verdict",
    "compare",
    "is_due",
    "machine_memory",
    "measure_block",
    "time_slice",
    "verdict",
]

Floats = npt.NDArray[np.float64]
Compile = Callable[[], EngineSession]
Verdict = Literal["within", "over", "open"]

#: Short, so that what disturbs the machine disturbs neighbouring slices alike.
SLICE_SECONDS = 0.002

#: Longer than the machine's memory, unless that was measured.
BLOCK_SECONDS = 0.25

#: Slices of each network in a block at least, however slow the networks are.
LEAST_SLICES = 5

#: Blocks after which it is looked whether the interval is narrow enough, beside LOOKS.
PRECISION_EVERY = 8


@dataclass(frozen=True)
class Block:
    """A stretch of slices in turn, A B A B ..., with both networks compiled anew.

    `ratio` is the median over the slices of the first network's time per run divided by the mean of its neighbours';
    `seconds` is the first network's median time per run. `dropped` slices count for nothing, because the system
    took the core away while they ran; where it did so in most of them, all count.
    """

    ratio: float
    seconds: float
    slices: int
    dropped: int


@dataclass(frozen=True)
class Comparison:
    """Blocks in order of time, and why there are no more of them.

    `took` is in seconds, compilation included. `stopped_by`: "interval" where it became as narrow as was asked,
    "decision" where it was decided on which side of the limit the ratio lies, "time" where neither came about.
    """

    blocks: tuple[Block, ...]
    took: float
    stopped_by: Literal["interval", "decision", "time"]

    @property
    def ratios(self) -> list[float]:
        """The blocks' values."""
        return [block.ratio for block in self.blocks]

    @property
    def interval(self) -> Interval:
        """The first network's time divided by the second's."""
        return block_interval(self.ratios)

    @property
    def seconds(self) -> float:
        """The first network's seconds per run."""
        return float(np.median([block.seconds for block in self.blocks]))

    @property
    def slices(self) -> int:
        """Slices that count."""
        return sum(block.slices for block in self.blocks)

    @property
    def dropped(self) -> int:
        """Slices that do not."""
        return sum(block.dropped for block in self.blocks)


def compare(
    network: Compile,
    yardstick: Compile,
    inputs: Images,
    *,
    precision: float,
    seconds: float,
    limit: Interval | None = None,
    block_seconds: float = BLOCK_SECONDS,
    least: int = LOOKS[0],
) -> Comparison:
    """Measure a network in turn with a yardstick: both are compiled anew for every block, because where a program lies
    in memory changes its time by a percent.

    `inputs` (R, batch, C, H, W) are rotated. It ends where half the interval is at most `precision` of the ratio. With
    a `limit` to the ratio, it has to be decided too that the ratio is within it, which may be at any of LOOKS; where it
    is over it, that is the end. In any case it ends after `seconds`, but with no fewer than `least` blocks. Call it
    inside `timing_slot`.
    """
    blocks: list[Block] = []
    start = time.perf_counter()
    decided = limit is None
    while True:
        blocks.append(measure_block(network(), yardstick(), inputs, min(block_seconds, seconds / least)))
        took = time.perf_counter() - start
        if len(blocks) < least:
            continue
        ratios = [block.ratio for block in blocks]
        if limit is not None and len(blocks) in LOOKS:
            side = verdict(decision_interval(ratios), limit)
            if side == "over":
                return Comparison(tuple(blocks), took, "decision")
            decided = side == "within"
        if decided and is_due(len(blocks)) and block_interval(ratios).precision <= precision:
            return Comparison(tuple(blocks), took, "interval" if limit is None else "decision")
        if took >= seconds:
            return Comparison(tuple(blocks), took, "time")


def is_due(blocks: int) -> bool:
    """Say whether to look after so many blocks if the interval is narrow enough."""
    return blocks in LOOKS or blocks % PRECISION_EVERY == 0


def measure_block(network: EngineSession, yardstick: EngineSession, inputs: Images, seconds: float) -> Block:
    """Time two sessions in turn for about `seconds`."""
    times, neighbours, used = _slices(network, yardstick, inputs, seconds)
    return Block(
        ratio=float(np.median((times / neighbours)[used])),
        seconds=float(np.median(times[used])),
        slices=int(used.sum()),
        dropped=int((~used).sum()),
    )


def machine_memory(session: EngineSession, inputs: Images, seconds: float) -> float:
    """Return for how many seconds the machine's speed is remembered, from the slices of one network in `seconds`."""
    start = time.perf_counter()
    times, _, _ = _slices(session, session, inputs, seconds)
    return (time.perf_counter() - start) / len(times) * memory(times.tolist())


def _slices(
    network: EngineSession, yardstick: EngineSession, inputs: Images, seconds: float
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Return the seconds per run of a network's slices, the means of the yardstick's on either side, and which of them
    count."""
    for session in (yardstick, network):
        session.time(inputs, SLICE_SECONDS)
    end = time.perf_counter() + seconds
    ours: list[TimeSlice] = []
    theirs = [time_slice(yardstick, inputs)]
    while len(ours) < LEAST_SLICES or time.perf_counter() < end:
        ours.append(time_slice(network, inputs))
        theirs.append(time_slice(yardstick, inputs))
    beside = np.array([piece.per_run for piece in theirs])
    switches = np.array([piece.involuntary_switches for piece in theirs])
    whole = np.array([piece.involuntary_switches for piece in ours]) + switches[:-1] + switches[1:] == 0
    # On a machine that hardly ever leaves the core alone, disturbed slices are all there is.
    used = whole if 2 * whole.sum() >= len(whole) else np.ones_like(whole)
    return np.array([piece.per_run for piece in ours]), (beside[:-1] + beside[1:]) / 2, used


def time_slice(session: EngineSession, inputs: Images) -> TimeSlice:
    """Return a slice of a session, after a run that does not count: others have had the caches."""
    session.time(inputs, 0.0)
    return session.time(inputs, SLICE_SECONDS)


def verdict(ratio: Interval, limit: Interval) -> Verdict:
    """Say whether a ratio is within a limit, over it, or too near to tell; the limit may itself be uncertain."""
    share = ratio.times(limit.inverse())
    if share.high <= 1:
        return "within"
    return "over" if share.low > 1 else "open"
