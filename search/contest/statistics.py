"""Statistics of a contest: best-so-far curves, their spread over seeds, hypervolume, who wins by more than noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from trimtab.evaluators.measure.intervals import Interval

__all__ = ["at", "best_so_far", "curve", "first_reaching", "hypervolume", "spread", "verdict_over_seeds", "wins"]

#: A best-so-far curve: (where, value) at every place where the value rises, in order.
Steps = Sequence[tuple[float, float]]


def spread(values: Sequence[float]) -> Interval:
    """Return the median over seeds, at least one, with their range.

    The range of n seeds covers the median of all seeds with a probability of 1 - 2^(1 - n): 75 % for three.
    """
    return Interval(median(values), min(values), max(values))


def best_so_far(places: Iterable[float], values: Iterable[float | None]) -> list[tuple[float, float]]:
    """Return where the best value rises, and to what; None counts as no value."""
    steps: list[tuple[float, float]] = []
    for place, value in zip(places, values, strict=True):
        if value is not None and (not steps or value > steps[-1][1]):
            steps.append((place, value))
    return steps


def at(steps: Steps, place: float) -> float | None:
    """Return the best value up to a place; None where there was none yet."""
    return max((value for where, value in steps if where <= place), default=None)


def first_reaching(steps: Steps, value: float) -> float | None:
    """Return the first place where a value is reached; None where it never is."""
    return min((where for where, reached in steps if reached >= value), default=None)


def curve(runs: Sequence[Steps], most: int = 200) -> list[tuple[float, Interval]]:
    """Return the spread over runs at every place where one of them rises, once all of them have a value.

    Of more than `most` places, as many are kept, evenly; the last one always.
    """
    places = sorted({where for steps in runs for where, _ in steps})
    found = []
    for place in places:
        values = [at(steps, place) for steps in runs]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found.append((place, spread(known)))
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def hypervolume(points: Iterable[tuple[float, float]], cost: float, value: float) -> float:
    """Return the area of (cost, value) points, less and more is better, that a reference point at (`cost`, `value`)
    sees: what at least one point dominates and the reference does not (Zitzler & Thiele 1999, in two dimensions).

    In units of the reference cost, and of the way from the reference value to 1: between 0 and 1 for costs from 0 and
    values up to 1.
    """
    area, best = 0.0, value
    inside = sorted((c, -v) for c, v in points if c < cost and v > value)
    for place, (at_cost, negative) in enumerate(inside):
        best = max(best, -negative)
        until = inside[place + 1][0] if place + 1 < len(inside) else cost
        area += (until - at_cost) * (best - value)
    return area / (cost * (1 - value))


def wins(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether one agent beats another by more than the seed noise: its worst seed is better than the other's best.

    Of two agents that are alike, one does so in 2 of 20 contests with 3 seeds each, and in 2 of 252 with 5.
    """
    return min(ours) > max(theirs)


def verdict_over_seeds(bests: Mapping[str, Sequence[float]], evaluations: str) -> str:
    """Say who wins by more than the seed noise, or that nobody does; what one seed says of the images that it was
    judged on is `report.summary.verdict_on_images`.

    `bests` has every agent's best proxy accuracy (0 to 1) of each seed, 0 where it found no feasible policy;
    `evaluations` says after what.
    """
    ranked = sorted(bests, key=lambda name: (-median(bests[name]), name))
    if not any(max(values) for values in bests.values()):
        return f"Nobody found a policy that meets every budget after {evaluations}."
    first, others = ranked[0], ranked[1:]
    lead = f"{first} ({_figures(bests[first])})"
    if not others:
        return f"{lead} ran alone: nothing says whether another agent would have done as well after {evaluations}."
    if min(len(bests[name]) for name in ranked) < 2:
        return f"{lead} leads after {evaluations}; with one seed, nothing says by more than the seed noise."
    close = [name for name in others if not wins(bests[first], bests[name])]
    beaten = [name for name in others if name not in close]
    if not close:
        return (
            f"{lead} wins after {evaluations} by more than the seed noise: its worst seed is better than the best of "
            f"every other agent, {others[0]} ({_figures(bests[others[0]])}) being the next."
        )
    rivals = ", ".join(f"{name} ({_figures(bests[name])})" for name in close)
    text = f"Nobody wins after {evaluations} by more than the seed noise: {lead} leads, but its range overlaps {rivals}"
    return f"{text}; it beats {', '.join(beaten)}." if beaten else f"{text}."


def _figures(values: Sequence[float]) -> str:
    middle, low, high = spread(values)
    if low == high:
        return f"{middle:.2%}" + (f" with all {len(values)} seeds" if len(values) > 1 else "")
    return f"median {middle:.2%}, {low:.2%} to {high:.2%} over {len(values)} seeds"
