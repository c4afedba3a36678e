"""Quantisation, against the formula written out value by value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.spaces.network import Array
from trimtab.spaces.quantise import activation_quant, dequantise, quantise_weight

FLOATS = st.floats(-1e3, 1e3, width=32)
WEIGHTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FLOATS)


@given(WEIGHTS)
def test_a_weight_is_off_by_half_a_step_at_most(weight: Array) -> None:
    quantised, scale = quantise_weight(weight)
    assert quantised.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == weight.shape[:1]
    assert (scale > 0).all()
    assert quantised.min() >= -127
    error = np.abs(dequantise(quantised, scale).astype(np.float64) - weight)
    bound = scale.astype(np.float64) / 2 * (1 + 1e-5) + 127 * np.finfo(np.float32).tiny
    assert (error.reshape(len(scale), -1) <= bound[:, None]).all() or (np.abs(weight).max() < 1e-35)


def test_quantisation_equals_the_formula_of_a_plain_loop() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    quantised, scale = quantise_weight(weight)
    for o in range(4):
        step = max(abs(float(w)) for w in weight[o].ravel()) / 127
        assert float(scale[o]) == pytest.approx(step, rel=1e-6)
        expected = [round(float(w) / float(scale[o])) for w in weight[o].ravel()]
        assert quantised[o].ravel().tolist() == expected


def test_the_largest_weight_of_each_channel_is_at_the_end_of_the_scale() -> None:
    weight = np.array([[0.5, -1.0], [3.0, 0.0]], np.float32)
    assert np.abs(quantise_weight(weight)[0]).max(axis=1).tolist() == [127, 127]


def test_halves_are_rounded_to_even() -> None:
    weight = np.array([[127.0, 0.5, 1.5, -2.5]], np.float32)
    assert quantise_weight(weight)[0].tolist() == [[127, 0, 2, -2]]


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38])
def test_a_dead_channel_becomes_zeros_with_a_usable_scale(value: float) -> None:
    quantised, scale = quantise_weight(np.full((1, 4), value, np.float32))
    assert quantised.tolist() == [[0, 0, 0, 0]]
    assert scale.tolist() == [1.0]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_activations_cover_the_range_and_hold_zero_exactly(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = activation_quant(low, high)
    assert scale > 0
    assert float(np.float32(scale)) == scale
    assert isinstance(zero, int)
    assert 0 <= zero <= 255
    smallest, largest = (0 - zero) * scale, (255 - zero) * scale
    assert smallest <= low + scale / 2 * (1 + 1e-5)
    assert largest >= high - scale / 2 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.0, (1.0, 0)),
        (0.0, 255.0, (1.0, 0)),
        (-255.0, 0.0, (1.0, 255)),
        (-255.0, -3.0, (1.0, 255)),
        (3.0, 255.0, (1.0, 0)),
        (-127.0, 128.0, (1.0, 127)),
    ],
)
def test_known_ranges(low: float, high: float, expected: tuple[float, int]) -> None:
    assert activation_quant(low, high) == expected
