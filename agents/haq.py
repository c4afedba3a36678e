"""Reinforcement learning of bit widths, after HAQ (Wang et al. 2019, arXiv:1811.08886)."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.actor_critic import ActorCritic
from trimtab.agents.amc import Episodic, EpisodicParameters
from trimtab.agents.base import CHECKED, Parameters, stable_seed
from trimtab.agents.decision_process import Prices, choice_of, describe_layers, level_of
from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.graph import Array
from trimtab.spaces import Policy
from trimtab.spaces.factorisation import Geometry

__all__ = ["Haq", "HaqParameters"]


@dataclass(frozen=True, config=CHECKED)
class HaqParameters(EpisodicParameters):
    """The parameters of `Haq`: its exploration decays more slowly."""

    decay: float = Field(0.99, gt=0, le=1)


class Haq(Episodic):
    """Decides the bits of every layer and leaves channels and forms as they are.

    The state is that of HAQ's section 3.1: what the untouched layer looks like, its weights, whether it is depthwise,
    and the last action. Weights and activations of a layer are one decision, so each layer is one step. A policy that
    exceeds a budget gets narrower bits, one layer and one choice at a time, from the last layer to the first and around
    again, until the budgets are met (section 3.2).
    """

    name: ClassVar[str] = "haq"
    decides: ClassVar[tuple[str, ...]] = ("bits",)
    takes: ClassVar[type[Parameters]] = HaqParameters

    def _start(self) -> None:
        super()._start()
        layers = {op.name: number for number, op in enumerate(self.space.network.layers)}
        self._knobs = [i for i, knob in enumerate(self.space.knobs) if knob.kind == "bits"]
        self._layers = [layers[self.space.knobs[i].target] for i in self._knobs]
        self._knobs = [knob for _, knob in sorted(zip(self._layers, self._knobs, strict=True))]
        self._layers.sort()
        if not self._knobs:
            raise BadInput(f"agent {self.name!r} decides bits only, and this space offers no choice of them")

    @cached_property
    def learner(self) -> ActorCritic:
        """The actor and its critic."""
        seed = stable_seed(self.seed, f"{self.name} learns", 0)
        return ActorCritic(self.algorithm, self._shapes.shape[1] + 1, 1, len(self._knobs), seed)

    @cached_property
    def _prices(self) -> Prices:
        return Prices(self.space, self.limits)

    @cached_property
    def _shapes(self) -> Array:
        """What the state says of each step's layer, (steps, 10), in parts of the largest."""
        layers = [self.space.network.layers[number] for number in self._layers]
        weights = np.array([Geometry.of(op).weights for op in layers], dtype=np.float64)
        depthwise = np.array([op.is_depthwise for op in layers], dtype=np.float64)
        return np.column_stack([describe_layers(self.space, self._layers), weights / weights.max(), depthwise])

    def _state(self, step: int, last: float) -> Array:
        shape = self._shapes[min(step, len(self._knobs) - 1)]
        return np.append(shape, last).astype(np.float32)

    def _draw(self, rng: np.random.Generator) -> Policy:
        return self._narrowed(rng.random(len(self._knobs)).tolist())

    def _roll(self, rng: np.random.Generator, deviation: float) -> Policy:
        levels = [1.0]
        for step in range(len(self._knobs)):
            levels += self._explore(self._state(step, levels[-1]), deviation, rng).tolist()
        return self._narrowed(levels[1:])

    def _replay(self, policy: Policy) -> tuple[Array, Array] | None:
        try:
            vector = self.space.encode(policy)
        except BadInput:
            return None
        sizes = [len(knob.choices) for knob in self.space.knobs]
        if any(vector[i] != sizes[i] - 1 for i in range(len(sizes)) if i not in set(self._knobs)):
            return None
        levels = [level_of(vector[knob], sizes[knob]) for knob in self._knobs]
        states = [self._state(step, last) for step, last in enumerate([1.0, *levels])]
        return np.stack(states), np.array(levels)[:, None]

    def _narrowed(self, levels: list[float]) -> Policy:
        """Return the policy of some actions, its bits narrowed until every budget is met."""
        vector = [len(knob.choices) - 1 for knob in self.space.knobs]
        for knob, level in zip(self._knobs, levels, strict=True):
            vector[knob] = choice_of(level, len(self.space.knobs[knob].choices))
        while not self._feasible(vector):
            knobs = [knob for knob in reversed(self._knobs) if vector[knob] > 0]
            if not knobs:
                raise InfeasibleBudget(self._why_infeasible(self.space.decode(vector)))
            for knob in knobs:
                vector[knob] -= 1
                if self._feasible(vector):
                    break
        return self.space.decode(vector)

    def _feasible(self, vector: list[int]) -> bool:
        """Whether every budget is met; what the shares alone refuse is not priced as a whole."""
        total = self._prices.total(self._prices.layers(vector))
        return bool((total <= 1).all()) and self.limits.feasible(self.space.decode(vector))

    def _why_infeasible(self, narrowest: Policy) -> str:
        over = {name: 1 + excess for name, excess in self.limits.violations(narrowest).items() if excess > 0}
        reached = ", ".join(f"{name} is {share:.3g} times its budget" for name, share in over.items())
        return (
            f"agent {self.name!r} decides bits only, and bits alone cannot meet the budgets: with the narrowest bits "
            f"in every layer {reached}; allow more, offer narrower bits, or take an agent that decides channels too"
        )
