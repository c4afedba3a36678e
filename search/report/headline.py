"""The headline of a run: how much smaller, faster and less accurate the winner is than the network as given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Gain", "change", "gains", "headline", "points"]

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Gain:
    """A cost of a network beside another one's in words: "7.3×" and "smaller"; `before` and `after` are in one unit."""

    factor: str
    words: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.factor} {self.words}"


#: The key in a measured network -> the key in a form, what less of it is called, more of it, and as much.
_COSTS = {
    "size": ("size", "smaller", "larger", "as large"),
    "latency_seconds": ("latency", "faster", "slower", "as fast"),
    "macs": ("macs", "fewer MACs", "more MACs", "as many MACs"),
    "parameters": ("parameters", "fewer parameters", "more parameters", "as many parameters"),
}


def gains(best: Values, form: Values) -> dict[str, Gain]:
    """Return what a measured network costs beside a form (as given, int8): by size, latency_seconds, macs, parameters.

    Latencies are measured; MACs and parameters are counted, and are what theory has in their place.
    """
    return {cost: _gain(best[cost], form[key], *words) for cost, (key, *words) in _COSTS.items()}


def headline(best: Values, base: Values) -> str:
    """Say it in a line: "7.3× smaller, 2.5× faster, 2.1× fewer MACs, 3.1× fewer parameters"."""
    return ", ".join(map(str, gains(best, base).values()))


def change(network: Values) -> str:
    """Return the change of accuracy on the final images in points, and the standard error of that paired difference."""
    found = network["final_change"]
    return f"{points(found['value'])} ± {found['error'] * 100:.2f}"


def points(value: float) -> str:
    """Return a difference of accuracies, in [-1, 1], in points with its sign."""
    return f"{value * 100:+.2f}".replace("-", "−")


def _gain(after: float, before: float, less: str, more: str, same: str) -> Gain:
    factor, words = (before / after, less) if after <= before else (after / before, more)
    # One decimal says enough of 7.3, and nothing of 1.04.
    text = f"{factor:.1f}" if factor >= 1.1 else f"{factor:.2f}"
    return Gain("1×", same, before, after) if text == "1.00" else Gain(f"{text}×", words, before, after)
