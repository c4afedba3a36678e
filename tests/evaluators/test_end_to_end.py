from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tests.evaluators.nets import candidate_of, pictures, space_of

from trimtab.evaluators import Interval, Latency, Link, lower
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines import own_cache_bytes
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.measure import end_to_end as bench_module
from trimtab.evaluators.measure.end_to_end import ROTATED_INPUTS, LatencyBench
from trimtab.evaluators.measure.rounds import LEAST_RECORDED
from trimtab.kernels import stored_bytes
from trimtab.spaces import Policy
from trimtab.spaces.numbers.formats import INT8


@pytest.fixture(scope="module")
def bench() -> LatencyBench:
    return LatencyBench(NativeEngine(), space_of("resnet8"), pictures(ROTATED_INPUTS + 3), precision=0.02)


@pytest.fixture(scope="module")
def link(bench: LatencyBench) -> Link:
    return bench.tie(bench.space.int8(), 0.5)


def test_the_link_is_the_yardstick_s_ratio_to_the_network_as_given(bench: LatencyBench, link: Link) -> None:
    assert link.ratio.low <= link.ratio.middle <= link.ratio.high
    assert 0.1 < link.ratio.middle < 2
    assert link.base_seconds == pytest.approx(link.yardstick_seconds.middle / link.ratio.middle)
    assert link.blocks >= LEAST_RECORDED
    assert 0.1 <= link.block_seconds <= 0.5
    assert Link.from_json(link.to_json()) == link


def test_another_yardstick_is_tied_to_int8_too(bench: LatencyBench) -> None:
    small = bench.space.uniform(0.25, INT8)
    link = bench.tie(small, 0.5)
    assert link.yardstick == small
    assert link.to_int8.middle < 0.9
    assert link.int8.middle == pytest.approx(link.ratio.middle / link.to_int8.middle)
    assert Link.from_json(json.loads(json.dumps(link.to_json()))) == link
    assert bench.measure(small, link, 0.5).to_yardstick.middle == pytest.approx(1, abs=0.25)


def test_a_network_lives_in_the_cache_that_its_weights_fit(
    bench: LatencyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = stored_bytes(lower(timing_candidate(bench.space, bench.space.int8())))
    for own, lives in ((int(1.3 * size), False), (int(1.4 * size), True), (None, False)):
        monkeypatch.setattr(bench_module, "own_cache_bytes", lambda own=own: own)
        assert bench.lives_in_own_cache(bench.space.int8()) == lives
    assert own_cache_bytes() is None or own_cache_bytes() >= 1 << 16


def test_the_yardstick_takes_about_as_long_as_itself(bench: LatencyBench, link: Link) -> None:
    latency = bench.measure(bench.space.int8(), link, 0.5)
    assert latency.to_yardstick.middle == pytest.approx(1, abs=0.25)
    assert latency.ratio == pytest.approx(latency.to_yardstick.middle * link.ratio.middle)
    assert bench.noise_floor(link) < 0.5


def test_a_quarter_of_the_channels_is_faster(bench: LatencyBench, link: Link) -> None:
    assert bench.measure(bench.space.uniform(0.25), link, 0.5).ratio < 0.6


def test_a_finished_candidate_is_measured_like_its_policy(bench: LatencyBench, link: Link) -> None:
    policy = bench.space.uniform(0.5, INT8)
    of_policy = bench.measure(policy, link, 0.5)
    finished = bench.measure(candidate_of("resnet8", policy), link, 0.5)
    assert finished.ratio == pytest.approx(of_policy.ratio, rel=0.3)


def test_inputs_are_rotated_and_single(bench: LatencyBench) -> None:
    images = pictures(3)
    few = LatencyBench(NativeEngine(), space_of("resnet8"), images)
    assert bench.inputs.shape == (ROTATED_INPUTS, 1, *images.shape[1:])
    assert few.inputs.shape == (3, 1, *images.shape[1:])
    assert not np.array_equal(few.inputs[0], few.inputs[1])


# what a latency says


LINK = Link(
    yardstick=Policy("made up", {}, {}),
    ratio=Interval(0.4, 0.39, 0.41),
    to_int8=Interval.exactly(1.0),
    yardstick_seconds=Interval(4e-4, 3.9e-4, 4.1e-4),
    blocks=24,
    block_seconds=0.1,
    took=1.0,
    stopped_by="time",
)


def latency(middle: float, width: float) -> Latency:
    to_yardstick = Interval(middle, middle * (1 - width), middle * (1 + width))
    bounds = Interval(middle, middle * (1 - 2 * width), middle * (1 + 2 * width))
    return Latency(*to_yardstick.times(LINK.ratio), to_yardstick, bounds, 1e-4, 8, 80, 0, 1.0, "decision")


def test_what_users_see_is_chained_with_both_uncertainties() -> None:
    found = latency(0.5, 0.02)
    assert found.ratio == pytest.approx(0.2)
    both = math.hypot(math.log(0.41 / 0.4), math.log(1.02))
    assert found.high == pytest.approx(0.2 * math.exp(both))
    assert found.low < 0.2 * (1 - 0.02)


def test_a_budget_relative_to_int8_knows_no_uncertainty_where_that_is_the_yardstick() -> None:
    assert LINK.limit(0.5, "int8") == (0.5, 0.5, 0.5)
    assert LINK.int8 == pytest.approx(LINK.ratio)
    smaller = replace(LINK, to_int8=Interval(0.5, 0.49, 0.51))
    assert smaller.limit(0.4, "int8") == pytest.approx((0.8, 0.4 / 0.51, 0.4 / 0.49))
    assert smaller.int8.middle == pytest.approx(0.8)
    assert smaller.int8.precision > LINK.ratio.precision


def test_budgets_are_multiples_of_what_they_name() -> None:
    assert LINK.limit(0.2, "base") == pytest.approx((0.5, 0.2 / 0.41, 0.2 / 0.39))
    assert LINK.limit(2e-4, "absolute") == pytest.approx((0.5, 2e-4 / 4.1e-4, 2e-4 / 3.9e-4))


def test_a_latency_is_within_a_budget_by_the_end_that_decisions_rest_on() -> None:
    found = latency(0.5, 0.01)
    for share, verdict in ((1.03, "within"), (1.015, "open"), (0.99, "open"), (0.97, "over")):
        limit = Interval.exactly(0.5 * share)
        assert found.verdict(limit) == verdict
        assert (found.excess(limit) <= 0) == (verdict == "within")


def test_a_latency_survives_json() -> None:
    found = latency(0.5, 0.01)
    assert Latency.from_json(json.loads(json.dumps(found.to_json()))) == found
