"""Observations: what repairs read of a network's tensors, in one pass over memory each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import BadInput
from trimtab.kernels import _native

if TYPE_CHECKING:
    import numpy.typing as npt

    from trimtab.kernels._native import Floats

    Longs = npt.NDArray[np.int64]

__all__ = ["extremes", "read_fields", "storage_error"]


def read_fields(images: Floats, image: Longs, row: Longs, column: Longs, geometry: Sequence[int]) -> Floats:
    """Return what a convolution reads at output positions (image, row, column), (S,) each, as (S, C * kh * kw).

    `images` (N, H, W, C) are float32, `geometry` the kernel's height and width, the strides and the dilations down and
    across, and the padding on top and on the left; what is not there is zero. An image that is not there is a
    `BadInput`.
    """
    _check(images, 4)
    for index in (image, row, column):
        if index.dtype != np.int64 or index.ndim != 1 or index.shape != image.shape or not index.flags.c_contiguous:
            raise BadInput(f"expected int64 {image.shape} without gaps, found {index.dtype} {index.shape}")
    if len(image) and not 0 <= image.min() <= image.max() < len(images):
        raise BadInput(f"there are {len(images)} images, not {image.min()} to {image.max()}")
    fields = np.empty((len(image), images.shape[3] * geometry[0] * geometry[1]), np.float32)
    _native.read_fields(images, image, row, column, geometry, fields)
    return fields


def extremes(values: Floats) -> tuple[float, float]:
    """Return the smallest and the largest of float32 numbers (n,), n > 0; what is not a number is neither."""
    _check(values, 1)
    return _native.extremes(values)


def storage_error(values: Floats, step: float, low: int, high: int) -> float:
    """Return the sum of squared errors of values (n,), float32, as the nearest multiples `low` to `high` of a step > 0,
    |each| < 2^22; halves go to the even multiple."""
    _check(values, 1)
    return _native.storage_error(values, step, low, high)


def _check(array: Floats, axes: int) -> None:
    if array.ndim != axes or array.dtype != np.float32 or not array.size or not array.flags.c_contiguous:
        raise BadInput(f"expected float32 of {axes} axes without gaps, found {array.dtype} {array.shape}")
