"""Quantisation: weights to integers of few bits per output channel, activation ranges to scale and zero point."""

from __future__ import annotations

import numpy as np
import torch

from trimtab.spaces.network import Array

__all__ = ["activation_quant", "clipped_range", "dequantise", "largest_integer", "quantise_weight", "round_to_bf16"]

#: Scales tried for weights of 3 to 7 bits, as shares of the one that reaches the largest weight, and how often the
#: best of them is then refined.
SHARES = np.linspace(0.3, 1.0, 15)
REFINEMENTS = 2

#: No channel's scale is less than this share of the layer's largest: a bias is stored in units of the scale, in 32
#: bits, and a channel with hardly any weight may well have one.
SMALLEST_SHARE = 2.0**-12

#: A layer whose largest scale is less than this has no weights.
NO_WEIGHT = 1e-25

#: Inputs that are rounded before their errors reach all the later ones.
BLOCK = 64

#: Ranges tried for activations of fewer than 8 bits, as shares of the whole range.
RANGE_SHARES = np.geomspace(0.03, 1.0, 48)


def largest_integer(bits: int) -> int:
    """Return the largest magnitude of integer weights of 1 to 8 bits: 1 for 1 and 2 bits, 2^(bits - 1) - 1 for more.

    -2^(bits - 1) is left out: smaller products let a kernel add more of them up before it has to widen.
    """
    return max(1, (1 << (bits - 1)) - 1)


def quantise_weight(weight: Array, bits: int = 8, gram: Array | None = None) -> tuple[Array, Array]:
    """Return (int8 weight, float32 scale (O,)) of 1 to 8 bits, symmetric per output channel.

    - 8 bits: scale = max|w| / 127, round half to even.
    - 3 to 7: the scale with the smallest squared error that a search over shares of max|w| finds, refined by
      least squares.
    - 2: ternary, with the threshold and scale of the smallest squared error. Ternary weight networks (Li et al. 2016,
      arXiv:1605.04711) approximate just these.
    - 1: sign(w) * mean|w|, the smallest squared error too (Rastegari et al. 2016, arXiv:1603.05279, section 3.1).

    A channel without weights becomes zeros, at 1 bit as small as SMALLEST_SHARE lets it. With the covariance of the
    layer's inputs `gram` (I, I), positive definite, weights of fewer than 8 bits are rounded so that the layer's
    output is nearest, not the weights (`_compensated`).
    """
    rows = weight.reshape(weight.shape[0], -1).astype(np.float32)
    top = largest_integer(bits)
    if bits == 1:
        scale = np.abs(rows).mean(axis=1)
    elif bits == 2:
        scale = _ternary_scale(rows)
    else:
        scale = np.abs(rows).max(axis=1) / top
        if bits < 8:
            scale = _best_scale(rows, scale, top)
    largest = float(scale.max())
    if largest < NO_WEIGHT:
        return np.zeros(weight.shape, np.int8), np.ones(len(rows), np.float32)
    scale = np.maximum(scale, largest * SMALLEST_SHARE).astype(np.float32)
    if gram is not None and bits < 8:
        quantised = _compensated(rows, scale, bits, gram)
    else:
        quantised = _integers(rows, scale[:, None], bits)
    return quantised.astype(np.int8).reshape(weight.shape), scale


def dequantise(quantised: Array, scale: Array) -> Array:
    """Return the float32 weight that int8 values (O, ...) and scales (O,) stand for."""
    shape = (-1, *[1] * (quantised.ndim - 1))
    return quantised.astype(np.float32) * scale.reshape(shape)


def round_to_bf16(weight: Array) -> Array:
    """Return float32 numbers rounded to 8 significant bits, halves to even: the numbers of bf16."""
    words = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    odd = (words >> 16) & 1
    rounded = (words + (0x7FFF + odd).astype(np.uint32)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(weight), rounded.view(np.float32), weight).astype(np.float32)


