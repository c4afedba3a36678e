"""Random search: the baseline that every agent has to beat at the same number of evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from trimtab.agents.base import Agent, Limits, stable_seed
from trimtab.spaces import Policy, Space

__all__ = ["Random", "RandomProjected", "draw", "walk"]

#: Proposals that are made by one walk, and sweeps over all knobs: before the first of them, and between two.
BLOCK = 32
FORGETTING = 8
BETWEEN = 1

#: A drawn policy's exponents lie between 1 / SPREAD and SPREAD.
SPREAD = 6.0


class Random(Agent):
    """Draws uniformly from the feasible set (Bergstra & Bengio 2012, JMLR 13, under budgets).

    Proposals come from random walks inside the feasible set (`walk`), a new one every `BLOCK` proposals, which are
    seeded by the block's number: a resumed agent walks at most one block again.
    """

    name: ClassVar[str] = "random"

    def _start(self) -> None:
        self._walk: Iterator[list[int]] = iter(())
        self._next_number = -1  # of the proposal that the walk comes to next

    def _propose(self, number: int) -> Policy | None:
        block, place = divmod(number, BLOCK)
        if place == 0 or number != self._next_number:
            rng = np.random.default_rng(stable_seed(self.seed, self.name, block))
            self._walk = walk(self.space, self.limits, rng)
            for _ in range(place):
                next(self._walk)
        self._next_number = number + 1
        return self.space.decode(next(self._walk))


class RandomProjected(Agent):
    """Draws policies of any tightness (`draw`) and projects them into the limits.

    Not uniform, and the stronger baseline where the good policies are rare: its draws are of many kinds, with all that
    is saved saved on channels, say, where nearly every policy of the feasible set is middling in everything.
    """

    name: ClassVar[str] = "random-projected"

    def _propose(self, number: int) -> Policy | None:
        return self.space.decode(draw(self.space, np.random.default_rng(stable_seed(self.seed, self.name, number))))


def walk(space: Space, limits: Limits, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield vectors of feasible policies without end, each uniformly distributed over all of them.

    Metropolis et al. (1953) with a constant density: sweep after sweep, in a new random order, every knob is offered
    one of its choices, drawn uniformly, and takes it where that is feasible. Offers are symmetric, so the uniform
    distribution is the walk's stationary one, and it reaches all vectors from which knobs can go one by one to the
    cheapest policy. It starts from the projection of a random vector, which it has forgotten after `FORGETTING` sweeps;
    vectors that are `BETWEEN` sweeps apart resemble each other a little. A policy that several vectors encode (a rank
    that does not pay where few channels are left) is as many times likelier.
    """
    choices = [len(knob.choices) for knob in space.knobs]
    start = space.decode([int(rng.integers(count)) for count in choices])
    vector = space.encode(limits.project(start))
    sweeps = FORGETTING
    while True:
        for _ in range(sweeps):
            _sweep(space, limits, rng, vector, choices)
        sweeps = BETWEEN
        yield list(vector)


def _sweep(space: Space, limits: Limits, rng: np.random.Generator, vector: list[int], choices: list[int]) -> None:
    """Offer every knob of a vector one choice, in place."""
    for knob, level in zip(rng.permutation(len(vector)).tolist(), rng.random(len(vector)).tolist(), strict=True):
        now, offered = vector[knob], int(level * choices[knob])
        vector[knob] = offered
        if offered != now and not limits.feasible(space.decode(vector)):
            vector[knob] = now


def draw(space: Space, rng: np.random.Generator) -> list[int]:
    """Return a random vector of the space, feasible or not, of any tightness.

    Independent uniform draws are alike: with dozens of knobs the mean keep ratio, width and rank barely move from one
    to the next. That is what `Random` has to be, and nothing to learn from. So here each policy first draws how tight
    it is, separately for channels, bits and ranks: knob = floor(choices * u ** exponent), u uniform in [0, 1),
    log(exponent) uniform around 0.
    """
    kinds = sorted({knob.kind for knob in space.knobs})
    exponents = dict(zip(kinds, np.exp(math.log(SPREAD) * rng.uniform(-1, 1, len(kinds))), strict=True))
    levels = rng.random(len(space.knobs))
    return [
        int(len(knob.choices) * level ** exponents[knob.kind]) for knob, level in zip(space.knobs, levels, strict=True)
    ]
