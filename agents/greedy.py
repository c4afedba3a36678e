"""Greedy shrinking: step by step the change that costs least error for what it saves."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from itertools import product
from typing import ClassVar

import numpy as np

from trimtab.agents.additive import CORRECTIONS, AdditiveModel, Floats, Integers, Planner, planner_of
from trimtab.agents.base import Agent, Score, stable_seed
from trimtab.errors import BadInput
from trimtab.spaces import Policy
from trimtab.spaces.numbers.formats import INT8

__all__ = ["Greedy", "shrink"]

#: What every step has to save, as a share of all that has to be saved: the schedules, in the order they are tried.
STEPS = (1 / 32, 1 / 16, 1 / 64, 1 / 8, 1 / 128, 1 / 4)

#: Savings below this are rounding.
TINY = 1e-12


class Greedy(Agent):
    """Shrinks the network step by step; each step takes the layer or group that costs least for a required saving.

    NetAdapt (Yang et al. 2018, arXiv:1804.03230, algorithm 1), with all budgets at once and every knob of the space.
    There each step is evaluated; here only what meets the budgets may be, so the steps before follow the estimates.
    The first proposals shrink by larger and smaller steps, from the network as given and from its int8 form; the
    following ones change the best told policy in one place, at random, and shrink what is over the budgets again.
    """

    name: ClassVar[str] = "greedy"
    needs_estimates: ClassVar[bool] = True

    def _start(self) -> None:
        self._best: tuple[float, list[int]] | None = None

    @cached_property
    def planner(self) -> Planner:
        """The additive model of errors and costs; made when first needed."""
        return planner_of(self.space, self.limits, self.estimates)  # type: ignore[arg-type]

    def _learn(self, policy: Policy, score: Score) -> None:
        feasible = all(violation <= 0 for violation in score.violations.values())
        if feasible and (self._best is None or score.accuracy > self._best[0]):
            with suppress(BadInput):  # one from elsewhere may be outside the space's choices
                self._best = score.accuracy, self.space.encode(policy)

    def _propose(self, number: int) -> Policy | None:
        schedules = list(product(STEPS, self._starts))
        if number < len(schedules):
            step, start = schedules[number]
            return self._fitted(start, step)
        if self._best is None:
            vector = np.array(self.space.encode(self._fitted(self._starts[0], STEPS[0])))
        else:
            vector = np.array(self._best[1])
        rng = np.random.default_rng(stable_seed(self.seed, self.name, number))
        for _ in range(1 + self._repeats):
            moves = self.planner.model.moves(vector)
            vector = moves[int(rng.integers(len(moves)))]
        return self._fitted(vector, STEPS[0])

    @cached_property
    def _starts(self) -> tuple[Integers, Integers]:
        int8 = self.space.encode(self.space.uniform(1.0, INT8))
        return self.planner.model.sizes - 1, np.array(int8)

    def _fitted(self, vector: Integers, step: float) -> Policy:
        """Shrink until the true limits are met, which the model knows only nearly."""
        allowed = self.planner.allowed
        for _ in range(CORRECTIONS):
            vector = shrink(self.planner.model, vector, allowed, step)
            policy = self.space.decode(vector.tolist())
            if self.limits.feasible(policy):
                break
            allowed = np.minimum(allowed, self.planner.corrected(policy, vector))
        return policy


def shrink(model: AdditiveModel, vector: Integers, allowed: Floats, step: float) -> Integers:
    """Return the vector after as many steps as it takes to come within allowed shares of the budgets, (B,).

    Each takes the change of one group or layer that adds least error per saving, of those that save at least `step`
    of the excess over the budgets at first, or the rest of it; where none does, half of that suffices. It stops where
    nothing saves anything.
    """
    error, over = _state(model, vector[None], allowed)
    required = step * over[0]
    while over[0] > TINY:
        moves = model.moves(vector)
        errors, left = _state(model, moves, allowed)
        saved = over[0] - left
        if saved.max(initial=0.0) <= TINY:
            break
        enough = min(required, over[0] - TINY, saved.max())
        price = np.where(saved >= enough, np.maximum(errors - error[0], TINY) / np.maximum(saved, TINY), np.inf)
        best = int(price.argmin())
        vector, error, over = moves[best], errors[best : best + 1], left[best : best + 1]
    return vector


def _state(model: AdditiveModel, vectors: Integers, allowed: Floats) -> tuple[Floats, Floats]:
    """Return the errors of vectors and their excess over all budgets together, (N,) each."""
    totals = model.totals(vectors)
    return totals[:, 0], np.maximum(totals[:, 1:] - allowed, 0).sum(axis=1)
