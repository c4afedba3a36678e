"""Grids: which int8 values a layer's weights may take, and each output channel's scale.

Everything here is int8 values times a float scale per output channel, so an engine that computes in integers runs every
grid, and stores one of at most 64 values as a table and narrow codes.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from trimtab.errors import BadInput, unknown_name
from trimtab.spaces.network import Array

__all__ = ["GRIDS", "fit_grid", "largest_integer", "nearest"]

#: Grid -> the weight bits that it is offered at; what int8 cannot hold, or would be another grid again, is left out.
GRIDS: dict[str, tuple[int, ...]] = {
    "uniform": (1, 2, 3, 4, 5, 6, 7, 8),
    "power2": (3, 4),
    "codebook": (1, 2, 3, 4, 5, 6),
    "bases": (2, 3, 4),
}

#: Scales tried, as shares of the one that reaches the largest weight, and how often the best of them is then refined.
SHARES = np.linspace(0.3, 1.0, 15)
REFINEMENTS = 2

#: Powers of two repeat at every doubling of the scale, and their largest gap is at the end.
POWER_SHARES = np.linspace(0.3, 1.4, 23)

#: How often values and scales of a codebook are fitted in turn.
ROUNDS = 6

#: Scales that the values of several bases start from.
BASES_SHARES = (0.5, 0.7, 1.0)

LARGEST = 127


def fit_grid(rows: Array, bits: int, grid: str = "uniform") -> tuple[Array, Array]:
    """Return (levels (L,), sorted int8, at most 2^bits; scale (O,), float32) that suit float32 weights (O, I).

    - "uniform": integers up to `largest_integer`. 8 bits: scale = max|w| / 127. 3 to 7: the scale with the smallest
      squared error that a search over shares of max|w| finds, refined by least squares. 2: ternary, with the threshold
      and scale of the smallest squared error; ternary weight networks (Li et al. 2016, arXiv:1605.04711) approximate
      just these. 1: sign(w) * mean|w|, the smallest squared error too (Rastegari et al. 2016, arXiv:1603.05279,
      section 3.1).
    - "power2": 0 and +-1, 2, 4 ... 2^(2^(bits - 1) - 2), after Zhou et al. 2017 (INQ, arXiv:1702.03044, equation 2),
      who fix the largest power by the layer's largest weight; here every channel's scale is searched.
    - "codebook": any 2^bits values (Han et al. 2016, Deep Compression, arXiv:1510.00149, section 3). Of all int8
      values they have the smallest squared error for the channels' scales, by dynamic programming: k-means' optimum.
    - "bases": the 2^bits signed sums of `bits` numbers, w = sum_m alpha_m b_m with b_m of +-1 (Lin et al. 2017,
      ABC-Net, arXiv:1711.11294, equation 2). The ratios of the alphas are the layer's, their size is each channel's.

    A grid at bits that it is not offered at is a `BadInput`.
    """
    if grid not in GRIDS:
        raise unknown_name("grid", grid, GRIDS)
    if bits not in GRIDS[grid]:
        raise BadInput(f"grid {grid!r} has no form of {bits} bits (it has: {', '.join(map(str, GRIDS[grid]))})")
    if grid == "power2":
        levels = _powers(bits)
        return levels, _best_scale(rows, levels, POWER_SHARES)
    if grid == "codebook":
        return _codebook(rows, 2**bits)
    if grid == "bases":
        return _bases(rows, bits)
    return _uniform(rows, bits)


def largest_integer(bits: int) -> int:
    """Return the largest magnitude of integer weights of 1 to 8 bits: 1 for 1 and 2 bits, 2^(bits - 1) - 1 for more.

    -2^(bits - 1) is left out: smaller products let a kernel add more of them up before it has to widen.
    """
    return max(1, (1 << (bits - 1)) - 1)


def nearest(ratios: Array, levels: Array) -> Array:
    """Return the level nearest to each ratio, in the ratios' type; integers round halves to even."""
    if int(levels[-1]) - int(levels[0]) + 1 == len(levels):
        return np.asarray(np.clip(np.rint(ratios), levels[0], levels[-1]))
    centres = levels.astype(np.float32)
    return centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, ratios, side="right")].astype(ratios.dtype)


def _uniform(rows: Array, bits: int) -> tuple[Array, Array]:
    top = largest_integer(bits)
    levels = np.array([-1, 1], np.int8) if bits == 1 else np.arange(-top, top + 1, dtype=np.int8)
    if bits == 1:
        return levels, np.abs(rows).mean(axis=1)
    if bits == 2:
        return levels, _ternary_scale(rows)
    return levels, np.abs(rows).max(axis=1) / top if bits == 8 else _best_scale(rows, levels, SHARES)


def _ternary_scale(rows: Array) -> Array:
    """With the k largest magnitudes at +-scale the best scale is their mean, and it takes (their sum)^2 / k off the
    squared error. The best k's threshold is half its mean, so plain rounding by the scale gives just those."""
    sums = np.cumsum(-np.sort(-np.abs(rows), axis=1), axis=1, dtype=np.float64)
    counts = np.arange(1, rows.shape[1] + 1)
    best = (sums**2 / counts).argmax(axis=1)
    return np.asarray(sums[np.arange(len(rows)), best] / counts[best], np.float32)


def _powers(bits: int) -> Array:
    powers = 2 ** np.arange(2 ** (bits - 1) - 1)
    return np.concatenate([-powers[::-1], [0], powers]).astype(np.int8)


def _reaching(rows: Array, top: int) -> Array:
    """The scales with which each channel's largest weight is at `top`."""
    return np.asarray(np.maximum(np.abs(rows).max(axis=1) / top, np.finfo(np.float32).tiny))


