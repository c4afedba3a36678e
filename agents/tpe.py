"""Tree-structured Parzen estimator, by Optuna."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from trimtab.agents.base import Agent, Estimates, Limits, Score, stable_seed
from trimtab.agents.random import draw
from trimtab.errors import BadInput
from trimtab.spaces import Policy, Space

__all__ = ["Tpe"]

#: Proposals that do not come from the estimator, and results that must be known before it is asked.
STARTUP = 20

#: Candidates among which the estimator takes the one of the largest expected improvement.
CANDIDATES = 24

#: Up to so many choices a knob is a categorical parameter.
FEW = 3

STUDY = "trimtab"


class Tpe(Agent):
    """Models where the good policies are, against all others, and proposes what is likelier among the good ones.

    Bergstra et al. 2011 ("Algorithms for hyper-parameter optimization"), as Optuna's `TPESampler` has it; measured
    violations of budgets rank a policy behind all that have none. That is simpler than one more density per budget
    (c-TPE, Watanabe & Hutter 2023, arXiv:2211.14411), and enough here, where proposals are projected already.

    Every knob is one parameter. What enters the model is the policy that was evaluated, not the raw proposal that was
    projected to it. A told policy outside the space's choices (a warm start from elsewhere) cannot be modelled and is
    only remembered as known.
    """

    name: ClassVar[str] = "tpe"

    def __init__(self, space: Space, limits: Limits, seed: int, estimates: Estimates | None = None) -> None:
        super().__init__(space, limits, seed, estimates)
        import optuna  # here, so that importing the agents stays cheap

        self._optuna: Any = optuna
        self._parameters = {knob.name: self._distribution(len(knob.choices)) for knob in space.knobs}
        self._storage = optuna.storages.InMemoryStorage()
        self._told = 0
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            optuna.create_study(storage=self._storage, study_name=STUDY, direction="maximize")
        finally:
            optuna.logging.set_verbosity(verbosity)

    def _distribution(self, choices: int) -> Any:
        # All choices are in order, but among two or three the order says little: the kernel of an integer parameter
        # would smear over all of them, and costs three times as much to sample.
        if choices <= FEW:
            return self._optuna.distributions.CategoricalDistribution(tuple(range(choices)))
        return self._optuna.distributions.IntDistribution(0, choices - 1)

    def _propose(self, number: int) -> Policy | None:
        seed = stable_seed(self.seed, self.name, number)
        vector = draw(self.space, np.random.default_rng(seed))
        if number >= STARTUP and self._told >= STARTUP:
            vector = self._mixed(self._sample(seed), vector, seed)
        elif number % 2 == 0:
            vector = self._lean(vector, number // 2)
        return self.space.decode(vector)

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
        """Replace a share of the knobs by random ones, the larger the longer the model has only repeated itself."""
        share = self._repeats / self.retries
        chance = np.random.default_rng([seed, 1]).random(len(sampled))
        return [other if u < share else own for own, other, u in zip(sampled, drawn, chance, strict=True)]

    def _learn(self, policy: Policy, score: Score) -> None:
        try:
            vector = self.space.encode(policy)
        except BadInput:
            return
        trial = self._optuna.trial.create_trial(
            value=score.accuracy,
            params=dict(zip(self._parameters, vector, strict=True)),
            distributions=self._parameters,
            constraints=dict(score.violations),
        )
        self._study(0).add_trial(trial)
        self._told += 1

    def _sample(self, seed: int) -> list[int]:
        # The sampler is called directly: a trial from `study.ask` would have to be thrown away, for what is evaluated
        # is its projection, and dead trials would slow every later ask down.
        trial = self._optuna.trial.create_trial(state=self._optuna.trial.TrialState.RUNNING)
        study = self._study(seed)
        values = study.sampler.sample_relative(study, trial, self._parameters)
        return [int(values[name]) for name in self._parameters]

    def _study(self, seed: int) -> Any:
        """A view of the stored results with a fresh sampler, so that there is no sampler state to save."""
        # Multivariate: on two toys (22 knobs, 120 evaluations, 8 seeds) as good as one estimator per knob, at a tenth
        # of its cost.
        sampler = self._optuna.samplers.TPESampler(
            n_startup_trials=0,
            n_ei_candidates=CANDIDATES,
            seed=seed,
            multivariate=True,
            constant_liar=False,
        )
        return self._optuna.load_study(storage=self._storage, study_name=STUDY, sampler=sampler)
