"""The base class of agents that ask a sampler of Optuna."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.base import CHECKED, Agent, Estimates, Limits, Parameters, Score, stable_seed
from trimtab.agents.milp import Milp
from trimtab.agents.random import draw
from trimtab.agents.uniform import Uniform
from trimtab.errors import BadInput
from trimtab.spaces import Policy, Space

if TYPE_CHECKING:
    from trimtab.agents.optuna_study import Study

__all__ = ["ModelParameters", "OptunaAgent", "OptunaParameters", "excess", "first_proposals", "ranked"]

#: Up to so many choices a knob is a categorical parameter.
FEW = 4


@dataclass(frozen=True, config=CHECKED)
class OptunaParameters(Parameters):
    """The parameters of every `OptunaAgent`: other agents make the `first` proposals."""

    first: int = Field(10, ge=0)


@dataclass(frozen=True, config=CHECKED)
class ModelParameters(OptunaParameters):
    """The parameters of agents that model results: `startup` of them have to be known before the sampler is asked."""

    startup: int = Field(20, ge=1)


class OptunaAgent(Agent):
    """Starts with what plain and exact agents propose and with random policies, then asks a sampler of Optuna.

    What enters the study is the policy that was evaluated, not the raw proposal that was projected to it. Its
    violations, measured ones where there are any, are one constraint: their sum, or, where all budgets are met, the
    smallest slack. A told policy outside the space's choices (a warm start from elsewhere) cannot be modelled and is
    only remembered as known. The sampler is fresh for every proposal, so that there is no sampler state to save.
    """

    #: What Optuna optimises.
    directions: ClassVar[tuple[str, ...]] = ("maximize",)

    takes: ClassVar[type[Parameters]] = ModelParameters

    def _start(self) -> None:
        self._first: list[Policy] | None = None

    @cached_property
    def _study(self) -> Study:
        from trimtab.agents.optuna_study import Study  # here, so that importing the agents stays cheap

        return Study(self.directions, self._distributions())

    @property
    def startup(self) -> int:
        """Results that must be known before the sampler is asked."""
        return int(self.parameters.startup)

    @abstractmethod
    def _sample(self, seed: int) -> list[int]:
        """Return a vector of the space, by the sampler; at least `startup` results are known."""

    def _distributions(self) -> dict[str, Any]:
        """Return the parameters; by default every knob is one, its value the index of a choice."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        # All choices are in order, but among few the order says little: the kernel of an integer parameter would smear
        # over all of them, and costs three times as much to sample.
        return {
            knob.name: CategoricalDistribution(tuple(range(len(knob.choices))))
            if len(knob.choices) <= FEW
            else IntDistribution(0, len(knob.choices) - 1)
            for knob in self.space.knobs
        }

    def _add(self, policy: Policy, vector: list[int], score: Score) -> None:
        """Put a result into the window."""
        self._study.add(self._params(vector), [score.accuracy], excess(score))

    def _params(self, vector: Sequence[int]) -> dict[str, int]:
        return {knob.name: index for knob, index in zip(self.space.knobs, vector, strict=True)}

    def _vector(self, params: Mapping[str, Any]) -> list[int]:
        return [int(params[knob.name]) for knob in self.space.knobs]

    def _propose(self, number: int) -> Policy | None:
        if number < self.parameters.first:
            if self._first is None:
                self._first = first_proposals(self.space, self.limits, self.seed, self.estimates, self.parameters.first)
            if number < len(self._first):
                return self._first[number]
        seed = stable_seed(self.seed, self.name, number)
        vector = draw(self.space, np.random.default_rng(seed))
        if number >= self.startup <= len(self._study.trials):
            vector = self._mixed(self._sample(seed), vector, seed)
        elif number % 2 == 0:
            vector = self._lean(vector, number // 2)
        return self.space.decode(vector)

    def _learn(self, policy: Policy, score: Score) -> None:
        try:
            vector = self.space.encode(policy)
        except BadInput:
            return
        self._add(policy, vector, score)

    def _lean(self, drawn: list[int], turn: int) -> list[int]:
        """Take the same narrow bits everywhere, no factorisation, and all channels or at least half of them.

        Narrow bits cost the least accuracy for what they save, so half of the start-up spends the budgets on channels.
        """
        vector = []
        for knob, own in zip(self.space.knobs, drawn, strict=True):
            last = len(knob.choices) - 1
            channels = last if turn % 2 == 0 else max(own, last // 2)
            # The widest of the narrow ones first: how narrow a network can become only a look at each will tell.
            bits = max(0, last - 1 - turn // 2 % max(last, 1))
            vector.append({"bits": bits, "form": last, "channels": channels}[knob.kind])
        return vector

    def _mixed(self, sampled: list[int], drawn: list[int], seed: int) -> list[int]:
        """Replace a share of the knobs by random ones, the larger the longer the sampler has only repeated itself."""
        share = self._repeats / self.retries
        chance = np.random.default_rng([seed, 1]).random(len(sampled))
        return [other if u < share else own for own, other, u in zip(sampled, drawn, chance, strict=True)]


def first_proposals(space: Space, limits: Limits, seed: int, estimates: Estimates | None, count: int) -> list[Policy]:
    """Return what other agents propose before they know any result: at most `count` feasible policies, each once.

    With estimates half of them are the additive model's optimum and others that may be it (`milp`), the other half
    uniform ones; without, all are uniform.
    """
    if estimates is None:
        return Uniform(space, limits, seed).ask(count)
    optima = Milp(space, limits, seed, estimates).ask(count // 2)
    uniform = Uniform(space, limits, seed).ask(count - count // 2)
    return list({policy.id: policy for policy in [*optima, *uniform]}.values())


def excess(score: Score) -> float:
    """Return the sum of the violations, or the largest violation, at most 0, where every budget is met."""
    violations = score.violations.values()
    return sum(v for v in violations if v > 0) or max(violations, default=-1.0)


def ranked(trials: Sequence[Any]) -> list[Any]:
    """Return trials from the best to the worst: those within the budgets first, by accuracy, then by their excess."""
    return sorted(trials, key=lambda trial: (max(trial.constraints["excess"], 0.0), -trial.values[0], trial.number))
