"""Compensated rounding: weights go to a grid's levels input by input, and errors of some make up for those of others.

For weights (O, I) that become `rounded` (O, I) times a scale (O,), with the covariance G (I, I) of the layer's inputs,
the output's mean squared error is e G e^T with e = weight - rounded * scale, for each row of them. Rows know nothing of
each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import BadInput
from trimtab.kernels import _native

if TYPE_CHECKING:
    import numpy.typing as npt

    from trimtab.kernels._native import Floats

__all__ = ["descend", "round_in_order"]


def round_in_order(rows: Floats, scale: Floats, levels: npt.NDArray[np.int8], factor: Floats) -> Floats:
    """Return the levels (O, I), as float32, that weights `rows` become when each is rounded with all later ones free.

    That is what GPTQ does (Frantar et al. 2022, arXiv:2210.17323), without its inverse: with G = R R^T and R upper
    triangular, `factor` (I, I), the error is |e R|^2. Whatever the weights up to the i-th are, free ones after it make
    every later entry of e R zero, so the i-th is best where |(e R)_i| is least: at the level nearest to
    w_i + (sum_{j<i} e_j R_ji) / R_ii.

    `rows`, `scale` (O,) > 0 and `factor` are float32, `levels` (L,) sorted int8; others are a `BadInput`.
    """
    _check(rows, scale, levels, factor)
    rounded = np.empty_like(rows)
    _native.round_in_order(rows, scale, levels, factor, rounded)
    return rounded


def descend(
    rows: Floats,
    scale: Floats,
    levels: npt.NDArray[np.int8],
    gram: Floats,
    rounded: Floats,
    missing: Floats,
    sweeps: int,
) -> None:
    """Move `rounded` (O, I) by coordinate descent, in place: each weight to the best level given all the others'.

    QuantEase (Behdin et al. 2023, arXiv:2309.01885, algorithm 1), with `missing` (O, I) = e G, which is kept up to
    date: a weight that stays costs nothing. It ends after so many sweeps, or when nothing moves. `gram` is G, the
    others are as above; what does not fit together is a `BadInput`.
    """
    _check(rows, scale, levels, gram)
    for array in (rounded, missing):
        if array.shape != rows.shape or array.dtype != np.float32 or not array.flags.c_contiguous:
            raise BadInput(f"expected float32 {rows.shape} without gaps, found {array.dtype} {array.shape}")
    _native.descend(rows, scale, levels, gram, sweeps, rounded, missing)


def _check(rows: Floats, scale: Floats, levels: npt.NDArray[np.int8], square: Floats) -> None:
    """Whether a layer's arrays have types and shapes that belong together, and no gaps."""
    outputs, inputs = rows.shape if rows.ndim == 2 else (0, 0)
    expected = {"weights": rows, "scale": scale, "covariance": square}
    shapes = {"weights": (outputs, inputs), "scale": (outputs,), "covariance": (inputs, inputs)}
    for name, array in expected.items():
        if array.dtype != np.float32 or array.shape != shapes[name] or not array.flags.c_contiguous:
            raise BadInput(f"{name}: expected float32 {shapes[name]} without gaps, found {array.dtype} {array.shape}")
    if levels.dtype != np.int8 or levels.ndim != 1 or not len(levels) or not levels.flags.c_contiguous:
        raise BadInput(f"levels: expected int8 (L,) without gaps, found {levels.dtype} {levels.shape}")
