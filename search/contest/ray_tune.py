"""A contest's trials on Ray Tune: one trial each, on one core, logged where users of Tune look for it.

Importing this module imports Ray; `pool.start_ray` comes first.
"""

from __future__ import annotations

import io
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from trimtab.search.contest.trial import Trial, run_trial
from trimtab.search.setup.setting import Setting

__all__ = ["run_trials"]

#: How often a trial whose worker died is begun again, from its journal.
RETRIES = 2


def run_trials(
    trials: Sequence[Trial],
    settings: Mapping[str, Setting],
    folder: Path,
    workers: int,
    told: Callable[[str, int], None],
) -> dict[Trial, str]:
    """Run trials, `workers` at a time; return why some failed.

    `settings` are by their budgets' names; `told` gets a trial's name and the number of its evaluations as they come.
    The first Ctrl-C ends all trials, and this function returns.
    """
    # Paths that a configuration gives are relative to where the command was started.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    shipped = {budget: setting.shipped() for budget, setting in settings.items()}
    name = partial(_name, {budget: setting.folder for budget, setting in settings.items()})
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable, settings=shipped, root=str(folder)), {"cpu": 1}),
        param_space={"trial": tune.grid_search([asdict(trial) for trial in trials])},
        tune_config=tune.TuneConfig(max_concurrent_trials=workers, trial_name_creator=name, trial_dirname_creator=name),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[_Told(told)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    # Standard output is for results.
    with _kept_handlers(), redirect_stdout(io.StringIO()):
        results = tuner.fit()
    return {Trial(**r.config["trial"]): _cause(r.error) for r in results if r.error is not None}


def _trainable(config: Mapping[str, Any], settings: Mapping[str, Setting], root: str) -> None:
    trial = Trial(**config["trial"])
    run_trial(trial, settings[trial.budget], Path(root), tune.report)


def _name(folders: Mapping[str, str], tuned: Any) -> str:
    trial = Trial(**tuned.config["trial"])
    return trial.name(folders[trial.budget])


class _Told(tune.Callback):  # type: ignore[misc]
    """Hands on how many evaluations a trial has; Tune pickles it with the experiment, and gets nothing of it."""

    def __init__(self, told: Callable[[str, int], None]) -> None:
        self.told = told

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self.told(str(trial), int(result["evaluations"]))


def _cause(error: BaseException) -> str:
    """The last line of a worker's error, without the colours of its traceback."""
    lines = [line for line in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Ray Tune ends early at the first Ctrl-C, and leaves its handlers behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