def _best_scale(rows: Array, levels: Array, shares: Array) -> Array:
    largest = _reaching(rows, int(levels[-1]))
    best, lowest = largest, np.full(len(rows), np.inf)
    for share in shares:
        best, lowest = _better(rows, np.float32(share) * largest, levels, best, lowest)
    for _ in range(REFINEMENTS):
        best, lowest = _better(rows, _fitted_scale(rows, best, levels), levels, best, lowest)
    return best


def _better(rows: Array, scale: Array, levels: Array, best: Array, lowest: Array) -> tuple[Array, Array]:
    """The scales, channel by channel, with the smaller squared error, and those errors."""
    error = np.square(nearest(rows / scale[:, None], levels) * scale[:, None] - rows).sum(axis=1)
    return np.where(error < lowest, scale, best), np.minimum(error, lowest)


def _fitted_scale(rows: Array, scale: Array, levels: Array) -> Array:
    """The least-squares scales for the values that `scale` rounds to; where those say nothing, `scale` itself."""
    values = nearest(rows / scale[:, None], levels)
    fitted = (rows * values).sum(axis=1) / np.maximum(np.square(values).sum(axis=1), 1)
    return np.where(fitted > 0, fitted, scale)


def _codebook(rows: Array, size: int) -> tuple[Array, Array]:
    """Values for the scales, scales for the values: each step is a least-squares optimum, so the error only falls."""
    scale = _reaching(rows, LARGEST)
    levels = _Histogram(rows, scale).best_levels(size)
    for _ in range(ROUNDS - 1):
        scale = _fitted_scale(rows, scale, levels)
        levels = _Histogram(rows, scale).best_levels(size)
    return levels, _fitted_scale(rows, scale, levels)


def _bases(rows: Array, count: int) -> tuple[Array, Array]:
    options = _signed_sums(count)
    starts = [np.float32(share) * _reaching(rows, LARGEST) for share in BASES_SHARES]
    histograms = [_Histogram(rows, scale) for scale in starts]
    errors = [histogram.errors(options) for histogram in histograms]
    start = int(np.argmin([error.min() for error in errors]))
    scale, levels = starts[start], options[int(errors[start].argmin())]
    for _ in range(ROUNDS - 1):
        scale = _fitted_scale(rows, scale, levels)
        levels = options[int(_Histogram(rows, scale).errors(options).argmin())]
    return np.unique(levels), _fitted_scale(rows, scale, levels)


@cache
def _signed_sums(count: int) -> Array:
    """The sorted levels (options, 2^count) of all falling whole numbers that add up to LARGEST; equal ones repeat."""
    alphas = np.array(_parts(LARGEST, count, LARGEST))
    signs = np.array(list(product((-1, 1), repeat=count)))
    return np.sort(alphas @ signs.T, axis=1).astype(np.int8)


def _parts(total: int, count: int, largest: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as `count` falling whole numbers of at least 1 and at most `largest`."""
    if count == 1:
        return [(total,)] if 1 <= total <= largest else []
    first = range(-(-total // count), min(largest, total - count + 1) + 1)
    return [(part, *rest) for part in first for rest in _parts(total - part, count - 1, part)]


class _Histogram:
    """Squared errors of a layer's weights (O, I) under any set of int8 levels, for given scales (O,).

    Two levels meet in the middle, a multiple of 1/2, so sums of the weights below each such multiple say all.
    """

    def __init__(self, rows: Array, scale: Array) -> None:
        ratios = (rows / scale[:, None]).astype(np.float64)
        cell = np.clip(np.floor(2 * ratios).astype(np.int64) + 2 * LARGEST + 1, 0, 4 * LARGEST + 1).ravel()
        importance = np.broadcast_to(np.square(scale.astype(np.float64))[:, None], rows.shape)
        self.below = [
            np.concatenate([[0.0], np.cumsum(np.bincount(cell, (importance * ratios**power).ravel(), 4 * LARGEST + 2))])
            for power in range(3)
        ]
        levels = np.arange(-LARGEST, LARGEST + 1)
        middle = levels[:, None] + levels
        self.between = self._segment(2 * levels[:, None], middle, levels[:, None])
        self.between += self._segment(middle, 2 * levels, levels)
        self.first = self._segment(np.int64(-2 * LARGEST - 1), 2 * levels, levels)
        self.last = self._segment(2 * levels, np.int64(2 * LARGEST + 1), levels)

    def _segment(self, start: Array, end: Array, level: Array) -> Array:
        """The error of the weights from start / 2 to end / 2 at a level; the outermost places are infinite."""
        zeroth, first, second = (sums[end + 2 * LARGEST + 1] - sums[start + 2 * LARGEST + 1] for sums in self.below)
        return np.asarray(second - 2 * level * first + level * level * zeroth)

    def errors(self, levels: Array) -> Array:
        """The errors (options,) of sorted levels (options, L)."""
        index = levels.astype(np.int64) + LARGEST
        return np.asarray(
            self.first[index[:, 0]] + self.between[index[:, :-1], index[:, 1:]].sum(axis=1) + self.last[index[:, -1]]
        )

    def best_levels(self, size: int) -> Array:
        """The `size` levels with the smallest error: best[k][j] is the least of k + 1 levels up to j."""
        step = np.where(np.tri(len(self.first), dtype=bool), np.inf, self.between)
        best, choices = self.first, []
        for _ in range(size - 1):
            total = best[:, None] + step
            choices.append(total.argmin(axis=0))
            best = total.min(axis=0)
        index = [int((best + self.last).argmin())]
        for choice in reversed(choices):
            index.append(int(choice[index[-1]]))
        return (np.array(index[::-1]) - LARGEST).astype(np.int8)
