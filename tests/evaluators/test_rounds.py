"""Many sessions in rounds."""

from __future__ import annotations

import numpy as np
import pytest
from tests.evaluators.fakes import FakeSession

from trimtab.evaluators.engines import TimeSlice
from trimtab.evaluators.rounds import LEAST_ROUNDS, interleave

INPUTS = np.ones((2, 1, 1, 1, 1), np.float32)


def test_rounds_find_the_ratios_of_all_sessions() -> None:
    times = (3e-4, 4e-4, 1e-4)
    rounds = interleave([(FakeSession(each, 0.05, seed), INPUTS) for seed, each in enumerate(times)], 0.01)
    assert len(rounds.seconds) >= LEAST_ROUNDS
    for i, each in enumerate(times):
        assert rounds.time(i).middle == pytest.approx(each, rel=0.1)
        for j, other in enumerate(times):
            ratio = rounds.ratio(i, j)
            assert ratio.low <= ratio.middle <= ratio.high
            assert ratio.middle == pytest.approx(each / other, rel=0.1)


def test_every_round_has_one_slice_of_each_in_changing_order() -> None:
    order: list[int] = []

    class Logged(FakeSession):
        def __init__(self, number: int) -> None:
            super().__init__(1e-3)
            self.number = number

        def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
            if seconds:  # not the run that warms the caches
                order.append(self.number)
            return super().time(inputs, seconds)

    interleave([(Logged(number), INPUTS) for number in range(4)], 0.0)
    rounds = np.reshape(order[4:], (-1, 4))
    assert len(rounds) == LEAST_ROUNDS
    assert (np.sort(rounds) == np.arange(4)).all()
    assert len({tuple(each) for each in rounds.tolist()}) > 1


def test_interrupted_slices_do_not_count() -> None:
    steady, disturbed = FakeSession(1e-3), FakeSession(1e-3, interrupted=3)
    rounds = interleave([(steady, INPUTS), (disturbed, INPUTS)], 0.002)
    assert rounds.interrupted[:, 1].any()
    assert rounds.ratio(1, 0).middle == pytest.approx(1)
    assert rounds.time(1).middle == pytest.approx(1e-3)
