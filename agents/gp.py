"""Bayesian optimisation of a few levels that stand for all knobs, with a Gaussian process by Optuna."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from threadpoolctl import threadpool_limits

from trimtab.agents.base import CHECKED, Parameters, Score, stable_seed
from trimtab.agents.optuna_agent import ModelParameters, OptunaAgent, excess, ranked
from trimtab.agents.stages import stages
from trimtab.spaces import Policy
from trimtab.threads import torch_threads

__all__ = ["Gp", "GpParameters", "fitted_at"]

#: The process is fitted again when this share of results has come in since.
REFIT = 1 / 8


@dataclass(frozen=True, config=CHECKED)
class GpParameters(ModelParameters):
    """The parameters of `Gp`: so many `stages` of the network have a level for every kind of knob, and the process is
    fitted to at most `fitted` results, the best and the latest, half of each."""

    stages: int = Field(3, ge=1)
    fitted: int = Field(50, ge=4)


class Gp(OptunaAgent):
    """Decides by a Gaussian process how far each stage of the network goes in channels, bits and forms.

    Optuna's `GPSampler` (Matern kernel with a length scale per parameter, expected improvement weighted by the
    probability that the budgets are met: Gardner et al. 2014, PMLR 32) takes minutes per proposal where every knob is
    a parameter. So a stage, which is a run of layers of one spatial size, has one level for each kind of its knobs,
    their mean place between the first choice (0) and the last one (1). A told policy enters with the levels that it
    has, whoever proposed it; a level proposed is reached by moving the stage's knobs of the best policy told so far
    up or down together, the rounding being spread over them at random. So the process searches coarsely, around fine
    structure that other proposals found.

    A fit costs about half a second. It serves all proposals until 1/8 more results are told, which differ by their
    rounding: two of them with 20 results, some hundred with 1,000. What is fitted depends on the results
    told and not on when it was asked for.
    """

    name: ClassVar[str] = "gp"
    takes: ClassVar[type[Parameters]] = GpParameters

    def _start(self) -> None:
        super()._start()
        count = self.parameters.stages
        members = stages(self.space, count)
        self._names = [f"{kind} {stage}" for stage in range(count) for kind in ("channels", "bits", "form")]
        place = {knob: stage for stage, knobs in enumerate(members) for knob in knobs}
        knobs = [self._names.index(f"{knob.kind} {place[i]}") for i, knob in enumerate(self.space.knobs)]
        used = sorted(set(knobs))
        self._names = [self._names[i] for i in used]
        self._level_of = np.array([used.index(level) for level in knobs])
        self._spans = np.array([len(knob.choices) - 1 for knob in self.space.knobs])
        self._fit: tuple[int, NDArray[np.float64]] | None = None  # results fitted, and the levels proposed
        self._vectors: list[list[int]] = []  # of the study's trials

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import FloatDistribution

        return {name: FloatDistribution(0.0, 1.0) for name in self._names}

    def _add(self, policy: Policy, vector: list[int], score: Score) -> None:
        levels = self._levels(np.array(vector))
        self._study.add(dict(zip(self._names, levels.tolist(), strict=True)), [score.accuracy], excess(score))
        self._vectors.append(vector)

    def _levels(self, vector: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean place of every level's knobs, between 0 and 1."""
        return np.bincount(self._level_of, vector / self._spans) / np.bincount(self._level_of)

    def _sample(self, seed: int) -> list[int]:
        results = fitted_at(len(self._vectors), self.startup)
        if self._fit is None or self._fit[0] != results:
            self._fit = results, self._ask_process(results)
        best = np.array(self._vectors[ranked(self._study.trials)[0].number])
        moved = (self._fit[1] - self._levels(best))[self._level_of] * self._spans
        # Spread evenly over [0, 1), so that a level that moves by less than one choice moves some of its knobs.
        rounding = np.zeros(len(moved))
        for level, count in enumerate(np.bincount(self._level_of)):
            order = np.random.default_rng([seed, 2, level]).permutation(count)
            rounding[self._level_of == level] = (order + 0.5) / count
        return [int(choice) for choice in np.clip(np.floor(best + moved + rounding), 0, self._spans)]

    def _ask_process(self, results: int) -> NDArray[np.float64]:
        """Return the levels that a process fitted to the first so many results proposes."""
        from optuna.samplers import GPSampler

        trials, fitted = self._study.trials[:results], self.parameters.fitted
        best = ranked(trials)[: fitted // 2]
        others = {trial.number for trial in trials} - {trial.number for trial in best}
        latest = [trial for trial in trials if trial.number in others][-(fitted - len(best)) :]
        sampler = GPSampler(n_startup_trials=0, seed=stable_seed(self.seed, "gp fit", results))
        study = self._study.study(sampler, sorted([*best, *latest], key=lambda trial: trial.number))
        with torch_threads(1), threadpool_limits(1):
            values = self._study.sample(study)
        return np.array([values[name] for name in self._names])


def fitted_at(told: int, first: int) -> int:
    """Return how many of the results told a process is fitted to: `first` at least, then a share more every time."""
    results = first
    while (following := results + max(1, int(results * REFIT))) <= told:
        results = following
    return results
