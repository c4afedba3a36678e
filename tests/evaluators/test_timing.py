from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.evaluators.fakes import FakeSession

from trimtab.evaluators import Latency, measure, noise_floor, timing_slot
from trimtab.evaluators.engines import TimeSlice
from trimtab.evaluators.timing import (
    LEAST_ROUNDS,
    LEAST_SLICES,
    cache_dir,
    interleave,
    median_interval,
    timing_cores,
    worker_cores,
)

INPUTS = np.ones((2, 1, 1, 1, 1), np.float32)


def measured(session: FakeSession, reference: FakeSession, **options: float) -> Latency:
    return measure(session, reference, INPUTS, **options)


# the interleaved measurement


def test_the_ratio_is_that_of_the_times() -> None:
    latency = measured(FakeSession(3e-4), FakeSession(4e-4))
    assert latency.ratio == pytest.approx(0.75)
    assert (latency.low, latency.high) == (pytest.approx(0.75), pytest.approx(0.75))
    assert (latency.seconds, latency.reference_seconds) == (pytest.approx(3e-4), pytest.approx(4e-4))
    assert (latency.stopped_by, latency.dropped) == ("interval", 0)


def test_sessions_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Logged(FakeSession):
        def __init__(self, name: str) -> None:
            super().__init__(1e-3)
            self.name = name

        def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
            order.append(self.name)
            return super().time(inputs, seconds)

    measured(Logged("A"), Logged("B"))
    interleaved = order[2:]  # after a warm-up of both
    assert sorted(order[:2]) == ["A", "B"]
    assert interleaved == ["B", *["A", "B"] * ((len(interleaved) - 1) // 2)]


def test_measuring_stops_when_the_interval_is_narrow() -> None:
    latency = measured(FakeSession(2e-4, 0.02, 1), FakeSession(2e-4, 0.02, 2), precision=0.01, seconds=60)
    assert latency.stopped_by == "interval"
    assert LEAST_SLICES <= latency.slices < 1000
    assert (latency.high - latency.low) / 2 <= 0.01 * latency.ratio


def test_more_noise_takes_more_slices() -> None:
    counts = [
        measured(FakeSession(2e-4, noise, 1), FakeSession(2e-4, noise, 2), seconds=60).slices for noise in (0.01, 0.1)
    ]
    assert counts[0] < counts[1]


def test_measuring_stops_when_the_time_is_over() -> None:
    start = time.perf_counter()
    latency = measured(FakeSession(2e-4, 1.0, 1), FakeSession(2e-4, 1.0, 2), precision=1e-9, seconds=0.05)
    assert latency.stopped_by == "time"
    assert 0.05 <= time.perf_counter() - start < 5
    assert latency.low <= latency.ratio <= latency.high


def test_something_is_measured_in_no_time() -> None:
    latency = measured(FakeSession(2e-4), FakeSession(1e-4), seconds=0)
    assert (latency.ratio, latency.slices, latency.stopped_by) == (pytest.approx(2.0), 1, "time")


def test_interrupted_slices_are_dropped() -> None:
    latency = measured(FakeSession(2e-4, interrupted=3), FakeSession(1e-4), seconds=60)
    assert latency.ratio == pytest.approx(2.0)
    assert latency.dropped > 0
    assert latency.slices >= LEAST_SLICES
    # An interrupted slice of the reference disturbs the ratios on both its sides.
    latency = measured(FakeSession(2e-4), FakeSession(1e-4, interrupted=5), seconds=60)
    assert latency.ratio == pytest.approx(2.0)
    assert latency.high == pytest.approx(2.0)


def test_interrupted_slices_are_used_where_hardly_any_others_are() -> None:
    latency = measured(FakeSession(2e-4, interrupted=1), FakeSession(1e-4, interrupted=1), seconds=0.01)
    assert latency.dropped == 0
    assert latency.slices >= 1


def test_slow_drift_leaves_the_ratio_alone() -> None:
    class Drifting(FakeSession):
        def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
            clock["speed"] *= 1.01
            self.seconds = self.base * clock["speed"]
            return super().time(inputs, seconds)

    clock = {"speed": 1.0}
    session, reference = Drifting(0), Drifting(0)
    session.base, reference.base = 1e-4, 2e-4  # type: ignore[attr-defined]
    assert measured(session, reference).ratio == pytest.approx(0.5, rel=1e-3)


def test_the_interval_covers_the_true_ratio() -> None:
    covered = 0
    for seed in range(200):
        session, reference = FakeSession(3e-4, 0.05, 2 * seed), FakeSession(2e-4, 0.05, 2 * seed + 1)
        latency = measured(session, reference, precision=0.02, seconds=60)
        covered += latency.low <= 1.5 <= latency.high
    assert 0.91 * 200 <= covered <= 0.99 * 200  # four standard errors below 95 %, stopping early included


def binomial_coverage(count: int) -> float:
    """The chance that the order statistics of an interval surround the median, whatever the distribution."""
    _, low, high = median_interval([float(i) for i in range(count)])
    return sum(math.comb(count, below) for below in range(int(low) + 1, int(high) + 1)) / 2**count


@pytest.mark.parametrize("count", [*range(LEAST_SLICES, 60), 100, 199, 400])
def test_the_interval_is_a_95_percent_interval(count: int) -> None:
    assert 0.945 <= binomial_coverage(count) <= 0.99


def test_intervals_cover_the_median_in_simulation() -> None:
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.exponential, rng.standard_cauchy):
        truth = math.log(2) if draw == rng.exponential else 0.0
        covered = 0
        for _ in range(1000):
            _, low, high = median_interval(list(draw(size=25)))
            covered += low <= truth <= high
        assert 0.93 <= covered / 1000 <= 0.99


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_values_give_their_range(count: int) -> None:
    values = [3.0, 1.0, 2.0][:count]
    assert median_interval(values) == (float(np.median(values)), min(values), max(values))


def test_the_noise_floor_is_the_largest_deviation() -> None:
    assert noise_floor(FakeSession(1e-4), FakeSession(1e-4), INPUTS) == pytest.approx(0)
    assert noise_floor(FakeSession(1.1e-4), FakeSession(1e-4), INPUTS) == pytest.approx(0.1)
    assert noise_floor(FakeSession(0.9e-4), FakeSession(1e-4), INPUTS) == pytest.approx(0.1)


# the slot


State = tuple[set[int], int, int, bool]


def state() -> State:
    return os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, gc.isenabled()


@pytest.mark.parametrize("collecting", [True, False])
def test_the_slot_leaves_the_process_as_it_was(collecting: bool) -> None:
    try:
        if not collecting:
            gc.disable()
        before = state()
        with timing_slot():
            assert os.sched_getaffinity(0) == timing_cores()
            assert not gc.isenabled()
        assert state() == before
        with pytest.raises(RuntimeError, match="inside"), timing_slot():
            raise RuntimeError("inside")
        assert state() == before
    finally:
        gc.enable()


def test_the_slot_serves_where_priority_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.sched_setscheduler

    def refuse(pid: int, policy: int, parameters: os.sched_param) -> None:
        if policy == os.SCHED_FIFO:
            raise PermissionError("not allowed")
        original(pid, policy, parameters)

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = state()
    with timing_slot():
        assert os.sched_getaffinity(0) == timing_cores()
    assert state() == before


def test_the_slot_can_be_taken_again() -> None:
    for _ in range(3):
        with timing_slot():
            pass


OTHER = """
import sys, time
from trimtab.evaluators.timing import timing_slot
print("ready", flush=True)
with timing_slot():
    print(time.monotonic(), flush=True)
"""


def test_a_second_process_waits_for_the_slot(cache: Path) -> None:
    with timing_slot():
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TRIMTAB_CACHE": str(cache)},
        )
        assert other.stdout is not None
        os.sched_setaffinity(other.pid, os.sched_getaffinity(os.getppid()))
        assert other.stdout.readline() == "ready\n"
        time.sleep(0.3)
        assert other.poll() is None
        released = time.monotonic()
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    assert float(output) >= released


