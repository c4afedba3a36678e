"""Rounding, against the papers' objective and the plain loop."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.spaces import plain_rounding

from trimtab.graph import Array
from trimtab.spaces.numbers import rounding
from trimtab.spaces.numbers.formats import BYTE, WeightFormat
from trimtab.spaces.numbers.grids import GRIDS, nearest
from trimtab.spaces.numbers.quantise import dequantise, quantise_weight
from trimtab.spaces.numbers.rounding import adaround, descent, gptq
from trimtab.spaces.repairs.reconstruct import RIDGE


def covariance(inputs: int) -> Array:
    """Of inputs that go together, as those of a real layer do."""
    x = np.random.default_rng(8).normal(size=(2000, inputs)) @ np.random.default_rng(9).normal(size=(inputs, inputs))
    gram = x.T @ x / len(x)
    return (gram + 0.01 * gram.diagonal().mean() * np.eye(inputs)).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("inputs", [7, 64, 150])
def test_rounding_makes_up_for_each_error_as_well_as_the_inputs_left_can(bits: int, inputs: int) -> None:
    """The weights left after each rounding are the least-squares solution given those that are fixed."""
    gram = covariance(inputs)
    weight = np.random.default_rng(3).normal(size=(3, inputs)).astype(np.float32)
    found, scale = quantise_weight(weight, WeightFormat(bits), gram=gram, rounding="gptq")
    assert (scale == quantise_weight(weight, WeightFormat(bits))[1]).all()
    top, exact = max(1, 2 ** (bits - 1) - 1), gram.astype(np.float64)
    for row, integers, s in zip(weight.astype(np.float64), found, scale.astype(np.float64), strict=True):
        left = row.copy()
        for i in range(inputs):
            ratio = left[i] / s
            nearest = (1 if ratio >= 0 else -1) if bits == 1 else np.clip(np.rint(ratio), -top, top)
            if nearest != integers[i]:  # only on a tie may the order of sums decide
                assert abs(abs(ratio - np.floor(ratio)) - (0 if bits == 1 else 0.5)) < 1e-2
            error = integers[: i + 1] * s - row[: i + 1]
            rest = slice(i + 1, inputs)
            left[rest] = row[rest] - np.linalg.solve(exact[rest, rest], exact[rest, : i + 1] @ error)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_compensated_rounding_brings_the_output_nearer(bits: int) -> None:
    gram = covariance(96)
    weight = np.random.default_rng(3).normal(size=(8, 96)).astype(np.float32)

    def output_error(found: tuple[Array, Array]) -> float:
        error = (dequantise(*found) - weight).astype(np.float64)
        return float(np.einsum("oi,ij,oj->", error, gram, error))

    assert output_error(quantise_weight(weight, WeightFormat(bits), gram=gram, rounding="gptq")) < 0.85 * output_error(
        quantise_weight(weight, WeightFormat(bits))
    )


def layer(outputs: int, inputs: int, bits: int, grid: str = "uniform") -> tuple[Array, Array, Array, Array]:
    """Weights, scales, levels and the covariance of the inputs."""
    rows = np.random.default_rng(4).normal(size=(outputs, inputs)).astype(np.float32)
    levels, scale = WeightFormat(bits, grid).fit(rows)
    return rows, scale, levels, covariance(inputs)


def objective(rows: Array, scale: Array, rounded: Array, gram: Array) -> Array:
    """Per channel."""
    error = (rounded * scale[:, None] - rows).astype(np.float64)
    return np.einsum("oi,ij,oj->o", error, gram.astype(np.float64), error)


@pytest.mark.parametrize("grid", ["uniform", "power2", "codebook", "bases"])
def test_gptq_is_obq_in_fixed_order_on_every_grid(grid: str) -> None:
    """Frantar et al. 2022: quantise an input, update the others by -error / H^-1_ii * H^-1_i, take it out of H^-1."""
    rows, scale, levels, gram = layer(3, 20, 3, grid)
    found = gptq(rows, scale, levels, gram)
    for row, s, rounded in zip(rows.astype(np.float64), scale.astype(np.float64), found, strict=True):
        left, inverse = row.copy(), np.linalg.inv(gram.astype(np.float64))
        for i in range(len(row)):
            choice = levels[np.abs(left[i] / s - levels).argmin()]
            assert rounded[i] == choice
            left -= (left[i] - choice * s) / inverse[i, i] * inverse[i]
            inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]


@st.composite
def layers(draw: st.DrawFn) -> tuple[Array, Array, Array, Array]:
    """Weights of any format, channels of any size, and inputs of which some are always zero, or follow from others."""
    bits, grid = draw(st.sampled_from([(w.bits, w.grid) for w in NARROW]))
    outputs, inputs = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.integers(1, inputs))
    x = rng.normal(size=(80, rank)) @ rng.normal(size=(rank, inputs))
    x[:, rng.random(inputs) < draw(st.sampled_from([0.0, 0.3]))] = 0
    gram = x.T @ x / len(x)
    gram += RIDGE * max(gram.diagonal().mean(), 1e-12) * np.eye(inputs)
    rows = (rng.normal(size=(outputs, inputs)) * np.exp(rng.normal(size=(outputs, 1)))).astype(np.float32)
    rows[rng.random(outputs) < 0.1] = 0
    levels, scale = WeightFormat(bits, grid).fit(rows)
    return rows, np.maximum(scale, 1e-3 * scale.max() + 1e-6).astype(np.float32), levels, gram.astype(np.float32)


NARROW = [WeightFormat(bits, name) for name, grid in GRIDS.items() for bits in grid.offered if bits < BYTE]


@pytest.mark.parametrize("method", ["gptq", "descent"])
@settings(max_examples=60, deadline=None)
@given(layer=layers())
def test_the_levels_are_those_of_the_plain_loop(method: str, layer: tuple[Array, Array, Array, Array]) -> None:
    if method == "gptq":
        expected, margin = plain_rounding.gptq(*layer)
        found = gptq(*layer)
    else:
        expected, margin = plain_rounding.descent(*layer, rounding.SWEEPS)
        found = descent(*layer)
    clear = margin > 1e-5 * np.abs(layer[2]).max()
    assert (found == expected)[clear].all()
    assert np.isin(found, layer[2]).all()


def test_large_layers_are_rounded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, scale, levels, gram = layer(3, 21, 3)
    monkeypatch.setattr(rounding, "GROUP", 10)
    found = gptq(rows, scale, levels, gram)
    monkeypatch.undo()
    parts = [gptq(rows[:, s], scale, levels, gram[s, s]) for s in (slice(0, 7), slice(7, 14), slice(14, 21))]
    assert (found == np.concatenate(parts, axis=1)).all()


@pytest.mark.parametrize("grid", ["uniform", "power2", "codebook", "bases"])
def test_descent_ends_where_no_weight_alone_can_do_better(monkeypatch: pytest.MonkeyPatch, grid: str) -> None:
    rows, scale, levels, gram = layer(4, 70, 3, grid)
    first = objective(rows, scale, descent(rows, scale, levels, gram), gram)
    assert (first <= objective(rows, scale, gptq(rows, scale, levels, gram), gram) * (1 + 1e-6)).all()
    monkeypatch.setattr(rounding, "SWEEPS", 60)
    found = descent(rows, scale, levels, gram)
    least = objective(rows, scale, found, gram)
    assert (least <= first * (1 + 1e-6)).all()
    for i in range(rows.shape[1]):
        for level in levels:
            tried = found.copy()
            tried[:, i] = level
            assert (objective(rows, scale, tried, gram) >= least * (1 - 1e-4)).all()


@pytest.mark.parametrize(
    ("bits", "grid"), [(1, "uniform"), (2, "uniform"), (4, "uniform"), (3, "power2"), (3, "codebook")]
)
def test_adaround_is_never_worse_than_plain_rounding(bits: int, grid: str) -> None:
    rows, scale, levels, gram = layer(8, 48, bits, grid)
    plain = objective(rows, scale, nearest(rows / scale[:, None], levels), gram)
    found = objective(rows, scale, adaround(rows, scale, levels, gram), gram)
    assert (found <= plain * (1 + 1e-9)).all()
    assert found.sum() < 0.8 * plain.sum()


def test_adaround_rounds_up_or_down() -> None:
    rows, scale, levels, gram = layer(4, 30, 4)
    ratios = rows / scale[:, None]
    inside = np.abs(ratios) < levels[-1]
    found = adaround(rows, scale, levels, gram)
    assert np.isin(found, levels).all()
    assert (np.abs(found - ratios)[inside] <= 1).all()


def test_adaround_is_nearly_the_best_of_all_ways_up_and_down() -> None:
    rows, scale, levels, gram = layer(6, 10, 3)
    found = objective(rows, scale, adaround(rows, scale, levels, gram), gram)
    best = np.full(len(rows), np.inf)
    for ups in product((0, 1), repeat=10):
        tried = np.clip(np.floor(rows / scale[:, None]) + np.array(ups), levels[0], levels[-1])
        best = np.minimum(best, objective(rows, scale, tried, gram))
    plain = objective(rows, scale, nearest(rows / scale[:, None], levels), gram)
    assert (found >= best * (1 - 1e-6)).all()
    assert found.sum() <= best.sum() + 0.25 * (plain.sum() - best.sum())


def test_adaround_does_not_depend_on_threads_and_leaves_their_number() -> None:
    arguments = layer(16, 64, 4)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(adaround(*arguments))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert (results[0] == results[1]).all()