def activation_quant(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Return (scale, zero point) for values in [low, high] in 1 to 8 bits; zero is always represented exactly."""
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = float(np.float32((high - low) / top)) or 1.0
    return scale, int(np.clip(np.rint(-low / scale), 0, top))


def clipped_range(values: Array, low: float, high: float, bits: int) -> tuple[float, float]:
    """Return the part of the range [low, high] that stores `values` in so few bits with the smallest squared error.

    With 8 bits the whole range costs little; with fewer, what the largest values gain is lost on all the others.
    """
    whole = np.asarray(values, np.float32)
    errors = []
    for share in RANGE_SHARES:
        scale, zero = activation_quant(low * share, high * share, bits)
        stored = np.clip(np.rint(whole / np.float32(scale)), -zero, 2**bits - 1 - zero) * np.float32(scale)
        errors.append(float(np.square(stored - whole).sum(dtype=np.float64)))
    share = float(RANGE_SHARES[int(np.argmin(errors))])
    return low * share, high * share


def _integers(weight: Array, scale: Array, bits: int) -> Array:
    top = largest_integer(bits)
    return np.where(weight < 0, -1, 1) if bits == 1 else np.clip(np.rint(weight / scale), -top, top)


def _compensated(rows: Array, scale: Array, bits: int, gram: Array) -> Array:
    """Round input by input, and let the inputs that are still to come make up for each error as well as they can.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1), for all channels at once, in blocks of inputs.
    """
    covariance = torch.from_numpy(gram.astype(np.float64))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    upper = torch.linalg.cholesky(inverse, upper=True).numpy().astype(np.float32)
    left, quantised = rows.copy(), np.empty_like(rows)
    for start in range(0, rows.shape[1], BLOCK):
        end = min(start + BLOCK, rows.shape[1])
        errors = np.empty((len(rows), end - start), np.float32)
        for i in range(start, end):
            quantised[:, i] = _integers(left[:, i], scale, bits)
            errors[:, i - start] = (left[:, i] - quantised[:, i] * scale) / upper[i, i]
            left[:, i + 1 : end] -= errors[:, i - start, None] * upper[i, i + 1 : end]
        left[:, end:] -= errors @ upper[start:end, end:]
    return quantised


def _rounded(rows: Array, scale: Array, top: int) -> Array:
    return np.clip(np.rint(rows / scale[:, None]), -top, top)


def _ternary_scale(rows: Array) -> Array:
    """With the k largest magnitudes at +-scale the best scale is their mean, and it takes (their sum)^2 / k off the
    squared error. The best k's threshold is half its mean, so plain rounding by the scale gives just those."""
    sums = np.cumsum(-np.sort(-np.abs(rows), axis=1), axis=1, dtype=np.float64)
    counts = np.arange(1, rows.shape[1] + 1)
    best = (sums**2 / counts).argmax(axis=1)
    return np.asarray(sums[np.arange(len(rows)), best] / counts[best], np.float32)


def _best_scale(rows: Array, largest: Array, top: int) -> Array:
    largest = np.maximum(largest, np.finfo(np.float32).tiny)
    best, lowest = largest, np.full(len(rows), np.inf)
    for share in SHARES:
        best, lowest = _better(rows, np.float32(share) * largest, top, best, lowest)
    for _ in range(REFINEMENTS):
        integers = _rounded(rows, best, top)
        squares = np.square(integers).sum(axis=1)
        fitted = (rows * integers).sum(axis=1) / np.maximum(squares, 1)
        best, lowest = _better(rows, np.where(squares > 0, fitted, best), top, best, lowest)
    return best


def _better(rows: Array, scale: Array, top: int, best: Array, lowest: Array) -> tuple[Array, Array]:
    """The scales, channel by channel, with the smaller squared error, and those errors."""
    error = np.square(_rounded(rows, scale, top) * scale[:, None] - rows).sum(axis=1)
    return np.where(error < lowest, scale, best), np.minimum(error, lowest)
