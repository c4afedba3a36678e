"""End-to-end latency of policies, candidates and exported files on one engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines.base import Engine, Images, own_cache_bytes
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.comparison import Compile, compare, machine_memory
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency, Link
from trimtab.evaluators.measure.rounds import record
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.kernels import stored_bytes
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

#: The part of its own cache that a core has for a network's weights: the rest is for what flows between its layers.
FOR_WEIGHTS = 0.75

#: A/A measurements, and their blocks.
FLOORS, FLOOR_BLOCKS = 3, 8


class LatencyBench:
    """Measures on one engine at batch 1, in turn with a yardstick: a policy of the candidates' own kind.

    `images` (N, C, H, W), real ones; a few are rotated through. Half a measurement's interval is to be at most
    `precision` of the ratio, where there is time.
    """

    def __init__(self, engine: Engine, space: Space, images: Images, precision: float = 0.01) -> None:
        self.engine = engine
        self.space = space
        self.precision = precision
        self.inputs = np.ascontiguousarray(images[:ROTATED_INPUTS, None], dtype=np.float32)
        #: Seconds that measuring took so far.
        self.took = 0.0
        self._yardsticks: dict[Policy, Compile] = {}

    def compiles(self, candidate: Policy | Candidate) -> Compile:
        """Return what compiles a policy, or a finished candidate, for one image at a time."""
        if isinstance(candidate, Policy):
            candidate = timing_candidate(self.space, candidate)
        graph, ranges = lower(candidate), candidate.ranges
        return lambda: self.engine.compile(graph, 1, ranges)

    def lives_in_own_cache(self, policy: Policy) -> bool:
        """Whether the weights of a policy's network stay in the core's own cache from one image to the next."""
        own = own_cache_bytes()
        return own is not None and stored_bytes(lower(timing_candidate(self.space, policy))) <= FOR_WEIGHTS * own

    def _yardstick(self, link: Link) -> Compile:
        if link.yardstick not in self._yardsticks:
            self._yardsticks[link.yardstick] = self.compiles(link.yardstick)
        return self._yardsticks[link.yardstick]

    def tie(self, yardstick: Policy, seconds: float, told: Callable[[float], None] = lambda took: None) -> Link:
        """Measure the yardstick against the untouched network, and against the int8 form unless it is that, until the
        intervals are narrow or for `seconds`.

        `told` hears now and then how long it took so far.
        """
        int8 = self.space.int8()
        policies = [yardstick, self.space.base(), *([] if yardstick == int8 else [int8])]
        networks = [self.compiles(policy) for policy in policies]
        with timing_slot(self.engine.threads):
            memory = machine_memory(networks[0](), self.inputs, min(MEMORY_SECONDS, seconds))
            block = float(np.clip(MEMORIES * memory, *BLOCKS_BETWEEN))
            found = record(
                networks,
                self.inputs,
                precision=LINK_PRECISION,
                seconds=seconds,
                block_seconds=block,
                threads=self.engine.threads,
                told=told,
            )
        self.took += found.took
        rounds = found.rounds
        return Link(
            yardstick=yardstick,
            ratio=rounds.undisturbed(0, 1),
            to_int8=Interval.exactly(1.0) if yardstick == int8 else rounds.undisturbed(0, 2),
            yardstick_seconds=rounds.time(0),
            blocks=found.blocks,
            block_seconds=block,
            took=found.took,
            stopped_by=found.stopped_by,
        )

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
        yardstick = self._yardstick(link)
        with timing_slot(self.engine.threads):
            comparison = compare(
                opened,
                yardstick,
                self.inputs,
                precision=self.precision if precision is None else precision,
                seconds=seconds,
                limit=limit,
                block_seconds=link.block_seconds,
                least=least,
            )
        self.took += comparison.took
        return Latency.of(comparison, link)

    def noise_floor(self, link: Link, most: float = math.inf) -> float:
        """Return the largest deviation from 1 over several measurements of the yardstick against itself (A/A), which
        take `most` seconds in all, or less."""
        seconds = min(FLOOR_BLOCKS * link.block_seconds, most / FLOORS)
        yardstick = self._yardstick(link)
        with timing_slot(self.engine.threads):
            found = [
                compare(
                    yardstick,
                    yardstick,
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
