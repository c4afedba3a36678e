"""Random search: the baseline that every agent has to beat at the same number of evaluations."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from trimtab.agents.base import Agent, stable_seed
from trimtab.spaces import Policy, Space

__all__ = ["Random", "draw"]

#: A policy's exponents are drawn between 1 / SPREAD and SPREAD.
SPREAD = 6.0


class Random(Agent):
    """Draws every knob at random and projects the policy into the limits (Bergstra & Bengio 2012, JMLR 13)."""

    name: ClassVar[str] = "random"

    def _propose(self, number: int) -> Policy | None:
        rng = np.random.default_rng(stable_seed(self.seed, self.name, number))
        return self.space.decode(draw(self.space, rng))


def draw(space: Space, rng: np.random.Generator) -> list[int]:
    """Return a random vector of the space.

    Independent uniform draws would make all policies alike: with dozens of knobs the mean keep ratio, width and rank
    barely move from one policy to the next. So each policy first draws how tight it is, separately for channels,
    bits and ranks: knob = floor(choices * u ** exponent), u uniform in [0, 1), log(exponent) uniform around 0.
    """
    kinds = sorted({knob.kind for knob in space.knobs})
    exponents = dict(zip(kinds, np.exp(math.log(SPREAD) * rng.uniform(-1, 1, len(kinds))), strict=True))
    levels = rng.random(len(space.knobs))
    return [
        int(len(knob.choices) * level ** exponents[knob.kind]) for knob, level in zip(space.knobs, levels, strict=True)
    ]
