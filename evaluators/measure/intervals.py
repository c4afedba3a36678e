"""Intervals of what was measured in blocks, and decisions that rest on them.

A block is a stretch of measuring longer than the machine's memory, with one value. Blocks are never chosen by their
values, and nothing is assumed of their distribution but symmetry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONFIDENCE",
    "DRIFT",
    "ERROR",
    "LOOKS",
    "Interval",
    "block_interval",
    "decision_interval",
    "memory",
    "undisturbed_ratio",
]

Floats = npt.NDArray[np.float64]

#: The coverage that an interval promises.
CONFIDENCE = 0.95

#: The chance that a decision is wrong, and the numbers of blocks after which one may be taken: each look may err with
#: an equal share of it (Bonferroni), so that looking again and again costs nothing of the promise.
ERROR = 0.05
LOOKS = (4, 8, 16, 32, 64, 128, 256, 512)

#: Half the 95 % interval in which the ratio of two networks of one kind, and of two unlike ones, wanders from minute to
#: minute: what no measurement of seconds can see of itself. From ten minutes on two virtual cores (docs/benchmarks.md):
#: 95 % of measurements of ten seconds lay within 0.6 to 0.9 %, of unlike networks within 1 to 1.7 %, of all pooled.
DRIFT, UNLIKE_DRIFT = 0.008, 0.015

#: Merged blocks that an interval rests on at least: with fewer, Wilcoxon's test has no 95 %.
LEAST_BLOCKS = 6

#: Quantiles beyond which a value counts as a spike.
SPIKES = (0.05, 0.95)

#: The share of its time in which a machine leaves a network alone at least, and the parts of a record that say how well
#: its speed then is known.
UNDISTURBED = 0.05
WINDOWS = 6

#: Sokal's window: correlations are added up to this multiple of the time that they add up to.
WINDOW = 5


class Interval(NamedTuple):
    """A value with the interval [`low`, `high`] that covers the true one with the promised probability."""

    middle: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """Return a value that is known."""
        return cls(value, value, value)

    def times(self, other: Interval) -> Interval:
        """Return the product of two independent positive values; relative half-widths add as squares."""
        middle = self.middle * other.middle
        low = math.hypot(math.log(self.middle / self.low), math.log(other.middle / other.low))
        high = math.hypot(math.log(self.high / self.middle), math.log(other.high / other.middle))
        return Interval(middle, middle * math.exp(-low), middle * math.exp(high))

    def inverse(self) -> Interval:
        """Return one divided by a positive value."""
        return Interval(1 / self.middle, 1 / self.high, 1 / self.low)

    def scaled(self, factor: float) -> Interval:
        """Return the value in another unit; `factor` is positive."""
        return Interval(self.middle * factor, self.low * factor, self.high * factor)

    @property
    def precision(self) -> float:
        """Half the interval's width, as a share of the value."""
        return (self.high - self.low) / 2 / self.middle


def block_interval(ratios: Sequence[float], confidence: float = CONFIDENCE, drift: float = DRIFT) -> Interval:
    """Return the location of positive block values (N,), in order of time, with its interval.

    The location is Hodges and Lehmann's (1963): the median of all pairs' means, of logarithms. The interval inverts
    Wilcoxon's signed-rank test; where the blocks are too few for a test of this confidence (five for 95 %), it is
    Student's, or their range if that is wider. Blocks that remember each other make it too narrow, so neighbours are
    merged while six are left, and the widest interval counts; `drift` is half a 95 % interval of what goes on more
    slowly than all of them, and adds as squares.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    middle, half = _location(logs), _half_width(logs, confidence)
    merged = logs
    while len(merged) >= 2 * LEAST_BLOCKS:
        merged = merged[len(merged) % 2 :].reshape(-1, 2).mean(axis=1)
        half = max(half, _half_width(merged, confidence))
    half = math.hypot(half, drift * _normal(confidence) / _normal(CONFIDENCE))
    return Interval(*(math.exp(middle + step) for step in (0.0, -half, half)))


def undisturbed_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Return how two unlike networks compare where nothing disturbs either, from slices (N,) of both in order of time.

    Others on the machine only ever slow a network down, and one whose weights stream from a shared cache by other
    factors than one that lives in the core's own: the median of their ratios says more of the neighbours than of the
    networks, and drifts with them. So this is the ratio of the quantiles UNDISTURBED of either's times. The interval is
    that of the same ratio in WINDOWS parts of the record, widened by how far these lie from the whole.
    """
    first, second = np.asarray(ours), np.asarray(theirs)
    middle = _fast_ratio(first, second)
    parts = zip(np.array_split(first, WINDOWS), np.array_split(second, WINDOWS), strict=True)
    interval = block_interval([_fast_ratio(*part) for part in parts], drift=UNLIKE_DRIFT)
    half = math.log(interval.high / interval.middle) + abs(math.log(interval.middle / middle))
    return Interval(middle, middle * math.exp(-half), middle * math.exp(half))


def _fast_ratio(ours: Floats, theirs: Floats) -> float:
    return float(np.quantile(ours, UNDISTURBED) / np.quantile(theirs, UNDISTURBED))


def decision_interval(ratios: Sequence[float]) -> Interval:
    """Return the interval that decisions rest on: all of them together, after any of LOOKS, err as often as ERROR.

    It is that of the last look; what was measured after it decides nothing, for nobody paid for looking at it.
    """
    last = max((look for look in LOOKS if look <= len(ratios)), default=len(ratios))
    return block_interval(ratios[:last], 1 - ERROR / len(LOOKS))


def memory(values: Sequence[float]) -> float:
    """Return for how many values in a row a stationary series remembers: its integrated autocorrelation time, from 1.

    The sum 1 + 2 * (correlation at lag 1, 2, ...) ends where the lag is WINDOW times the sum so far (Madras and Sokal
    1988, appendix C). Values beyond the quantiles SPIKES count as these: spikes would hide what the others remember.
    """
    series = np.asarray(values, dtype=np.float64)
    series = np.clip(series, *np.quantile(series, SPIKES))
    series = series - series.mean()
    variance = float(series @ series)
    total = 1.0
    if variance == 0:
        return total
    for lag in range(1, len(series)):
        total += 2 * float(series[lag:] @ series[:-lag]) / variance
        if lag >= WINDOW * total:
            break
    return max(total, 1.0)


def _location(logs: Floats) -> float:
    return float(np.median(_pair_means(logs)))


def _pair_means(logs: Floats) -> Floats:
    first, second = np.triu_indices(len(logs))
    return (logs[first] + logs[second]) / 2


def _half_width(logs: Floats, confidence: float) -> float:
    """Half the width of the location's interval in logarithms; infinite for a single block."""
    if len(logs) < 2:
        return math.inf
    rank = _signed_rank(len(logs), (1 - confidence) / 2)
    means = np.sort(_pair_means(logs))
    middle, outermost = float(np.median(means)), max(rank, 1)
    half = max(middle - float(means[outermost - 1]), float(means[-outermost]) - middle)
    if rank > 0:
        return half
    return max(half, _student(len(logs) - 1, confidence) * float(logs.std(ddof=1)) / math.sqrt(len(logs)))


@cache
def _signed_rank(count: int, tail: float) -> int:
    """Return the largest k for which Wilcoxon's statistic of `count` values is below k with at most this chance."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, count + 1):
        ways[rank:] = ways[rank:] + ways[:-rank]
        ways /= 2
    return int(np.searchsorted(np.cumsum(ways), tail, side="right"))


@cache
def _normal(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


@cache
def _student(freedom: int, confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))