# cores


def allow(monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)


def test_workers_keep_off_the_timing_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 2, 5, 7})
    for threads in (1, 2, 3):
        assert len(timing_cores(threads)) == threads
        assert timing_cores(threads) | worker_cores(threads) == {0, 2, 5, 7}
        assert not timing_cores(threads) & worker_cores(threads)
    assert timing_cores() == {7}


def test_where_no_core_would_be_left_workers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {3})
    assert timing_cores() == worker_cores() == {3}
    allow(monkeypatch, {0, 1})
    assert timing_cores(2) == timing_cores(4) == worker_cores(2) == {0, 1}


# the cache's place


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "trimtab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "trimtab"
    assert not (tmp_path / "own").exists()


def test_contention_that_slows_one_more_than_the_other_does_not_count() -> None:
    clock = [0]

    class Contended(FakeSession):
        """Slowed by a factor of its own in most of the time."""

        def __init__(self, seconds: float, factor: float) -> None:
            super().__init__(seconds, noise=0.001)
            self.quiet, self.slow = seconds, seconds * factor

        def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
            clock[0] += 1
            self.seconds = self.slow if clock[0] // 50 % 3 else self.quiet
            return super().time(inputs, seconds)

    latency = measured(Contended(3e-4, 1.5), Contended(2e-4, 2.5), precision=1e-9, seconds=0.05)
    assert (latency.ratio, latency.seconds) == (pytest.approx(1.5, rel=0.01), pytest.approx(3e-4, rel=0.01))
    assert latency.dropped > latency.slices > LEAST_SLICES


# many sessions in rounds


def test_rounds_find_the_ratios_of_all_sessions() -> None:
    times = (3e-4, 4e-4, 1e-4)
    rounds = interleave([(FakeSession(each, 0.05, seed), INPUTS) for seed, each in enumerate(times)], 0.01)
    assert len(rounds.seconds) >= LEAST_ROUNDS
    for i, each in enumerate(times):
        assert rounds.time(i).median == pytest.approx(each, rel=0.1)
        for j, other in enumerate(times):
            ratio = rounds.ratio(i, j)
            assert ratio.low <= ratio.median <= ratio.high
            assert ratio.median == pytest.approx(each / other, rel=0.1)


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
    assert rounds.ratio(1, 0).high == pytest.approx(1)
    assert rounds.time(1).high == pytest.approx(1e-3)


def test_all_threads_get_their_priority_back() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    tasks = [threading.get_native_id(), thread.native_id or 0]
    before = [os.sched_getscheduler(task) for task in tasks]
    with timing_slot(1, pools=True):
        within = {os.sched_getscheduler(task) for task in tasks}
    after = [os.sched_getscheduler(task) for task in tasks]
    done.set()
    thread.join()
    assert len(within) == 1  # raised together, where the system allows it
    assert before == after
