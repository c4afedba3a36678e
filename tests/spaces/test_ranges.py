"""Ranges of activations, against the formula written out value by value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trimtab.graph import Array
from trimtab.spaces.numbers.ranges import CELLS, LEFT_OUT, RANGES, STRIDE, activation_quant, activation_range


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@example(0.0, -4.7519380974166405e-42)
@example(0.0, 1e-29)
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


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 8))
def test_narrow_activations_hold_zero_exactly(a: float, b: float, bits: int) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = activation_quant(low, high, bits)
    assert scale > 0
    assert 0 <= zero <= 2**bits - 1
    assert zero == 0 or low < 0


def stored_error(values: Array, low: float, high: float, bits: int) -> float:
    scale, zero = activation_quant(low, high, bits)
    stored = (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale
    return float(np.square(stored - values).sum())


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("relu", [True, False])
def test_the_range_of_least_squares_is_nearly_the_best_one(bits: int, relu: bool) -> None:
    values = np.random.default_rng(1).laplace(size=4000).astype(np.float32)
    values = np.maximum(values, 0) if relu else values
    low, high = float(values.min()), float(values.max())
    found = activation_range(values, low, high, bits, "mse")
    best = min(stored_error(values, low * share, high * share, bits) for share in np.linspace(0.01, 1, 2000))
    assert stored_error(values, *found, bits) <= 1.02 * best
    assert stored_error(values, *found, bits) < 0.8 * stored_error(values, low, high, bits)
    if relu:
        assert activation_quant(*found, bits)[1] == 0


SAMPLE = np.maximum(np.random.default_rng(2).normal(size=20000), 0).astype(np.float32) ** 2


def test_min_max_takes_all_of_it() -> None:
    assert activation_range(SAMPLE, -1.0, 20.0, 4, "min-max") == (-1.0, 20.0)


def test_percentiles_are_numpy_s() -> None:
    values = np.random.default_rng(3).normal(size=5001).astype(np.float32)
    found = activation_range(values, -10.0, 10.0, 8, "percentile")
    assert found == pytest.approx(np.percentile(values, [LEFT_OUT, 100 - LEFT_OUT]), rel=1e-6)


def test_percentiles_stay_within_the_range() -> None:
    assert activation_range(SAMPLE, 0.0, 0.5, 8, "percentile") == (0.0, 0.5)


def plain_divergence(counts: list[float], end: int, levels: int) -> float:
    """Migacz 2017, the loop of the slides, cell by cell."""
    p = [*counts[: end - 1], sum(counts[end - 1 :])]
    q = [0.0] * end
    for level in range(levels):
        cells = range(level * end // levels, (level + 1) * end // levels)
        there = [cell for cell in cells if counts[cell] > 0]
        for cell in there:
            q[cell] = sum(counts[c] for c in cells) / len(there)
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return np.inf
    total_p, total_q = sum(p), sum(q)
    return sum(a / total_p * np.log((a / total_p) / (b / total_q)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize(("bits", "signed"), [(4, False), (2, False), (4, True)])
def test_kl_takes_the_threshold_of_the_least_divergence(bits: int, signed: bool) -> None:
    values = SAMPLE * np.random.default_rng(4).choice([-1, 1], len(SAMPLE)).astype(np.float32) if signed else SAMPLE
    low, high = float(values.min()), float(values.max())
    largest = max(-low, high)
    counts = np.zeros(CELLS)
    for value in np.abs(values[values != 0]).astype(np.float64):
        counts[min(int(value / largest * CELLS), CELLS - 1)] += 1
    levels = 2 ** (bits - 1) if signed else 2**bits
    ends = list(range(max(levels, STRIDE), CELLS + 1, STRIDE))
    divergences = [plain_divergence(counts.tolist(), end, levels) for end in ends]
    found = activation_range(values, low, high, bits, "kl")[1] / high
    assert divergences[ends.index(round(found * CELLS))] == pytest.approx(min(divergences), rel=1e-2)


@given(st.sampled_from(sorted(RANGES)), st.integers(1, 8), st.floats(-3, 0), st.floats(0, 3))
def test_every_range_is_part_of_the_whole_one(method: str, bits: int, low: float, high: float) -> None:
    values = np.linspace(low, high, 300)
    found = activation_range(values, low, high, bits, method)
    assert low - 1e-6 <= found[0] <= found[1] <= high + 1e-6
    assert np.isfinite(activation_quant(*found, bits)[0])
