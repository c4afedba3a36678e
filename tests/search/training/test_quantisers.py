"""Quantisers against the paper's formulas, grid by grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.graph import Quant
from trimtab.search.training.quantisers import TensorQuantiser, WeightQuantiser
from trimtab.spaces.numbers.formats import WeightFormat
from trimtab.spaces.numbers.grids import GRIDS, nearest
from trimtab.spaces.numbers.quantise import dequantise, quantise_weight

FORMATS = [WeightFormat(bits, grid.name) for grid in GRIDS.values() for bits in grid.offered]


@pytest.mark.parametrize("numbers", FORMATS, ids=str)
def test_weights_start_as_they_are_stored(numbers: WeightFormat, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
    values, step = quantise_weight(weight, numbers)
    quantiser = WeightQuantiser(numbers, values, step)
    stored = torch.from_numpy(dequantise(values, step))
    torch.testing.assert_close(quantiser(stored), stored, rtol=1e-5, atol=1e-6)
    again, scales = quantiser.integers(stored)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_allclose(scales, step, rtol=1e-6)


@pytest.mark.parametrize("numbers", FORMATS, ids=str)
def test_gradients_of_weights_and_steps(numbers: WeightFormat, rng: np.random.Generator) -> None:
    """LSQ's equations 3 and 5, for any levels; the step's gradient in units of the first step."""
    weight = rng.standard_normal((4, 7)).astype(np.float32)
    values, step = quantise_weight(weight, numbers)
    levels = np.unique(values) if numbers.levels is None else numbers.levels
    quantiser = WeightQuantiser(numbers, values, step)
    w = torch.from_numpy(weight.copy()).requires_grad_()
    dy = rng.standard_normal(weight.shape).astype(np.float32)
    quantiser(w).backward(torch.from_numpy(dy))
    ratio = weight / step[:, None]
    at = nearest(ratio, levels)
    inside = (ratio >= levels[0]) & (ratio <= levels[-1])
    assert w.grad is not None
    assert quantiser.growth.grad is not None
    np.testing.assert_allclose(w.grad, dy * inside, rtol=1e-5, atol=1e-6)
    each = at - np.where(inside, ratio, 0)
    np.testing.assert_allclose(quantiser.growth.grad, (dy * each).sum(1) * step, rtol=1e-4, atol=1e-4)


def test_a_codebook_s_values_are_learned_from_all_their_weights(rng: np.random.Generator) -> None:
    """Deep Compression, section 3.3: the gradient of a shared value is the sum over the weights that share it."""
    numbers = WeightFormat(2, "codebook")
    weight = rng.standard_normal((4, 9)).astype(np.float32)
    values, step = quantise_weight(weight, numbers)
    quantiser = WeightQuantiser(numbers, values, step)
    dy = rng.standard_normal(weight.shape).astype(np.float32)
    quantiser(torch.from_numpy(weight)).backward(torch.from_numpy(dy))
    levels = np.unique(values)
    at = nearest(weight / step[:, None], levels)
    sums = [(dy * step[:, None])[at == level].sum() for level in levels]
    assert quantiser.levels.grad is not None
    np.testing.assert_allclose(quantiser.levels.grad, np.array(sums) / step.mean(), rtol=1e-4)
    with torch.no_grad():
        quantiser.levels.mul_(3)  # beyond what kernels count on
    assert np.abs(quantiser.integers(torch.from_numpy(weight))[0].astype(int)).max() <= np.abs(levels.astype(int)).max()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("quant", [Quant(0.1, 0, 4), Quant(0.02, 117, 8)], ids=["unsigned", "signed"])
def test_tensors_in_any_memory_format(quant: Quant, memory: torch.memory_format, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((2, 3, 4, 5)).astype(np.float32)).contiguous(memory_format=memory)
    dy = torch.from_numpy(rng.standard_normal((2, 3, 4, 5)).astype(np.float32))
    quantiser = TensorQuantiser(quant)
    x.requires_grad_()
    y = quantiser(x)
    y.backward(dy)
    low, high = -quant.zero_point, quant.top - quant.zero_point
    ratio = x.detach() / quant.scale
    inside = (ratio >= low) & (ratio <= high)
    torch.testing.assert_close(y.detach(), ratio.clamp(low, high).round() * quant.scale)
    torch.testing.assert_close(x.grad, dy * inside)
    owed = (dy * (ratio.clamp(low, high).round() - ratio * inside)).sum() * quant.scale
    torch.testing.assert_close(quantiser.growth.grad, owed, rtol=1e-3, atol=1e-4)
    assert quantiser.quant() == Quant(float(np.float32(quant.scale)), quant.zero_point, quant.bits)


def test_tensors_with_gaps_are_rounded_too(rng: np.random.Generator) -> None:
    whole = torch.from_numpy(rng.standard_normal((2, 8, 6, 6)).astype(np.float32))
    last = whole.contiguous(memory_format=torch.channels_last)
    views = [last[:, :3], whole[:, :, ::2, ::2], last[:, :, 1:4, 2:], whole.mT, whole[0, 0].T, whole.transpose(0, 1)]
    for view in views:
        x = view.detach().requires_grad_()
        y = TensorQuantiser(Quant(0.1, 20, 8))(x)
        torch.testing.assert_close(y.detach(), (view / 0.1).clamp(-20, 235).round() * 0.1)
        y.sum().backward()
        ratio = view / 0.1
        assert x.grad is not None
        torch.testing.assert_close(x.grad, ((ratio >= -20) & (ratio <= 235)).float())
