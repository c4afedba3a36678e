"""Quantisation: weights to int8 per output channel, activation ranges to uint8 scale and zero point."""

from __future__ import annotations

import numpy as np

from trimtab.spaces.network import Array

__all__ = ["activation_quant", "dequantise", "quantise_weight"]


def quantise_weight(weight: Array) -> tuple[Array, Array]:
    """Return (int8 weight, float32 scale (O,)): symmetric per channel, scale = max|w| / 127, round half to even."""
    rows = weight.reshape(weight.shape[0], -1)
    largest = np.abs(rows).max(axis=1)
    # Below the smallest normal number the scale itself would lose its digits: such weights become zero.
    scale = np.where(largest > 127.0 * np.finfo(np.float32).tiny, largest / 127.0, 1.0).astype(np.float32)
    quantised = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
    return quantised.reshape(weight.shape), scale


def dequantise(quantised: Array, scale: Array) -> Array:
    """Return the float32 weight that int8 values (O, ...) and scales (O,) stand for."""
    shape = (-1, *[1] * (quantised.ndim - 1))
    return quantised.astype(np.float32) * scale.reshape(shape)


def activation_quant(low: float, high: float) -> tuple[float, int]:
    """Return (scale, zero point) of uint8 for values in [low, high]; zero is always represented exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255.0)) or 1.0
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))
