"""Many sessions in rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from tests.evaluators.fakes import FakeSession, Machine

from trimtab.evaluators.engines import TimeSlice
from trimtab.evaluators.measure.comparison import LEAST_SLICES
from trimtab.evaluators.measure.rounds import LEAST_ROUNDS, Record, interleave, record

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


# records of unlike networks


def recorded(machine: Machine, exposure: float, **options: object) -> Record:
    """Of a network, one that is slowed otherwise, and one of its own kind that takes twice its time."""
    settings = {"precision": 0.0, "seconds": 10.0, "block_seconds": 0.1, **options}
    networks = [machine.network(1e-4), machine.network(3e-4, exposure), machine.network(2e-4)]
    return record(networks, INPUTS, **settings)  # type: ignore[arg-type]


def test_unlike_networks_are_compared_where_nothing_disturbs_them(machine: Callable[..., Machine]) -> None:
    """A machine that slows one network by 40 % and the other by 140 %: however often it does, the ratio is that of
    both in peace, where the ratio's median is anything."""
    for dwell, slow_share in ((0.1, 0.8), (0.05, 0.8)):
        rounds = recorded(machine(3, dwell=dwell, slow_share=slow_share), exposure=3.5).rounds
        found = rounds.undisturbed(0, 1)
        assert found.middle == pytest.approx(1 / 3, rel=0.02)
        assert np.median(rounds.seconds[:, 0]) / np.median(rounds.seconds[:, 1]) < 0.9 * found.middle
        assert rounds.undisturbed(0, 2).middle == pytest.approx(1 / 2, rel=0.02)


def test_a_record_in_which_hardly_any_slice_kept_the_core_uses_them_all() -> None:
    def compiled() -> FakeSession:
        return FakeSession(1e-3, interrupted=1)

    found = record([compiled, compiled], INPUTS, precision=0.0, seconds=0.0, block_seconds=0.1)
    assert found.rounds.interrupted.all()
    assert len(found.rounds.seconds) == found.blocks * LEAST_SLICES
    assert found.rounds.undisturbed(0, 1).middle == pytest.approx(1.0)


@pytest.mark.parametrize("precision", [0.0, 0.01])
def test_the_interval_of_unlike_networks_covers_where_they_meet_in_peace(
    machine: Callable[..., Machine], precision: float
) -> None:
    """For as long as there is time, and where it ends as soon as it looks narrow."""
    runs, covered = 60, 0
    for seed in range(runs):
        found = recorded(machine(seed), exposure=2.0, seconds=8.0, precision=precision).rounds.undisturbed(0, 1)
        covered += found.low <= 1 / 3 <= found.high
    assert covered / runs >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs)


def test_a_record_ends_when_its_interval_is_narrow_or_its_time_is_over(machine: Callable[..., Machine]) -> None:
    heard: list[float] = []
    narrow = recorded(machine(), exposure=2.0, seconds=60.0, precision=0.02)
    assert narrow.stopped_by == "interval"
    assert all(narrow.rounds.undisturbed(0, other).precision <= 0.02 for other in (1, 2))
    late = recorded(machine(), exposure=2.0, seconds=8.0, told=heard.append)
    assert late.stopped_by == "time"
    assert 8.0 <= late.took < 8.0 + 0.2
    assert heard == sorted(heard)
    assert (len(heard), heard[-1]) == (late.blocks, late.took)
