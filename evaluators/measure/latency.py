"""Latency as a multiple of the untouched network's, chained over a yardstick of the candidates' own kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.evaluators.measure.comparison import Comparison, Verdict, verdict
from trimtab.evaluators.measure.intervals import Interval, decision_interval
from trimtab.spaces.policy import Policy

__all__ = ["Latency", "Link"]


@dataclass(frozen=True)
class Link:
    """The tie of a run's yardstick to the untouched network and to its int8 form: measured once, long.

    Networks whose weights stream from the shared cache and those that live in the core's own slow down by different
    factors while others use the machine; like is compared with like, and unlike tied to it by this.
    `ratio` is the time of the `yardstick` divided by the base's, `to_int8` by the int8 form's, all undisturbed;
    `to_int8` is exactly 1 where the int8 form is the yardstick itself. `yardstick_seconds` are per image, typical ones.
    `blocks` counts, `block_seconds` is the length of blocks on this machine. `took` is in seconds, `stopped_by` as in
    `Comparison`.
    """

    yardstick: Policy
    ratio: Interval
    to_int8: Interval
    yardstick_seconds: Interval
    blocks: int
    block_seconds: float
    took: float
    stopped_by: str

    @property
    def base_seconds(self) -> float:
        """Seconds of the base per image, as disturbed as the yardstick is."""
        return self.yardstick_seconds.middle / self.ratio.middle

    @property
    def int8(self) -> Interval:
        """The int8 form's time divided by the base's."""
        return self.ratio.times(self.to_int8.inverse())

    def limit(self, value: float, relative_to: str) -> Interval:
        """Return a latency budget as a multiple of the yardstick; `relative_to` as in `search.budgets.Budget`."""
        one = {"base": self.ratio, "int8": self.to_int8, "absolute": self.yardstick_seconds}[relative_to]
        return one.inverse().scaled(value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "yardstick": self.yardstick.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Link:
        """Read what `to_json` wrote."""
        intervals = {key: Interval(*data[key]) for key in ("ratio", "to_int8", "yardstick_seconds")}
        return cls(**{**data, **intervals, "yardstick": Policy.from_json(data["yardstick"])})


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
