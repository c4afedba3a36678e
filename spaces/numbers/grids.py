"""Grids: which int8 values a layer's weights may take, and each output channel's scale.

Everything here is int8 values times a float scale per output channel, so an engine that computes in integers runs every
grid, and stores one of at most 64 values as a table and narrow codes. A new grid is one class here, and its place in
`GRIDS`: spaces, policies, rounding and prices ask the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np

from trimtab.graph import Array

__all__ = ["GRIDS", "UNIFORM", "FixedGrid", "Grid", "nearest"]

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

#: The largest weight of which two products with 8-bit inputs fit 16 bits, twice: 4 * 255 * 31 < 2^15.
PAIRED = 31

#: The name of the grid that a format is on where none is given.
UNIFORM = "uniform"


class Grid(ABC):
    """One way to place the int8 values, the levels, of a layer's weights."""

    name: ClassVar[str]
    #: Weight bits that it is offered at; what int8 cannot hold, or would be another grid again, is left out.
    offered: ClassVar[tuple[int, ...]]
    #: Whether every output channel is fitted whatever the others are, so that one entry of the layer database serves
    #: all counts of them. False is always right, and makes more entries.
    is_row_wise: ClassVar[bool] = False

    @abstractmethod
    def fit(self, rows: Array, bits: int) -> tuple[Array, Array]:
        """Return (levels (L,), sorted int8, L at most `size`; scale (O,), float32) that suit float32 weights (O, I)."""

    def levels(self, bits: int) -> Array | None:
        """Return the levels (L,) of all layers, sorted int8; None where each layer has its own."""
        return None

    def size(self, bits: int) -> int:
        """Return the most levels that a layer has."""
        return int(2**bits)

    def has_zero(self, bits: int) -> bool:
        """Whether zero is a level of every layer, so that weights may be sparse."""
        return False

    def is_symmetric(self, bits: int) -> bool:
        """Whether the negative of every level is a level too, whatever the layer."""
        return False


class FixedGrid(Grid):
    """A grid whose levels are the same for all layers; the scale of the smallest squared error is searched."""

    #: Scales tried, see SHARES.
    shares: ClassVar[Array] = SHARES

    @abstractmethod
    def levels(self, bits: int) -> Array:
        """Return the levels (L,), sorted int8."""

    def fit(self, rows: Array, bits: int) -> tuple[Array, Array]:
        """Return the levels, and the scales (O,) for which a search finds the smallest squared error."""
        levels = self.levels(bits)
        return levels, _best_scale(rows, levels, self.shares)

    def size(self, bits: int) -> int:
        """Return how many levels there are."""
        return len(self.levels(bits))

    def has_zero(self, bits: int) -> bool:
        """Whether zero is a level."""
        return 0 in self.levels(bits)

    def is_symmetric(self, bits: int) -> bool:
        """Whether the negative of every level is a level too."""
        levels = self.levels(bits).astype(int)
        return bool((levels == -levels[::-1]).all())


class Uniform(FixedGrid):
    """Integers up to 2^(bits - 1) - 1; of 2 bits -1, 0 and 1, of 1 bit -1 and 1.

    8 bits: scale = max|w| / 127. 3 to 7: the scale with the smallest squared error that a search over shares of max|w|
    finds, refined by least squares. 2: ternary, with the threshold and scale of the smallest squared error; ternary
    weight networks (Li et al. 2016, arXiv:1605.04711) approximate just these. 1: sign(w) * mean|w|, the smallest
    squared error too (Rastegari et al. 2016, arXiv:1603.05279, section 3.1).
    """

    name = UNIFORM
    offered = (1, 2, 3, 4, 5, 6, 7, 8)
    is_row_wise = True

    def levels(self, bits: int) -> Array:
        # -2^(bits - 1) is left out: smaller products let a kernel add more of them up before it has to widen.
        top = max(1, 2 ** (bits - 1) - 1)
        levels = np.arange(-top, top + 1, dtype=np.int8)
        return levels if len(levels) < 2**bits else levels[levels != 0]

    def fit(self, rows: Array, bits: int) -> tuple[Array, Array]:
        exact = _EXACT_SCALES.get(bits)
        return super().fit(rows, bits) if exact is None else (self.levels(bits), exact(rows))


class PowersOfTwo(FixedGrid):
    """0 and +-1, 2, 4 ... 2^(2^(bits - 1) - 2), after Zhou et al. 2017 (INQ, arXiv:1702.03044, equation 2), who fix the
    largest power by the layer's largest weight; here every channel's scale is searched."""

    name = "power2"
    offered = (3, 4)
    shares = POWER_SHARES

    def levels(self, bits: int) -> Array:
        powers = 2 ** np.arange(2 ** (bits - 1) - 1)
        return np.concatenate([-powers[::-1], [0], powers]).astype(np.int8)


class Codebook(Grid):
    """Any 2^bits values (Han et al. 2016, Deep Compression, arXiv:1510.00149, section 3).

    Of all int8 values they have the smallest squared error for the channels' scales, by dynamic programming: k-means'
    optimum.
    """

    name = "codebook"
    offered = (1, 2, 3, 4, 5, 6)

    def fit(self, rows: Array, bits: int) -> tuple[Array, Array]:
        # Values for the scales, scales for the values: each step is a least-squares optimum, so the error only falls.
        scale = _reaching(rows, LARGEST)
        levels = _Histogram(rows, scale).best_levels(2**bits)
        for _ in range(ROUNDS - 1):
            scale = _fitted_scale(rows, scale, levels)
            levels = _Histogram(rows, scale).best_levels(2**bits)
        if bits == 1:
            # As large as 6-bit weights are: kernels sum products with them in 16 bits, whatever the layer.
            levels = np.rint(levels * (PAIRED / np.abs(levels).max())).astype(np.int8)
        return levels, _fitted_scale(rows, scale, levels)


class Bases(Grid):
    """The 2^bits signed sums of `bits` numbers, w = sum_m alpha_m b_m with b_m of +-1 (Lin et al. 2017, ABC-Net,
    arXiv:1711.11294, equation 2). The ratios of the alphas are the layer's, their size is each channel's."""

    name = "bases"
    offered = (2, 3, 4)

    def fit(self, rows: Array, bits: int) -> tuple[Array, Array]:
        options = _signed_sums(bits)
        starts = [np.float32(share) * _reaching(rows, LARGEST) for share in BASES_SHARES]
        histograms = [_Histogram(rows, scale) for scale in starts]
        errors = [histogram.errors(options) for histogram in histograms]
        start = int(np.argmin([error.min() for error in errors]))
        scale, levels = starts[start], options[int(errors[start].argmin())]
        for _ in range(ROUNDS - 1):
            scale = _fitted_scale(rows, scale, levels)
            levels = options[int(_Histogram(rows, scale).errors(options).argmin())]
        return np.unique(levels), _fitted_scale(rows, scale, levels)

    def is_symmetric(self, bits: int) -> bool:
        return True


#: By the name that formats give.
GRIDS: Mapping[str, Grid] = {each.name: each for each in (Uniform(), PowersOfTwo(), Codebook(), Bases())}


def nearest(ratios: Array, levels: Array) -> Array:
    """Return the level nearest to each ratio, in the ratios' type; integers round halves to even."""
    if int(levels[-1]) - int(levels[0]) + 1 == len(levels):
        return np.asarray(np.clip(np.rint(ratios), levels[0], levels[-1]))
    centres = levels.astype(np.float32)
    return centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, ratios, side="right")].astype(ratios.dtype)


def _mean_scale(rows: Array) -> Array:
    return np.asarray(np.abs(rows).mean(axis=1))


def _ternary_scale(rows: Array) -> Array:
    """With the k largest magnitudes at +-scale the best scale is their mean, and it takes (their sum)^2 / k off the
    squared error. The best k's threshold is half its mean, so plain rounding by the scale gives just those."""
    sums = np.cumsum(-np.sort(-np.abs(rows), axis=1), axis=1, dtype=np.float64)
    counts = np.arange(1, rows.shape[1] + 1)
    best = (sums**2 / counts).argmax(axis=1)
    return np.asarray(sums[np.arange(len(rows)), best] / counts[best], np.float32)


def _widest_scale(rows: Array) -> Array:
    return np.asarray(np.abs(rows).max(axis=1) / LARGEST)


#: Bits -> the scales that need no search: the best of 1 and of 2 bits, and those that cut off nothing of 8 bits.
_EXACT_SCALES: Mapping[int, Callable[[Array], Array]] = {1: _mean_scale, 2: _ternary_scale, 8: _widest_scale}


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
