"""Widths by an additive model: each group as narrow as its own errors, one at a time, say that it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trimtab.errors import BadInput
from trimtab.spaces import Policy, Space

__all__ = ["allocate_widths"]


def allocate_widths(
    space: Space, error: Callable[[Policy], float], cost: Callable[[Policy], float], limit: float
) -> Policy:
    """Return the base with narrower channel groups: `cost` at most `limit`, and as little `error` as may be.

    `error` is asked for policies with one narrow group each, and taken to add up over groups. Step by step the group is
    narrowed whose error grows least for the cost that it saves, down to the width at which it does: where the cost adds
    up too, no other widths have less error at the same cost (Shoham and Gersho 1988, doi:10.1109/29.90373). The last
    step goes no further than it has to. A limit below the narrowest network's cost is a `BadInput`.
    """
    widths = {
        knob.target: [int(str(choice)) for choice in knob.choices] for knob in space.knobs if knob.kind == "channels"
    }
    base = space.base()
    errors = {
        group: {count: error(_narrowed(base, group, count)) for count in counts} for group, counts in widths.items()
    }

    def step(policy: Policy, group: str) -> tuple[float, str, int] | None:
        """The group's best step: error added per cost saved, group, and the width that it ends at."""
        now, known = policy.channels[group], errors[group]
        slopes = {count: (known[count] - known[now]) / (now - count) for count in widths[group] if count < now}
        if not slopes:
            return None
        count = min(slopes, key=lambda count: (slopes[count], count))
        saved = cost(policy) - cost(_narrowed(policy, group, count))
        return (known[count] - known[now]) / saved, group, count

    policy = base
    while cost(policy) > limit:
        steps = [found for group in widths if (found := step(policy, group)) is not None]
        if not steps:
            raise BadInput(f"no widths of this space cost less than {cost(policy):g}, and {limit:g} is the limit")
        _, group, end = min(steps)
        for count in sorted((c for c in widths[group] if end <= c < policy.channels[group]), reverse=True):
            narrower = _narrowed(policy, group, count)
            if cost(narrower) <= limit:
                break
        policy = narrower
    return policy


def _narrowed(policy: Policy, group: str, count: int) -> Policy:
    return replace(policy, channels={**policy.channels, group: count})
