"""Timers of single steps: inside the network that runs them, or, on engines that cannot tell steps apart, alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines.base import Engine, EngineSession, StepEngine, StepSession
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.plan import STEP, Call, Step, step_graph
from trimtab.graph import Graph
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["REFERENCE", "StepTimer", "Timed", "step_timer"]


@dataclass(frozen=True)
class Timed:
    """A step's time as a multiple of the timer's reference, and the kernel that ran it; empty where nobody tells."""

    step: Step
    value: float
    kernel: str


class StepTimer(Protocol):
    """Times the steps of a policy beside a reference, so that a table stays consistent while the machine's speed
    drifts. Call it inside `timing_slot`."""

    def reference_seconds(self) -> float:
        """Return the seconds of the reference."""
        ...

    def time(self, policy: Policy, calls: Sequence[Call]) -> Iterator[Timed]:
        """Yield times of the steps of these calls of a policy; the first one of a step counts."""
        ...


def step_timer(engine: Engine | StepEngine, space: Space) -> StepTimer:
    """Return the best timer that an engine allows."""
    return _InPlace(engine, space) if isinstance(engine, StepEngine) else _Alone(engine)


class _InPlace:
    """Runs the whole network and reads off its steps: caches are then in the state that they have in use.

    The reference is the uniform int8 form, in turn with it.
    """

    #: Slices of the network, each between two of the reference; seconds of each.
    SLICES = 4
    SECONDS = 0.0008

    #: Slices of the reference on its own: what entries are turned into seconds with.
    REFERENCE_SLICES = 100

    def __init__(self, engine: StepEngine, space: Space) -> None:
        self.engine, self.space = engine, space
        shape = (4, 1, *space.network.input_shape)
        self.inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    @cached_property
    def reference(self) -> EngineSession:
        session = self._compiled(self.space.int8())
        session.time(self.inputs, 10 * self.SECONDS)
        return session

    def reference_seconds(self) -> float:
        return float(np.median([self._slice() for _ in range(self.REFERENCE_SLICES)]))

    def time(self, policy: Policy, calls: Sequence[Call]) -> Iterator[Timed]:
        session = self._compiled(policy)
        session.profile(self.inputs, self.SECONDS)
        before, found = self._slice(), []
        for _ in range(self.SLICES):
            steps = session.profile(self.inputs, self.SECONDS)
            after = self._slice()
            found.append({name: 2 * seconds / (before + after) for name, seconds in steps.items()})
            before = after
        kernels = session.kernels
        for call in calls:
            value = float(np.median([slice_[call.tensor] for slice_ in found]))
            yield Timed(call.step, value, kernels.get(call.tensor, ""))

    def _compiled(self, policy: Policy) -> StepSession:
        candidate = timing_candidate(self.space, policy)
        return self.engine.compile(lower(candidate), 1, candidate.ranges)

    def _slice(self) -> float:
        return self.reference.time(self.inputs, self.SECONDS).per_run


#: The step that steps on their own are timed beside.
REFERENCE = Step(
    "conv2d",
    (16, 16, 16),
    (16, 16, 16),
    (
        ("activation", "relu"),
        ("dilation", (1, 1)),
        ("groups", 1),
        ("kernel", (3, 3)),
        ("padding", (1, 1, 1, 1)),
        ("stride", (1, 1)),
    ),
)

#: Seconds per slice of a step on its own, and seconds after which the reference step is timed again.
STEP_SECONDS = 0.001
REFERENCE_LASTS = 0.03


class _Alone:
    """Runs a step in a small program of its own, with warm caches; the reference is a convolution."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._now, self._at = 0.0, -math.inf

    def reference_seconds(self) -> float:
        return self._seconds(step_graph(REFERENCE))

    def time(self, policy: Policy, calls: Sequence[Call]) -> Iterator[Timed]:
        for step in dict.fromkeys(call.step for call in calls):
            if time.monotonic() - self._at > REFERENCE_LASTS:
                self._now, self._at = self.reference_seconds(), time.monotonic()
            graph = step_graph(step)
            yield Timed(step, self._seconds(graph) / self._now, self.engine.layer_kernel(graph, STEP))

    def _seconds(self, graph: Graph) -> float:
        # The minimum of slices repeats best on a shared machine: interference only ever adds.
        return min(self.engine.layer_seconds(graph, STEP, STEP_SECONDS))
