"""End-to-end latency of policies, each measured in turn with the untouched network."""

from __future__ import annotations

import numpy as np

from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines.base import Engine, EngineSession, Images
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.timing import Latency, measure, noise_floor, timing_slot
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["LatencyBench"]

ROTATED_INPUTS = 8


class LatencyBench:
    """Measures on one engine at batch 1, with the fp32 base as the reference of every measurement.

    `images` (N, C, H, W), real ones; a few are rotated through.
    """

    def __init__(self, engine: Engine, space: Space, images: Images, precision: float = 0.01) -> None:
        self.engine = engine
        self.space = space
        self.precision = precision
        self.inputs = np.ascontiguousarray(images[:ROTATED_INPUTS, None], dtype=np.float32)
        self._base = timing_candidate(space, space.base())
        self.reference = self.session(self._base)

    def session(self, candidate: Candidate) -> EngineSession:
        """Compile a candidate for one image at a time."""
        return self.engine.compile(lower(candidate), 1, candidate.ranges)

    def measure(self, candidate: Policy | Candidate, seconds: float) -> Latency:
        """Measure a policy, or a finished candidate, for at most about `seconds`."""
        if isinstance(candidate, Policy):
            candidate = timing_candidate(self.space, candidate)
        session = self.session(candidate)
        with timing_slot(self.engine.threads):
            return measure(session, self.reference, self.inputs, precision=self.precision, seconds=seconds)

    def noise_floor(self, seconds: float) -> float:
        """Measure the base against another compilation of itself (A/A)."""
        same = self.session(self._base)
        with timing_slot(self.engine.threads):
            return noise_floor(same, self.reference, self.inputs, seconds=seconds)
