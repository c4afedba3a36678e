"""A study of Optuna in memory, for samplers that are asked directly. Imported late, for it imports Optuna."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

__all__ = ["Study", "quiet"]

STUDY = "trimtab"


class Study:
    """Finished trials, of which every sampler sees those that it is shown, in the order of their numbers.

    Samplers are called directly: a trial from `study.ask` would have to be thrown away, for what is evaluated is its
    projection, and dead trials would slow every later ask down.
    """

    def __init__(self, directions: Sequence[str], distributions: Mapping[str, BaseDistribution]) -> None:
        self.trials: list[FrozenTrial] = []
        self._distributions = dict(distributions)
        self._storage = _Shown()
        with quiet():
            optuna.create_study(storage=self._storage, study_name=STUDY, directions=list(directions))

    def add(
        self,
        params: Mapping[str, Any],
        values: Sequence[float],
        excess: float,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Remember a finished trial; `attributes` are its system attributes."""
        trial = optuna.trial.create_trial(
            values=values,
            params=dict(params),
            distributions=self._distributions,
            constraints={"excess": excess},
            system_attrs=dict(attributes or {}),
        )
        trial.number = trial._trial_id = len(self.trials)
        self.trials.append(trial)

    def study(self, sampler: BaseSampler, shown: list[FrozenTrial] | None = None) -> optuna.Study:
        """Return a study in which a sampler finds the trials shown, all of them by default."""
        self._storage.shown = self.trials if shown is None else shown
        return optuna.load_study(storage=self._storage, study_name=STUDY, sampler=sampler)

    def sample(self, study: optuna.Study, attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a value for every parameter, drawn by the study's sampler for a trial with these attributes."""
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=dict(attributes or {}))
        with quiet():
            values: dict[str, Any] = study.sampler.sample_relative(study, trial, self._distributions)
        for name, distribution in self._distributions.items():
            if name not in values:
                values[name] = study.sampler.sample_independent(study, trial, name, distribution)
        return values


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna say nothing but errors in a block."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class _Shown(InMemoryStorage):  # type: ignore[misc]  # Optuna is untyped to mypy
    shown: list[FrozenTrial]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep no note of a trial that is sampled for: it is in no study."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self.shown if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials
