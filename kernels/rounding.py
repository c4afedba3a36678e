"""Rounding to the numbers that a quantised tensor can hold, and its gradients, in one pass over memory each.

Esser et al. 2020 (LSQ, arXiv:1902.08153), equations 1, 3 and 5, for one step of a whole tensor: what training under a
policy does behind every operator, where a chain of tensor operations would take longer than the convolutions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.errors import BadInput
from trimtab.kernels import _native
from trimtab.kernels.isa import active_level

if TYPE_CHECKING:
    from trimtab.kernels._native import Floats

__all__ = ["round_to_steps", "round_to_steps_back"]


def round_to_steps(x: Floats, y: Floats, step: float, low: int, high: int) -> None:
    """Fill `y` with the multiples `low` to `high`, |each| < 2^22, of a step > 0 that are nearest to `x`.

    Halves go to the even multiple, and what is not a number to `low`. Both are float32 (n,); others, or of two lengths,
    are a `BadInput`.
    """
    _check(x, y)
    _native.round_to_steps(active_level(), x, y, step, low, high)


def round_to_steps_back(x: Floats, dy: Floats, dx: Floats, step: float, low: int, high: int) -> float:
    """Fill `dx` (n,) with the gradient of `x` where that of what `round_to_steps` made of it is `dy`: the same within
    the bounds, zero beyond them. Return the gradient of the step."""
    _check(x, dy, dx)
    return _native.round_to_steps_back(active_level(), x, dy, dx, step, low, high)


def _check(*arrays: Floats) -> None:
    for array in arrays:
        if array.ndim != 1 or array.dtype.name != "float32" or array.shape != arrays[0].shape:
            raise BadInput(f"expected float32 arrays of one length, found {array.dtype} {array.shape}")
        if not array.flags.c_contiguous:
            raise BadInput("expected arrays without gaps")
