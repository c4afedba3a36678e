"""Quantisation: weights to integers of few bits per output channel, and how a network's numbers are rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.errors import unknown_name
from trimtab.graph import Array
from trimtab.spaces.numbers.formats import INT8, WeightFormat
from trimtab.spaces.numbers.grids import nearest
from trimtab.spaces.numbers.ranges import RANGES
from trimtab.spaces.numbers.rounding import ROUNDINGS, adaround, descent, gptq

__all__ = ["Quantisation", "dequantise", "quantise_weight"]

#: No channel's scale is less than this share of the layer's largest: a bias is stored in units of the scale, in 32
#: bits, and a channel with hardly any weight may well have one.
SMALLEST_SHARE = 2.0**-12

#: A layer whose largest scale is less than this has no weights.
NO_WEIGHT = 1e-25


@dataclass(frozen=True)
class Quantisation:
    """The quantisation of a network beside what is decided for each layer; the same for all of them.

    `rounding` is how weights of fewer than 8 bits are rounded (`rounding.ROUNDINGS`), `ranges` what of a
    tensor's values its bits store (`ranges.RANGES`). Another name is a `BadInput`.
    """

    rounding: str = "descent"
    ranges: str = "mse"

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise unknown_name("rounding", self.rounding, ROUNDINGS)
        if self.ranges not in RANGES:
            raise unknown_name("method of ranges", self.ranges, RANGES)


def quantise_weight(
    weight: Array, to: WeightFormat = INT8.weight, gram: Array | None = None, rounding: str = "descent"
) -> tuple[Array, Array]:
    """Return (int8 weight, float32 scale (O,)) in an integer format.

    A channel without weights becomes zeros, on a grid without zero as small as SMALLEST_SHARE lets it. With the
    covariance of the layer's inputs `gram` (I, I), positive definite, weights of fewer than 8 bits are rounded so that
    the layer's output is nearest, not the weights (`trimtab.spaces.numbers.rounding`).
    """
    rows = weight.reshape(weight.shape[0], -1).astype(np.float32)
    levels, scale = to.fit(rows)
    largest = float(scale.max())
    if largest * float(np.abs(levels).max()) < NO_WEIGHT:
        return np.zeros(weight.shape, np.int8), np.ones(len(rows), np.float32)
    scale = np.maximum(scale, largest * SMALLEST_SHARE).astype(np.float32)
    if gram is None or not to.is_narrow or rounding == "nearest":
        rounded = nearest(rows / scale[:, None], levels)
    else:
        rounded = _COMPENSATED[rounding](rows, scale, levels, gram)
    return rounded.astype(np.int8).reshape(weight.shape), scale


_COMPENSATED: Mapping[str, Callable[[Array, Array, Array, Array], Array]] = {
    "gptq": gptq,
    "descent": descent,
    "adaround": adaround,
}


def dequantise(quantised: Array, scale: Array) -> Array:
    """Return the float32 weight that int8 values (O, ...) and scales (O,) stand for."""
    shape = (-1, *[1] * (quantised.ndim - 1))
    return quantised.astype(np.float32) * scale.reshape(shape)
