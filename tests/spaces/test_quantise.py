"""Quantisation, against the formula written out value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.errors import BadInput
from trimtab.graph import Array
from trimtab.spaces.numbers.formats import WeightFormat, round_to_bf16
from trimtab.spaces.numbers.grids import GRIDS
from trimtab.spaces.numbers.quantise import (
    SMALLEST_SHARE,
    Quantisation,
    dequantise,
    quantise_weight,
)

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
    bound = scale.astype(np.float64) / 2 * (1 + 1e-5)
    assert (error.reshape(len(scale), -1) <= bound[:, None]).all()


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


# fewer than 8 bits

GAUSS = np.random.default_rng(5).normal(size=(6, 40)).astype(np.float32)


def squared_error(weight: Array, bits: int) -> Array:
    """Per channel."""
    return np.square(dequantise(*quantise_weight(weight, WeightFormat(bits))) - weight).sum(axis=1, dtype=np.float64)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_values_are_the_grid_s(bits: int) -> None:
    quantised, scale = quantise_weight(np.random.default_rng(0).normal(size=(32, 2000)), WeightFormat(bits))
    grid = {1: [-1, 1], 2: [-1, 0, 1], 3: range(-3, 4), 4: range(-7, 8), 5: range(-15, 16), 6: range(-31, 32)}
    assert set(np.unique(quantised)) == set(grid[bits])
    assert (scale > 0).all()


@given(WEIGHTS, st.sampled_from([1, 2, 3, 4, 5, 6]))
def test_any_weight_has_a_scale_that_engines_take(weight: Array, bits: int) -> None:
    quantised, scale = quantise_weight(weight, WeightFormat(bits))
    assert quantised.dtype == np.int8
    assert scale.dtype == np.float32
    assert len(np.unique(quantised)) <= 2**bits
    assert (scale > 1e-30).all()
    assert (scale >= scale.max() * SMALLEST_SHARE * 0.999).all()


def test_binary_is_the_sign_times_the_mean_magnitude() -> None:
    quantised, scale = quantise_weight(GAUSS, WeightFormat(1))
    assert (quantised == np.where(GAUSS < 0, -1, 1)).all()
    np.testing.assert_allclose(scale, [np.mean([abs(float(w)) for w in row]) for row in GAUSS], rtol=1e-6)


def test_ternary_is_the_best_of_all_thresholds_and_scales() -> None:
    for row, found in zip(GAUSS, squared_error(GAUSS, 2), strict=True):
        best = np.inf
        for threshold in sorted(np.abs(row.astype(np.float64)))[:-1]:
            ternary = np.sign(row) * (np.abs(row) > threshold)
            scale = (row * ternary).sum() / np.abs(ternary).sum()
            best = min(best, np.square(row - scale * ternary).sum())
        assert found == pytest.approx(best, rel=1e-5)


def test_ternary_is_at_least_as_good_as_ternary_weight_networks() -> None:
    """Li et al. 2016, equations 5 and 6: threshold 0.7 mean|w|, scale the mean of the magnitudes above it."""
    for row, found in zip(GAUSS, squared_error(GAUSS, 2), strict=True):
        above = np.abs(row) > 0.7 * np.abs(row).mean()
        approximate = np.sign(row) * above * np.abs(row[above]).mean()
        assert found <= np.square(row - approximate).sum() * (1 + 1e-6)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_the_scale_is_nearly_the_best_one(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    rows = np.random.default_rng(6).normal(size=(4, 576)).astype(np.float32)
    for row, found in zip(rows, squared_error(rows, bits), strict=True):
        scales = np.linspace(0.2, 1.1, 2000) * np.abs(row).max() / top
        tried = np.clip(np.rint(row / scales[:, None]), -top, top) * scales[:, None]
        best = np.square(tried - row).sum(axis=1).min()
        assert found <= 1.05 * best


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_channel_with_hardly_any_weight_leaves_room_for_its_bias(bits: int) -> None:
    weight = np.stack([GAUSS[0], 1e-12 * GAUSS[1]])
    quantised, scale = quantise_weight(weight, WeightFormat(bits))
    input_scale, bias = 0.01, 5.0
    assert bias / (input_scale * float(scale[1])) < 2**30
    assert np.abs(dequantise(quantised, scale)[1]).max() <= scale[0] * SMALLEST_SHARE * 1.001


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_bf16_is_pytorch_s(weight: Array) -> None:
    expected = torch.from_numpy(weight).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(round_to_bf16(weight), expected)


def test_a_method_that_is_not_known_is_refused() -> None:
    assert Quantisation() == Quantisation("descent", "mse")
    with pytest.raises(BadInput, match="did you mean 'adaround'"):
        Quantisation(rounding="adarond")
    with pytest.raises(BadInput, match="known: kl, min-max, mse, percentile"):
        Quantisation(ranges="entropy")


@given(WEIGHTS, st.sampled_from([(grid.name, bits) for grid in GRIDS.values() for bits in grid.offered]))
def test_every_grid_takes_any_weight(weight: Array, grid_bits: tuple[str, int]) -> None:
    grid, bits = grid_bits
    quantised, scale = quantise_weight(weight, WeightFormat(bits, grid))
    assert quantised.dtype == np.int8
    assert quantised.shape == weight.shape
    assert len(np.unique(quantised)) <= 2**bits
    assert (scale > 1e-30).all()
    assert np.abs(dequantise(quantised, scale)).max() <= 1.5 * np.abs(weight).max() + 1e-20
