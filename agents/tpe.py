"""Tree-structured Parzen estimator, by Optuna."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.base import CHECKED, Parameters
from trimtab.agents.optuna_agent import ModelParameters, OptunaAgent, ranked

__all__ = ["Tpe", "TpeParameters"]


@dataclass(frozen=True, config=CHECKED)
class TpeParameters(ModelParameters):
    """The parameters of `Tpe`.

    Of so many `candidates` the estimator takes the one of the largest expected improvement. It sees at most `shown`
    results at a time, of which Optuna calls a tenth good.
    """

    candidates: int = Field(24, ge=1)
    shown: int = Field(100, ge=20)


class Tpe(OptunaAgent):
    """Models where the good policies are, against all others, and proposes what is likelier among the good ones.

    Bergstra et al. 2011 ("Algorithms for hyper-parameter optimization"), as Optuna's `TPESampler` has it; violations
    of budgets rank a policy behind all that have none. That is simpler than one more density per budget (c-TPE,
    Watanabe & Hutter 2023, arXiv:2211.14411), and enough here, where proposals are projected already.

    Every knob is one parameter. From `shown` results on, the estimator sees the best tenth of so many, which is all
    that it ever calls good, and a random sample of the others, new for every proposal: an ask takes the same time
    however many results there are.
    """

    name: ClassVar[str] = "tpe"
    takes: ClassVar[type[Parameters]] = TpeParameters

    def _sample(self, seed: int) -> list[int]:
        from optuna.samplers import TPESampler

        # Multivariate: on two toys (22 knobs, 120 evaluations, 8 seeds) as good as one estimator per knob, at a tenth
        # of its cost.
        sampler = TPESampler(
            n_startup_trials=0,
            n_ei_candidates=self.parameters.candidates,
            seed=seed,
            multivariate=True,
            constant_liar=False,
        )
        return self._vector(self._study.sample(self._study.study(sampler, self._shown(seed))))

    def _shown(self, seed: int) -> list[Any]:
        trials, shown = self._study.trials, self.parameters.shown
        if len(trials) <= shown:
            return trials
        order = ranked(trials)
        good, others = order[: shown // 10], order[shown // 10 :]
        chosen = np.random.default_rng([seed, 2]).choice(len(others), shown - len(good), replace=False)
        return sorted(good + [others[i] for i in chosen], key=lambda trial: trial.number)
