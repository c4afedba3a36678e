from __future__ import annotations

import numpy as np
import pytest
from tests.evaluators.nets import candidate_of, pictures, space_of

from trimtab.evaluators.bench import ROTATED_INPUTS, LatencyBench
from trimtab.evaluators.engines.native import NativeEngine


@pytest.fixture
def bench() -> LatencyBench:
    return LatencyBench(NativeEngine(), space_of("resnet8"), pictures(ROTATED_INPUTS + 3), precision=0.02)


def test_a_network_takes_about_as_long_as_itself(bench: LatencyBench) -> None:
    latency = bench.measure(bench.space.base(), 0.5)
    assert latency.ratio == pytest.approx(1, abs=0.3)
    assert latency.low <= latency.ratio <= latency.high
    assert latency.seconds > 0
    assert bench.noise_floor(0.1) < 0.5


def test_a_quarter_of_the_channels_is_faster(bench: LatencyBench) -> None:
    assert bench.measure(bench.space.uniform(0.25), 0.5).ratio < 0.6


def test_a_finished_candidate_is_measured_like_its_policy(bench: LatencyBench) -> None:
    policy = bench.space.uniform(0.5, (8, 8))
    of_policy = bench.measure(policy, 0.5)
    finished = bench.measure(candidate_of("resnet8", policy), 0.5)
    assert finished.ratio == pytest.approx(of_policy.ratio, rel=0.5)


@pytest.mark.parametrize("count", [1, ROTATED_INPUTS, 30])
def test_real_images_are_rotated_one_at_a_time(count: int) -> None:
    images = pictures(count)
    bench = LatencyBench(NativeEngine(), space_of("resnet8"), images)
    assert bench.inputs.shape == (min(count, ROTATED_INPUTS), 1, 3, 16, 16)
    np.testing.assert_array_equal(bench.inputs[:, 0], images[:ROTATED_INPUTS])
