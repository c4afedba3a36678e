"""End-to-end latency of policies, candidates and exported files on one engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.comparison import Compile, compare, machine_memory, record_slices
from trimtab.evaluators.engines.base import Engine, Images
from trimtab.evaluators.intervals import Interval
from trimtab.evaluators.latency import Latency, Link
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.timing import timing_slot
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["LatencyBench"]

ROTATED_INPUTS = 8

#: Seconds in which the machine's memory is estimated, and the length of blocks: so many memories, within bounds.
MEMORY_SECONDS = 1.0
MEMORIES = 3
BLOCKS_BETWEEN = (0.1, 0.5)

#: Half the interval of a link at which it is known well enough.
LINK_PRECISION = 0.02

#: Blocks of a measurement whose interval somebody will read: with a few, one that happens to be narrow ends it.
LEAST_BLOCKS = 16

#: A/A measurements, and their blocks.
FLOORS, FLOOR_BLOCKS = 5, 8


class LatencyBench:
    """Measures on one engine at batch 1, with the uniform int8 form as the yardstick of every measurement.

    `images` (N, C, H, W), real ones; a few are rotated through. Half a measurement's interval is to be at most
    `precision` of the ratio, where there is time.
    """

    def __init__(self, engine: Engine, space: Space, images: Images, precision: float = 0.01) -> None:
        self.engine = engine
        self.space = space
        self.precision = precision
        self.inputs = np.ascontiguousarray(images[:ROTATED_INPUTS, None], dtype=np.float32)
        self.yardstick = self.compiles(space.int8())
        #: Seconds that measuring took so far.
        self.took = 0.0

    def compiles(self, candidate: Policy | Candidate) -> Compile:
        """Return what compiles a policy, or a finished candidate, for one image at a time."""
        if isinstance(candidate, Policy):
            candidate = timing_candidate(self.space, candidate)
        graph, ranges = lower(candidate), candidate.ranges
        return lambda: self.engine.compile(graph, 1, ranges)

    def tie(self, seconds: float, told: Callable[[float], None] = lambda took: None) -> Link:
        """Measure the yardstick against the untouched network, until the interval is narrow or for `seconds`.

        `told` hears now and then how long it took so far.
        """
        with timing_slot(self.engine.threads):
            memory = machine_memory(self.yardstick(), self.inputs, min(MEMORY_SECONDS, seconds))
            block = float(np.clip(MEMORIES * memory, *BLOCKS_BETWEEN))
            record = record_slices(
                self.yardstick,
                self.compiles(self.space.base()),
                self.inputs,
                precision=LINK_PRECISION,
                seconds=seconds,
                block_seconds=block,
                told=told,
            )
        self.took += record.took
        return Link.of(record, block)

    def measure(
        self,
        network: Policy | Candidate | Compile,
        link: Link,
        seconds: float,
        limit: Interval | None = None,
        precision: float | None = None,
        least: int = LEAST_BLOCKS,
    ) -> Latency:
        """Measure a policy, a finished candidate, or what opens a file, for at most about `seconds`.

        It takes `least` blocks or more. With a `limit`, in multiples of the yardstick, it goes on until it is decided
        whether that is met.
        """
        opened = self.compiles(network) if isinstance(network, Policy | Candidate) else network
        with timing_slot(self.engine.threads):
            comparison = compare(
                opened,
                self.yardstick,
                self.inputs,
                precision=self.precision if precision is None else precision,
                seconds=seconds,
                limit=limit,
                block_seconds=link.block_seconds,
                least=least,
            )
        self.took += comparison.took
        return Latency.of(comparison, link)

    def noise_floor(self, link: Link) -> float:
        """Return the largest deviation from 1 over several measurements of the yardstick against itself (A/A)."""
        seconds = FLOOR_BLOCKS * link.block_seconds
        with timing_slot(self.engine.threads):
            found = [
                compare(
                    self.yardstick,
                    self.yardstick,
                    self.inputs,
                    precision=math.inf,
                    seconds=seconds,
                    block_seconds=link.block_seconds,
                    least=FLOOR_BLOCKS,
                )
                for _ in range(FLOORS)
            ]
        self.took += sum(comparison.took for comparison in found)
        return max(abs(comparison.interval.middle - 1) for comparison in found)
