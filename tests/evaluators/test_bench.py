from __future__ import annotations

import math

import numpy as np
import pytest
from tests.evaluators.nets import candidate_of, pictures, space_of

from trimtab.evaluators import Interval, Latency, Link
from trimtab.evaluators.bench import ROTATED_INPUTS, LatencyBench
from trimtab.evaluators.comparison import LEAST_RECORDED
from trimtab.evaluators.engines.native import NativeEngine


@pytest.fixture(scope="module")
def bench() -> LatencyBench:
    return LatencyBench(NativeEngine(), space_of("resnet8"), pictures(ROTATED_INPUTS + 3), precision=0.02)


@pytest.fixture(scope="module")
def link(bench: LatencyBench) -> Link:
    return bench.tie(0.5)


def test_the_link_is_the_yardstick_s_ratio_to_the_network_as_given(bench: LatencyBench, link: Link) -> None:
    assert link.ratio.low <= link.ratio.middle <= link.ratio.high
    assert 0.1 < link.ratio.middle < 2
    assert link.base_seconds == pytest.approx(link.yardstick_seconds.middle / link.ratio.middle)
    assert link.blocks >= LEAST_RECORDED
    assert 0.1 <= link.block_seconds <= 0.5
    assert Link.from_json(link.to_json()) == link


def test_the_yardstick_takes_about_as_long_as_itself(bench: LatencyBench, link: Link) -> None:
    latency = bench.measure(bench.space.int8(), link, 0.5)
    assert latency.to_yardstick.middle == pytest.approx(1, abs=0.25)
    assert latency.ratio == pytest.approx(latency.to_yardstick.middle * link.ratio.middle)
    assert bench.noise_floor(link) < 0.5


def test_a_quarter_of_the_channels_is_faster(bench: LatencyBench, link: Link) -> None:
    assert bench.measure(bench.space.uniform(0.25), link, 0.5).ratio < 0.6


def test_a_finished_candidate_is_measured_like_its_policy(bench: LatencyBench, link: Link) -> None:
    policy = bench.space.uniform(0.5, (8, 8))
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


LINK = Link(Interval(0.4, 0.39, 0.41), Interval(4e-4, 3.9e-4, 4.1e-4), 24, 0.1, 1.0, "time")


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


def test_a_budget_relative_to_int8_knows_no_uncertainty() -> None:
    assert LINK.limit(0.5, "int8") == (0.5, 0.5, 0.5)
    assert LINK.limit(0.2, "base") == pytest.approx((0.5, 0.2 / 0.41, 0.2 / 0.39))
    assert LINK.limit(2e-4, "absolute") == pytest.approx((0.5, 2e-4 / 4.1e-4, 2e-4 / 3.9e-4))


def test_a_latency_is_within_a_budget_by_the_end_that_decisions_rest_on() -> None:
    found = latency(0.5, 0.01)
    for share, verdict in ((1.03, "within"), (1.015, "open"), (0.99, "open"), (0.97, "over")):
        limit = Interval.exactly(0.5 * share)
        assert found.verdict(limit) == verdict
        assert (found.excess(limit) <= 0) == (verdict == "within")


def test_a_latency_survives_json() -> None:
    import json

    found = latency(0.5, 0.01)
    assert Latency.from_json(json.loads(json.dumps(found.to_json()))) == found
