"""Latency as a multiple of the untouched network's, chained over a yardstick of the candidates' own kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimtab.evaluators.comparison import Comparison, Record, Verdict, verdict
from trimtab.evaluators.intervals import Interval, block_interval, decision_interval, undisturbed_ratio

__all__ = ["Latency", "Link"]


@dataclass(frozen=True)
class Link:
    """What ties the yardstick, the uniform int8 form, to the untouched network: measured once, long, for a whole run.

    Networks whose weights stream from the shared cache and those that live in the core's own slow down by different
    factors while others use the machine; like is compared with like, and unlike tied to it by this.
    `ratio` is the yardstick's time divided by the base's, both undisturbed; `yardstick_seconds` are per image, typical
    ones. `blocks` counts, `block_seconds` is the length of blocks on this machine. `took` is in seconds, `stopped_by`
    as in `Comparison`.
    """

    ratio: Interval
    yardstick_seconds: Interval
    blocks: int
    block_seconds: float
    took: float
    stopped_by: str

    @classmethod
    def of(cls, record: Record, block_seconds: float) -> Link:
        """Return the link that a record of the yardstick with the base says."""
        blocks = np.array_split(np.asarray(record.ours), record.blocks)
        return cls(
            ratio=undisturbed_ratio(record.ours, record.theirs),
            yardstick_seconds=block_interval([float(np.median(block)) for block in blocks]),
            blocks=record.blocks,
            block_seconds=block_seconds,
            took=record.took,
            stopped_by=record.stopped_by,
        )

    @property
    def base_seconds(self) -> float:
        """Seconds of the base per image, as disturbed as the yardstick is."""
        return self.yardstick_seconds.middle / self.ratio.middle

    def limit(self, value: float, relative_to: str) -> Interval:
        """Return a latency budget as a multiple of the yardstick; `relative_to` as in `search.budgets.Budget`."""
        if relative_to == "int8":
            return Interval.exactly(value)
        one = self.ratio if relative_to == "base" else self.yardstick_seconds
        return one.inverse().scaled(value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Link:
        """Read what `to_json` wrote."""
        return cls(**{**data, **{key: Interval(*data[key]) for key in ("ratio", "yardstick_seconds")}})


@dataclass(frozen=True)
class Latency:
    """A measured latency: `ratio` to the untouched network's with its 95 % interval [`low`, `high`], in which the
    link's uncertainty counts too.

    `to_yardstick` is the ratio to the yardstick that was measured, `bounds` the same with the wider interval that
    decisions rest on. `seconds` is the median time per image of this measurement, which differs from run to run.
    `blocks`, `slices` and `dropped` count; `took` is in seconds; `stopped_by` as in `Comparison`.
    """

    ratio: float
    low: float
    high: float
    to_yardstick: Interval
    bounds: Interval
    seconds: float
    blocks: int
    slices: int
    dropped: int
    took: float
    stopped_by: str

    @classmethod
    def of(cls, comparison: Comparison, link: Link) -> Latency:
        """Return the latency that a comparison with the yardstick says."""
        return cls(
            *comparison.interval.times(link.ratio),
            to_yardstick=comparison.interval,
            bounds=decision_interval(comparison.ratios),
            seconds=comparison.seconds,
            blocks=len(comparison.blocks),
            slices=comparison.slices,
            dropped=comparison.dropped,
            took=comparison.took,
            stopped_by=comparison.stopped_by,
        )

    def verdict(self, limit: Interval) -> Verdict:
        """Say on which side of a limit, in multiples of the yardstick, it lies."""
        return verdict(self.bounds, limit)

    def share(self, limit: Interval) -> Interval:
        """Return its share of a limit, in multiples of the yardstick, by the interval that decisions rest on."""
        return self.bounds.times(limit.inverse())

    def excess(self, limit: Interval) -> float:
        """Return by which share it may be over a limit, in multiples of the yardstick: at most 0 where it is met."""
        return self.share(limit).high - 1

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Latency:
        """Read what `to_json` wrote."""
        return cls(**{**data, **{key: Interval(*data[key]) for key in ("to_yardstick", "bounds")}})
