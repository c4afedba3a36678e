"""Regularised evolution: the youngest results breed, and the best of a few of them becomes a parent."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.base import CHECKED, Agent, Parameters, Score, stable_seed
from trimtab.agents.milp import Milp
from trimtab.agents.random import draw
from trimtab.agents.stages import stages
from trimtab.agents.uniform import Uniform
from trimtab.errors import BadInput
from trimtab.spaces import Policy, Space

__all__ = ["Evolution", "EvolutionParameters"]

#: The most knobs of a channel group that change in a child.
CHANGES = 3


@dataclass(frozen=True, config=CHECKED)
class EvolutionParameters(Parameters):
    """The parameters of `Evolution`.

    The youngest `population` results may become parents, the best of `tournament` of them does: Real et al. take 100
    and 25 for 20,000 evaluations, a search here has a few hundred. The first `startup` proposals are nobody's children:
    `founders` by another agent, then random ones. The share `crossed` of the children has two parents.
    """

    population: int = Field(32, ge=2)
    tournament: int = Field(8, ge=1)
    startup: int = Field(16, ge=0)
    founders: int = Field(8, ge=0)
    crossed: float = Field(0.5, ge=0, le=1)

    def __post_init__(self) -> None:
        if self.tournament > self.population:
            raise ValueError(f"a tournament of {self.tournament} needs a population of as many, not {self.population}")


class Evolution(Agent):
    """Breeds policies: mutation along channel groups, crossover by stages, aging selection.

    Regularised evolution (Real et al. 2019, arXiv:1802.01548): a parent is the best of a few of the youngest results,
    and what has grown old is forgotten, however good it was. Here no generation waits for another: every proposal
    breeds from the results told so far, so many can be in flight.

    A mutation takes one channel group, and moves some of its channels, and the bits and forms of the layers that read
    or write them, by a step or few. A crossover takes every stage (consecutive layers of one spatial size) whole from
    one parent or the other. Children that do not fit are projected. The founders are what `milp` proposes first where
    there are estimates, otherwise what `uniform` does.
    """

    name: ClassVar[str] = "evolution"
    takes: ClassVar[type[Parameters]] = EvolutionParameters

    def _start(self) -> None:
        self._population: deque[tuple[tuple[float, float], list[int]]] = deque(maxlen=self.parameters.population)
        self._genes = _genes(self.space)
        self._stages = stages(self.space)

    @cached_property
    def _founders(self) -> list[Policy]:
        adviser = Uniform if self.estimates is None else Milp
        return adviser(self.space, self.limits, self.seed, self.estimates).ask(self.parameters.founders)

    def _propose(self, number: int) -> Policy | None:
        own = self.parameters
        if number < own.founders and number < len(self._founders):
            return self._founders[number]
        rng = np.random.default_rng(stable_seed(self.seed, self.name, number))
        if number < own.startup or len(self._population) < own.tournament:
            return self.space.decode(draw(self.space, rng))
        child = self._parent(rng)
        if rng.random() < own.crossed:
            child = self._crossed(child, self._parent(rng), rng)
        # A child that is known already is mutated once more than the one before it.
        for _ in range(1 + self._repeats):
            self._mutate(child, rng)
        return self.space.decode(child)

    def _learn(self, policy: Policy, score: Score) -> None:
        try:
            vector = self.space.encode(policy)
        except BadInput:
            return  # a warm start from elsewhere: not in this space's choices
        excess = sum(violation for violation in score.violations.values() if violation > 0)
        self._population.append(((-excess, score.accuracy), vector))

    def _parent(self, rng: np.random.Generator) -> list[int]:
        among = rng.choice(len(self._population), self.parameters.tournament, replace=False)
        return list(max(self._population[int(i)] for i in among)[1])

    def _crossed(self, one: list[int], other: list[int], rng: np.random.Generator) -> list[int]:
        child = list(one)
        for stage, from_other in zip(self._stages, rng.random(len(self._stages)) < 0.5, strict=True):
            for knob in stage if from_other else ():
                child[knob] = other[knob]
        return child

    def _mutate(self, vector: list[int], rng: np.random.Generator) -> None:
        gene = self._genes[int(rng.integers(len(self._genes)))]
        count = int(rng.integers(min(len(gene), CHANGES))) + 1
        for knob in rng.choice(gene, count, replace=False).tolist():
            vector[knob] = _moved(vector[knob], len(self.space.knobs[knob].choices), rng)


def _moved(choice: int, choices: int, rng: np.random.Generator) -> int:
    """Return another choice, the nearer ones twice as likely as those one step further."""
    distances = np.abs(np.arange(choices) - choice)
    weights = np.where(distances > 0, 0.5**distances, 0.0)
    return int(rng.choice(choices, p=weights / weights.sum()))


def _genes(space: Space) -> list[list[int]]:
    """Return which knobs mutate together: a group's channels with the bits and forms of all layers that have them.

    Layers whose channels are no knob's make a gene each.
    """
    channels = {i: [i] for i, knob in enumerate(space.knobs) if knob.kind == "channels"}
    alone = []
    for scope in space.scopes.values():
        own = [i for i in scope if i not in channels]
        shared = [i for i in scope if i in channels]
        for group in shared:
            channels[group] += own
        if own and not shared:
            alone.append(own)
    return [*channels.values(), *alone]
