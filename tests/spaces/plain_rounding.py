"""Rounding that makes up for its errors, as the papers write it: one input after the other, in NumPy and float64.

Each function returns the levels (O, I), and every row's margin (O,): how near to a tie the closest of its choices was,
in units of the scale. Where that is nothing, the order of sums decides.
"""

from __future__ import annotations

import numpy as np

from trimtab.graph import Array


def gptq(rows: Array, scale: Array, levels: Array, gram: Array) -> tuple[Array, Array]:
    """Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, without blocks."""
    upper = np.linalg.cholesky(np.linalg.inv(gram.astype(np.float64))).T
    left, rounded, margin = rows.astype(np.float64), np.empty(rows.shape), np.full(len(rows), np.inf)
    for i in range(rows.shape[1]):
        rounded[:, i] = _choose(left[:, i] / scale, levels, margin)
        error = (left[:, i] - rounded[:, i] * scale) / upper[i, i]
        left[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    return rounded, margin


def descent(rows: Array, scale: Array, levels: Array, gram: Array, sweeps: int) -> tuple[Array, Array]:
    """Behdin et al. 2023 (arXiv:2309.01885), algorithm 1, from where `gptq` ends."""
    rounded, margin = gptq(rows, scale, levels, gram)
    exact = gram.astype(np.float64)
    for _ in range(sweeps):
        for i in range(rows.shape[1]):
            missing = (rows - rounded * scale[:, None]) @ exact[:, i]
            rounded[:, i] = _choose(rounded[:, i] + missing / (exact[i, i] * scale), levels, margin)
    return rounded, margin


def _choose(ratios: Array, levels: Array, margin: Array) -> Array:
    """The nearest levels; `margin` is lowered to what the nearest of the ratios are from the middle of two levels."""
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    margin[:] = np.minimum(margin, np.abs(ratios[:, None] - middles).min(axis=1, initial=np.inf))
    return levels.astype(np.float64)[np.searchsorted(middles, ratios)]
