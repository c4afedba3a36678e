"""Ranges: what of a tensor's values so many bits store, and the scale and zero point that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from trimtab.graph import Array
from trimtab.graph.node import SMALLEST_SCALE
from trimtab.kernels.observe import extremes, storage_error

__all__ = ["RANGES", "activation_quant", "activation_range", "note_ranges", "sampled", "whole_range"]

#: Ranges tried, as shares of the whole range.
SHARES = np.geomspace(0.03, 1.0, 48)

#: The share of values, in per cent, that a percentile range leaves out at each end.
LEFT_OUT = 0.1

#: Cells of the histogram that a distribution is compared in, and the distance of the thresholds tried.
CELLS = 2048
STRIDE = 16


#: Images per slice of a range: it is the mean over slices of each slice's extremes, which one outlier moves little.
SLICE = 16

#: Values of a tensor that the range of its storage is chosen on.
VALUES = 8192


def whole_range(values: Tensor) -> tuple[float, float]:
    """Return the (low, high) of a tensor (N, ...)."""
    stored = values.movedim(1, -1) if values.ndim == 4 else values  # as images lie in memory while they are repaired
    images = stored.contiguous().numpy().reshape(len(values), -1)
    low, high = np.mean([extremes(images[i : i + SLICE].ravel()) for i in range(0, len(images), SLICE)], axis=0)
    return float(low), float(high)


def sampled(values: Tensor) -> Array:
    """Return about VALUES values of a tensor at even distances, over all images and channels."""
    step = max(1, values.numel() // VALUES)
    return values.take(torch.arange(0, values.numel(), step + (step % 2 == 0))).numpy()


def activation_quant(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Return (scale, zero point) for values in [low, high] in 1 to 8 bits; zero is always represented exactly, and
    nothing else of a range that is too small for a scale."""
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = float(np.float32((high - low) / top))
    if scale <= SMALLEST_SCALE:
        return 1.0, 0
    return scale, min(max(round(-low / scale), 0), top)


def activation_range(values: Array, low: float, high: float, bits: int, method: str = "mse") -> tuple[float, float]:
    """Return the part of a tensor's whole range [low, high] that 1 to 8 bits are to store.

    `values` are a sample of it. Methods (Wu et al. 2020, arXiv:2004.09602, section 4.2, compare most of them):

    - "min-max": all of it.
    - "percentile": without LEFT_OUT per cent of the values at either end.
    - "mse": the share of the range with which the squared error is smallest.
    - "kl": the share with which the stored values are distributed most like the values themselves (Migacz 2017, 8-bit
      inference with TensorRT).
    """
    return RANGES[method](np.asarray(values, np.float32).ravel(), low, high, bits)


def note_ranges(
    tensor: str,
    values: Tensor,
    whole: dict[str, tuple[float, float]],
    stored: Mapping[int, dict[str, tuple[float, float]]],
    method: str,
) -> None:
    """Note a tensor's whole range, and what of it each of the bits in `stored` hold."""
    whole[tensor] = low, high = whole_range(values)
    sample = sampled(values)
    for bits, ranges in stored.items():
        ranges[tensor] = activation_range(sample, low, high, bits, method)


def _min_max(values: Array, low: float, high: float, bits: int) -> tuple[float, float]:
    return low, high


def _percentile(values: Array, low: float, high: float, bits: int) -> tuple[float, float]:
    first, last = np.percentile(values, [LEFT_OUT, 100 - LEFT_OUT])
    return max(low, float(first)), min(high, float(last))


def _mse(values: Array, low: float, high: float, bits: int) -> tuple[float, float]:
    errors = []
    for share in SHARES:
        scale, zero = activation_quant(low * share, high * share, bits)
        errors.append(storage_error(values, scale, -zero, 2**bits - 1 - zero))
    share = float(SHARES[int(np.argmin(errors))])
    return low * share, high * share


def _kl(values: Array, low: float, high: float, bits: int) -> tuple[float, float]:
    """Thresholds are on magnitudes, so a tensor of both signs has half the levels on each side.

    Zeros are left out: every range stores them exactly, and they are most of what a ReLU gives.
    """
    whole, magnitudes = max(-low, high), np.abs(values[values != 0])
    if whole < np.finfo(np.float32).tiny:
        return low, high
    levels = 2 ** (bits - 1) if low < 0 < high else 2**bits
    counts = np.histogram(magnitudes, CELLS, (0.0, whole))[0].astype(np.float64)
    ends = range(max(levels, STRIDE), CELLS + 1, STRIDE)
    divergences = [_divergence(counts, end, levels) for end in ends]
    share = ends[int(np.argmin(divergences))] / CELLS
    return low * share, high * share


def _divergence(counts: Array, end: int, levels: int) -> float:
    """KL(P || Q) of a histogram clipped at cell `end` and its form in so many levels.

    P has what is clipped in its last cell; a level's count is spread evenly over its cells that hold anything. Infinite
    where Q has none of what P has.
    """
    kept = counts[:end]
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    starts = np.arange(levels) * end // levels
    held = kept > 0
    sums, cells = np.add.reduceat(kept, starts), np.add.reduceat(held.astype(np.float64), starts)
    spread = np.repeat(sums / np.maximum(cells, 1), np.diff([*starts, end])) * held
    total, stored = reference.sum(), spread.sum()
    there = reference > 0
    if total == 0 or (spread[there] == 0).any():
        return float("inf") if total else 0.0
    p, q = reference[there] / total, spread[there] / stored
    return float((p * np.log(p / q)).sum())


#: Method -> the range it takes of (sample, low, high, bits).
RANGES: dict[str, Callable[[Array, float, float, int], tuple[float, float]]] = {
    "min-max": _min_max,
    "percentile": _percentile,
    "mse": _mse,
    "kl": _kl,
}
