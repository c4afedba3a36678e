"""The rate of a network in training against brute force and the entropy of what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.search.training.test_quantisers import FORMATS

from trimtab.graph import Array
from trimtab.search.training.quantisers import WeightQuantiser, cells
from trimtab.search.training.rate import Rate, hold
from trimtab.spaces.numbers.formats import WeightFormat
from trimtab.spaces.numbers.quantise import quantise_weight


def entropy(values: Array) -> float:
    """The bits of all values, each coded by how often it is there."""
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum())


def rated(numbers: WeightFormat, rng: np.random.Generator) -> tuple[WeightQuantiser, Array, Rate]:
    weight = rng.laplace(size=(8, 500)).astype(np.float32)
    quantiser = WeightQuantiser(numbers, *quantise_weight(weight, numbers))
    return quantiser, weight, Rate(quantiser, torch.from_numpy(weight))


@given(
    st.lists(st.tuples(st.integers(-127, 127), st.floats(0, 1000, width=32)), min_size=1, max_size=20),
    st.lists(st.floats(-200, 200, width=32), min_size=1),
)
def test_every_ratio_is_at_its_cheapest_level(priced: list[tuple[int, float]], ratios: list[float]) -> None:
    levels, costs = (np.array(each, np.float32) for each in zip(*sorted(priced, key=lambda each: each[0]), strict=True))
    chosen, borders = cells(torch.from_numpy(levels), torch.from_numpy(costs))
    at = chosen[torch.bucketize(torch.tensor(ratios), borders)].numpy()
    price = (np.array(ratios)[:, None] - levels.astype(float)) ** 2 + costs
    np.testing.assert_allclose(np.take_along_axis(price, at[:, None], 1)[:, 0], price.min(1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("numbers", FORMATS, ids=str)
def test_weights_at_a_price(numbers: WeightFormat, rng: np.random.Generator) -> None:
    """Each is at the level of the least squared error and price, by how often levels are the nearest."""
    quantiser, weight, rate = rated(numbers, rng)
    w = torch.from_numpy(weight)
    bits, (nearest, step) = rate.charge(0.0), quantiser.integers(w)
    assert bits == pytest.approx(entropy(nearest), rel=1e-4)
    levels = quantiser.whole_levels.numpy()
    distances = (weight / step[:, None])[..., None] - levels
    counts = np.bincount(np.abs(distances).argmin(-1).ravel(), minlength=len(levels)) + 1
    lengths = np.log2(counts.sum() / counts)
    lengths[levels == 0] = lengths.min()
    for price in (0.05, 0.5, 5.0):
        bits, (values, _) = rate.charge(price), quantiser.integers(w)
        assert bits == pytest.approx(entropy(values), rel=1e-4, abs=1e-2)
        paid = distances**2 + price * lengths
        at = np.searchsorted(levels, values)
        np.testing.assert_allclose(np.take_along_axis(paid, at[..., None], -1)[..., 0], paid.min(-1), rtol=1e-3)
        np.testing.assert_allclose(quantiser(w).detach(), values * step[:, None], rtol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.95, 0.5])
def test_bytes_are_held_at_the_lowest_price(share: float, rng: np.random.Generator) -> None:
    formats = (WeightFormat(8), WeightFormat(4), WeightFormat(2, "codebook"), WeightFormat(1))
    layers = [rated(numbers, rng) for numbers in formats]

    def stored() -> int:
        return 100 + sum(
            int(np.ceil(1.02 * entropy(quantiser.integers(torch.from_numpy(weight))[0]) / 8))
            for quantiser, weight, _ in layers
        )

    rates = [rate for _, _, rate in layers]
    most = share * stored()
    hold(rates, most, stored)
    assert 0.97 * most <= stored() <= most
    assert any(quantiser.costs.any() for quantiser, _, _ in layers) == (share < 1)


def test_what_no_price_reaches_stays(rng: np.random.Generator) -> None:
    quantiser, _, rate = rated(WeightFormat(4), rng)
    hold([rate], 50, lambda: 100)
    assert not quantiser.costs.any()
