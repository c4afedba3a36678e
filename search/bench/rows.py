"""Rows of benchmarks, and what they are made of."""

from __future__ import annotations

from trimtab.evaluators.measure.intervals import Interval
from trimtab.graph import Graph, Node

__all__ = ["empty_network", "named"]


def named(name: str, estimate: Interval | None, unit: float = 1.0) -> dict[str, float | None]:
    """Return an estimate, in multiples of 1 / `unit`, as three entries of a row: NAME, NAME_low and NAME_high."""
    values = (None, None, None) if estimate is None else tuple(value * unit for value in estimate)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def empty_network() -> Graph:
    """Return a network that does next to nothing: its time is that of calling an engine."""
    return Graph("x", (1,), (Node("activation", "y", ("x",), {"activation": "relu"}),), "y")
