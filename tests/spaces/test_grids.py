"""Grids, against brute force on tiny layers."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import BadInput
from trimtab.graph import Array
from trimtab.spaces.numbers import grids
from trimtab.spaces.numbers.formats import WeightFormat
from trimtab.spaces.numbers.grids import GRIDS, nearest

ROWS = np.random.default_rng(5).normal(size=(6, 40)).astype(np.float32)


def error_of(rows: Array, levels: Array, scale: Array) -> float:
    """Squared error of plain rounding, weight by weight."""
    exact, values = rows.astype(np.float64), levels.astype(np.float64) * scale[:, None].astype(np.float64)
    return float(np.square(exact[:, :, None] - values[:, None, :]).min(axis=2).sum())


def test_powers_of_two_are_inq_s() -> None:
    assert WeightFormat(3, "power2").fit(ROWS)[0].tolist() == [-4, -2, -1, 0, 1, 2, 4]
    assert WeightFormat(4, "power2").fit(ROWS)[0].tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]


def test_powers_of_two_round_to_the_nearest() -> None:
    """Zhou et al. 2017, equation 3: +-beta where (alpha + beta) / 2 <= |w| < 3 beta / 2, of neighbours alpha < beta."""
    levels = WeightFormat(4, "power2").fit(ROWS)[0]
    for ratio in np.random.default_rng(0).uniform(-70, 70, 500).astype(np.float32):
        magnitudes = [0, 1, 2, 4, 8, 16, 32, 64]
        expected = max((beta for alpha, beta in pairwise(magnitudes) if abs(ratio) >= (alpha + beta) / 2), default=0)
        assert nearest(np.array([ratio]), levels)[0] == np.sign(ratio) * expected


def test_powers_of_two_have_nearly_the_best_scale() -> None:
    levels, scale = WeightFormat(3, "power2").fit(ROWS)
    for row, s in zip(ROWS, scale, strict=True):
        tried = [error_of(row[None], levels, np.array([x])) for x in np.linspace(0.02, 0.5, 1000) * np.abs(row).max()]
        assert error_of(row[None], levels, np.array([s])) <= 1.05 * min(tried)


@given(st.lists(st.integers(-60, 60), min_size=3, max_size=9), st.integers(1, 3))
@settings(deadline=None)
def test_a_codebook_s_values_are_the_best_partition(values: list[int], size: int) -> None:
    """Weights in halves, so that the best mean of a part is often between two int8 values."""
    weights = np.array(values, np.float32)[None] / 2
    histogram = grids._Histogram(weights, np.ones(1, np.float32))
    levels = histogram.best_levels(size)
    assert (np.diff(levels.astype(int)) > 0).all()
    ordered = np.sort(weights[0])
    best = np.inf
    for cuts in combinations(range(1, len(ordered)), min(size, len(ordered)) - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(float(np.square(part - np.rint(part.mean())).sum()) for part in parts))
    assert error_of(weights, levels, np.ones(1)) == pytest.approx(best, abs=1e-6)
    assert histogram.errors(levels[None])[0] == pytest.approx(best, abs=1e-6)


def test_channels_of_a_codebook_count_by_their_scale() -> None:
    rows = np.array([[1.0, 2.0, 3.0], [0.11, 0.22, 0.3]], np.float32)
    scale = np.array([0.05, 0.004], np.float32)
    levels = grids._Histogram(rows, scale).best_levels(2)
    tried = [error_of(rows, np.array(pair), scale) for pair in combinations(range(-127, 128), 2)]
    assert error_of(rows, levels, scale) == pytest.approx(min(tried), rel=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_codebook_is_at_least_as_good_as_k_means_with_rounded_centres(bits: int) -> None:
    from sklearn.cluster import KMeans

    rows = np.random.default_rng(7).standard_t(4, size=(8, 60)).astype(np.float32)
    levels, scale = WeightFormat(bits, "codebook").fit(rows)
    largest = np.abs(rows).max(axis=1) / 127
    ratios = (rows / largest[:, None]).reshape(-1, 1)
    weights = np.repeat(largest**2, rows.shape[1])
    means = KMeans(2**bits, n_init=5, random_state=0).fit(ratios, sample_weight=weights)
    rounded = np.unique(np.rint(means.cluster_centers_[:, 0]))
    assert error_of(rows, levels, scale) <= error_of(rows, rounded, largest)


def test_a_codebook_of_all_values_is_exact() -> None:
    rows = np.array([[-8.0, 2.0, 6.0, 2.0], [-4.0, 1.0, 3.0, 3.0]], np.float32)
    levels, scale = WeightFormat(2, "codebook").fit(rows)
    assert error_of(rows, levels, scale) <= 1e-3 * np.square(rows).sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_of_bases_are_all_signed_sums(bits: int) -> None:
    levels = WeightFormat(bits, "bases").fit(ROWS)[0].astype(int)
    assert len(levels) <= 2**bits
    assert (levels == -levels[::-1]).all()
    assert levels[-1] == 127
    wanted = set(levels.tolist())
    assert any(
        {sum(s * a for s, a in zip(signs, alphas, strict=True)) for signs in product((-1, 1), repeat=bits)} == wanted
        for alphas in grids._parts(127, bits, 127)
    )


@pytest.mark.parametrize("bits", [2, 3])
def test_bases_are_nearly_the_best_of_all_ratios_and_signs(bits: int) -> None:
    """Every ratio of real alphas on a fine lattice, every sign of every weight, the best scale for each channel."""
    rows = ROWS[:1, :12]
    levels, scale = WeightFormat(bits, "bases").fit(rows)
    signs = np.array(list(product((-1, 1), repeat=bits)))
    lattice = np.linspace(0.05, 2.5, 60 if bits == 2 else 36)
    best = min(
        float(np.square(rows[0][:, None] - (signs @ np.array(alphas))[None]).min(axis=1).sum())
        for alphas in product(lattice, repeat=bits)
        if all(a >= b for a, b in pairwise(alphas))
    )
    assert error_of(rows, levels, scale) <= 1.15 * best


def test_bases_are_better_than_bits_of_evenly_spaced_signs() -> None:
    """Alphas of 4, 2 and 1 are an evenly spaced grid without zero: one of the choices."""
    levels, scale = WeightFormat(3, "bases").fit(ROWS)
    even = np.array([-7, -5, -3, -1, 1, 3, 5, 7])
    best = sum(
        min(error_of(row[None], even, np.array([x])) for x in np.linspace(0.03, 0.2, 200) * np.abs(row).max())
        for row in ROWS
    )
    assert error_of(ROWS, levels, scale) <= 1.02 * best


@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20), st.sets(st.integers(-127, 127), min_size=1))
def test_nearest_is_nearest(ratios: list[float], levels: set[int]) -> None:
    known = np.array(sorted(levels), np.int8)
    found = nearest(np.array(ratios, np.float32), known)
    for ratio, level in zip(ratios, found, strict=True):
        assert abs(ratio - level) == pytest.approx(min(abs(ratio - float(x)) for x in known), abs=1e-4)


def test_what_int8_cannot_hold_is_refused() -> None:
    with pytest.raises(BadInput, match="'power2' has no form of 5 bits"):
        WeightFormat(5, "power2").fit(ROWS)
    with pytest.raises(BadInput, match="did you mean 'codebook'"):
        WeightFormat(4, "codebok").fit(ROWS)


@pytest.mark.parametrize(("grid", "bits"), [(grid.name, max(grid.offered)) for grid in GRIDS.values()])
def test_levels_are_sorted_and_distinct(grid: str, bits: int) -> None:
    levels, scale = WeightFormat(bits, grid).fit(ROWS)
    assert levels.dtype == np.int8
    assert scale.shape == (6,)
    assert (np.diff(levels.astype(int)) > 0).all()
