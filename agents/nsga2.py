"""The whole front of latency against accuracy, by a genetic algorithm of Optuna."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.base import CHECKED, Parameters, Score
from trimtab.agents.optuna_agent import OptunaAgent, OptunaParameters, excess
from trimtab.spaces import Policy

__all__ = ["Nsga2", "Nsga2Parameters"]

#: Where Optuna's sampler looks for a trial's generation.
GENERATION = "NSGAIISampler:generation"


@dataclass(frozen=True, config=CHECKED)
class Nsga2Parameters(OptunaParameters):
    """The parameters of `Nsga2`: `population` policies are a generation, and parents of the next one."""

    population: int = Field(24, ge=2)


class Nsga2(OptunaAgent):
    """Breeds policies that none beats in accuracy and in the first budget's cost at once, spread along the front.

    NSGA-II (Deb et al. 2002, IEEE Transactions on Evolutionary Computation 6(2)), as Optuna's `NSGAIISampler` has it:
    parents are the best by constrained non-domination, then by crowding distance, of the last generation and its
    parents; children are uniform crossovers, each knob mutated with probability 1 / knobs. The objectives are the
    accuracy and the first budget's violation; violations of any budget are constraints.

    Result k (0, 1, ...) in the order told belongs to generation k // `population`, whoever proposed it, so telling
    again rebuilds every generation.
    """

    name: ClassVar[str] = "nsga2"
    directions: ClassVar[tuple[str, ...]] = ("maximize", "minimize")
    takes: ClassVar[type[Parameters]] = Nsga2Parameters

    def _start(self) -> None:
        super()._start()
        self._selected = 0  # the last generation whose parents are selected

    def _add(self, policy: Policy, vector: list[int], score: Score) -> None:
        violations = score.violations or self.limits.violations(policy)
        values = [score.accuracy, next(iter(violations.values()))]
        self._study.add(self._params(vector), values, excess(score), {GENERATION: self._generation})

    @property
    def startup(self) -> int:
        """Results that must be known before the sampler is asked: a generation."""
        return int(self.parameters.population)

    @property
    def _generation(self) -> int:
        return len(self._study.trials) // self.startup

    def _sample(self, seed: int) -> list[int]:
        from optuna.samplers import NSGAIISampler

        sampler = NSGAIISampler(population_size=self.parameters.population, seed=seed)
        study = self._study.study(sampler)
        # Selected in order and ahead of the sampling, parents come in the order of their numbers, however many
        # generations passed since the last ask (after a resume: all of them).
        for generation in range(self._selected + 1, self._generation + 1):
            sampler.get_parent_population(study, generation)
        self._selected = self._generation
        return self._vector(self._study.sample(study, {GENERATION: self._generation}))
