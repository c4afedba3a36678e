"""The plain answer: the same compression for every layer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise, zip_longest
from typing import Any, ClassVar

from trimtab.agents.base import Agent
from trimtab.spaces import LayerFormat, Policy, Space
from trimtab.spaces.forms.layer_forms import DENSE
from trimtab.spaces.numbers.formats import FLOAT

__all__ = ["Uniform"]


class Uniform(Agent):
    """One keep ratio, one pair of bits and one form of layers for the whole network.

    One keep ratio for all channel groups, those of residual streams included, is a width multiplier. For every pair of
    bits and form the largest one that meets the limits comes first, then all smaller ones that round to other counts;
    the combinations take turns, the one nearest to the network as given first. Nothing is projected, for that would not
    be uniform any more, and nothing is random: neither the seed nor a proposal's number matters, and an agent that goes
    on, under these limits or others, skips what is known. It ends when every uniform policy that is feasible has been
    proposed.
    """

    name: ClassVar[str] = "uniform"
    retries: ClassVar[int] = 1_000_000  # the list is finite: skipping what is known must not end it early

    def _start(self) -> None:
        self._rest = _distinct(_take_turns(self._lanes()))

    def _propose(self, number: int) -> Policy | None:
        return next(self._rest, None)

    def _lanes(self) -> list[Iterator[Policy]]:
        return [
            self._lane(bits, form) for form in self._choices("form", DENSE) for bits in self._choices("bits", FLOAT)
        ]

    def _choices(self, kind: str, otherwise: Any) -> list[Any]:
        """All choices of any knob of a kind, the network as given first."""
        found = chain.from_iterable(reversed(knob.choices) for knob in self.space.knobs if knob.kind == kind)
        return list(dict.fromkeys(found)) or [otherwise]

    def _lane(self, bits: LayerFormat, form: str) -> Iterator[Policy]:
        for keep in _widths(self.space):
            policy = self.space.uniform(keep, bits, form)
            if self.limits.feasible(policy):
                yield policy


def _widths(space: Space) -> list[float]:
    """Return a keep ratio for every width of the whole network that rounding tells apart, widest first."""
    counts = [[int(choice) for choice in knob.choices] for knob in space.knobs if knob.kind == "channels"]  # type: ignore[arg-type]
    # Half-way between two counts of a group, its nearest count changes.
    changes = {(a + b) / (2 * choices[-1]) for choices in counts for a, b in pairwise(choices)}
    return [(a + b) / 2 for a, b in pairwise([1.0, *sorted(changes, reverse=True), 0.0])]


def _take_turns(lanes: list[Iterator[Policy]]) -> Iterator[Policy]:
    lanes = [_distinct(lane) for lane in lanes]
    for row in zip_longest(*lanes):
        yield from (policy for policy in row if policy is not None)


def _distinct(policies: Iterator[Policy]) -> Iterator[Policy]:
    seen: set[str] = set()
    for policy in policies:
        if policy.id not in seen:
            seen.add(policy.id)
            yield policy
