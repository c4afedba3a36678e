"""Comparisons on a simulated machine, whose clock moves only while sessions run."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from tests.evaluators.fakes import FakeSession, Machine

from trimtab.evaluators.engines import TimeSlice
from trimtab.evaluators.measure import comparison
from trimtab.evaluators.measure.comparison import (
    Comparison,
    compare,
    machine_memory,
    measure_block,
    verdict,
)
from trimtab.evaluators.measure.intervals import LOOKS, Interval
from trimtab.evaluators.measure.latency import Latency, Link
from trimtab.spaces import Policy

INPUTS = np.ones((2, 1, 1, 1, 1), np.float32)

ONE = Interval.exactly(1.0)
LINK = Link(Policy("made up", {}, {}), Interval.exactly(0.5), ONE, Interval.exactly(3e-4), 48, 0.1, 5.0, "interval")

#: Times of a measurement on the simulated machine, in real time: enough for every look.
BLOCK = 0.1


def compared(machine: Machine, ratio: float, exposure: float = 1.0, **options: object) -> Comparison:
    settings = {"precision": 0.01, "seconds": 4.0, "block_seconds": BLOCK, **options}
    network, yardstick = machine.network(ratio * 3e-4, exposure), machine.network(3e-4)
    return compare(network, yardstick, INPUTS, **settings)  # type: ignore[arg-type]


# what a block says


def test_a_block_is_the_median_ratio_of_slices_in_turn() -> None:
    block = measure_block(FakeSession(3e-4), FakeSession(4e-4), INPUTS, 0.0)
    assert block.ratio == pytest.approx(0.75)
    assert block.seconds == pytest.approx(3e-4)
    assert (block.slices, block.dropped) == (comparison.LEAST_SLICES, 0)


def test_slices_that_lost_the_core_are_dropped_whatever_their_value() -> None:
    block = measure_block(FakeSession(3e-4, interrupted=5), FakeSession(1e-4), INPUTS, 0.0)
    assert block.ratio == pytest.approx(3.0)
    assert block.dropped >= 1
    # One in which hardly any kept it uses them all: a median over disturbed slices is all there is.
    block = measure_block(FakeSession(3e-4, interrupted=1), FakeSession(1e-4), INPUTS, 0.0)
    assert (block.slices, block.dropped) == (comparison.LEAST_SLICES, 0)


def test_sessions_take_turns_and_begin_with_a_run_that_does_not_count() -> None:
    order: list[tuple[str, bool]] = []

    class Logged(FakeSession):
        def __init__(self, name: str) -> None:
            super().__init__(1e-3)
            self.name = name

        def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
            order.append((self.name, seconds > 0))
            return super().time(inputs, seconds)

    measure_block(Logged("A"), Logged("B"), INPUTS, 0.0)
    turns = order[2:]  # after a warm-up of both
    assert turns[::2] == [(name, False) for name, _ in turns[1::2]]
    names = [name for name, counts in turns if counts]
    assert names == ["B", *["A", "B"] * comparison.LEAST_SLICES]


# coverage and decisions on the simulated machine


@pytest.mark.parametrize("seconds", [1.0, 2.0, 5.0])
def test_intervals_cover_on_a_machine_with_two_speeds(machine: Callable[..., Machine], seconds: float) -> None:
    runs, covered = 120, 0
    for seed in range(runs):
        found = compared(machine(seed), 0.8, seconds=seconds, precision=0.0).interval
        covered += found.low <= 0.8 <= found.high
    assert covered / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_intervals_cover_where_measuring_stops_as_soon_as_they_are_narrow(machine: Callable[..., Machine]) -> None:
    runs, covered = 120, 0
    for seed in range(runs):
        found = compared(machine(seed), 0.8, seconds=30.0, precision=0.013)
        assert found.stopped_by == "interval"
        covered += found.interval.low <= 0.8 <= found.interval.high
    assert covered / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_decisions_err_no_more_often_than_promised(machine: Callable[..., Machine]) -> None:
    """A network exactly at the limit: deciding that it is within the limit, or over it, is right half of the time."""
    runs, limit, found = 150, Interval.exactly(0.8), []
    for seed in range(runs):
        done = compared(machine(seed), 0.8, seconds=10.0, precision=0.004, limit=limit)
        found.append(Latency.of(done, LINK).verdict(limit))
    assert (runs - found.count("open")) / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_what_is_near_the_limit_is_measured_longer(machine: Callable[..., Machine]) -> None:
    limit = Interval.exactly(0.8)
    blocks = {
        ratio: np.mean(
            [
                len(compared(machine(seed), ratio, seconds=30.0, precision=math.inf, limit=limit).blocks)
                for seed in range(10)
            ]
        )
        for ratio in (0.4, 0.72, 0.78)
    }
    assert blocks[0.4] == LOOKS[0]
    assert blocks[0.4] <= blocks[0.72] < blocks[0.78]


def test_a_limit_that_is_itself_uncertain_is_kept_with_its_lower_end(machine: Callable[..., Machine]) -> None:
    def stopped(limit: Interval) -> str:
        return compared(machine(), 0.8, seconds=5.0, precision=math.inf, limit=limit).stopped_by

    assert stopped(Interval(0.84, 0.83, 0.85)) == "decision"
    assert stopped(Interval(0.84, 0.75, 0.93)) == "time"


def test_a_decision_waits_for_the_precision_that_was_asked(machine: Callable[..., Machine]) -> None:
    limit = Interval.exactly(2.0)
    rough = compared(machine(), 0.8, seconds=30.0, precision=math.inf, limit=limit)
    fine = compared(machine(), 0.8, seconds=30.0, precision=0.0085, limit=limit)
    assert rough.stopped_by == fine.stopped_by == "decision"
    assert fine.interval.precision <= 0.0085
    assert len(rough.blocks) < len(fine.blocks)


def test_measuring_ends_with_its_time(machine: Callable[..., Machine]) -> None:
    found = compared(machine(), 0.8, seconds=1.0, precision=0.0)
    assert found.stopped_by == "time"
    assert 1.0 <= found.took < 1.0 + 2 * BLOCK


def test_every_block_is_compiled_anew(machine: Callable[..., Machine]) -> None:
    made = machine()
    found = compared(made, 0.8)
    assert made.compiled == 2 * len(found.blocks)


def test_verdicts() -> None:
    limit = Interval.exactly(0.5)
    assert verdict(Interval(0.45, 0.44, 0.46), limit) == "within"
    assert verdict(Interval(0.55, 0.54, 0.56), limit) == "over"
    assert verdict(Interval(0.5, 0.49, 0.51), limit) == "open"
    assert verdict(Interval.exactly(0.5), limit) == "within"
    assert verdict(Interval(0.45, 0.44, 0.46), Interval(0.5, 0.4, 0.6)) == "open"


@pytest.mark.parametrize("dwell", [0.1, 0.5])
def test_the_machines_memory_is_about_as_long_as_its_states(machine: Callable[..., Machine], dwell: float) -> None:
    # Of a process with two states that lasts `dwell` in each: an autocorrelation of exp(-2 t / dwell), integrated
    # over both directions.
    made = machine(dwell=dwell)
    found = [machine_memory(made.network(3e-4)(), INPUTS, 60.0) for _ in range(3)]
    assert np.mean(found) == pytest.approx(dwell, rel=0.35)
