"""A copy of a run in any storage of Optuna, so that its dashboard opens every study; the journal stays the truth."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

from trimtab.errors import BadInput, TrimtabError
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import read_journal
from trimtab.search.loop.loop import Memory
from trimtab.search.progress import Progress
from trimtab.search.setup.config import check_storage
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting, recall_setting
from trimtab.spaces.space import Knob, Space

__all__ = ["OptunaExport", "export_study", "optuna_export_for"]


class OptunaExport:
    """Writes evaluations into the storage at `url`: one study "`run`/agent" per agent, one trial per evaluation.

    Trials are in the order in which the agent was told, with the accuracy as the value, the knobs as parameters and
    the budgets as constraints. What is there already is not written again. One process at a time may write a study.
    """

    def __init__(self, url: str, run: str, space: Space, base_seconds: float) -> None:
        self.url, self.run, self.space, self.base_seconds = check_storage(url), run, space, base_seconds
        self._studies: dict[str, tuple[Any, int]] = {}  # agent -> study, and how many trials it has
        self._storage: Any = None
        self._distributions: dict[str, Any] = {}
        self._failed = False

    def write(self, agent: str, evaluations: Sequence[Evaluation]) -> int:
        """Add the evaluations, of all that an agent was told so far, that its study lacks, and return their number.

        A storage that fails, or that holds another run's study of this name, is a `TrimtabError`.
        """
        try:
            study, there = self._studies.get(agent) or self._open(agent, evaluations)
            for evaluation in evaluations[there:]:
                study.add_trial(self._trial(evaluation))
                self._studies[agent] = study, self._studies[agent][1] + 1
        except TrimtabError:
            raise
        except Exception as error:  # a file, a database, its driver or Optuna's reading of what lies there
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TrimtabError(f"the Optuna storage {self.url} failed: {reason}") from error
        return max(len(evaluations) - there, 0)

    def follow(self, agent: str, evaluations: Sequence[Evaluation], progress: Progress) -> None:
        """Write as `write` does while the run goes on; a storage that fails is said once, and is left alone then."""
        if self._failed:
            return
        try:
            self.write(agent, evaluations)
        except TrimtabError as error:
            self._failed = True
            progress.line(f"{error}; the run goes on, and `trimtab optuna-export` writes what is missing later")

    def _open(self, agent: str, evaluations: Sequence[Evaluation]) -> tuple[Any, int]:
        import optuna

        from trimtab.agents.optuna_study import quiet

        if self._storage is None:
            self._storage = _connect(self.url)
            self._distributions = {knob.name: _distribution(knob) for knob in self.space.knobs}
        name = f"{self.run}/{agent}"
        with quiet():
            study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        there = [trial.user_attrs.get("policy") for trial in study.get_trials(deepcopy=False)]
        known = [evaluation.policy.id for evaluation in evaluations]
        common = min(len(there), len(known))
        if there[:common] != known[:common]:
            raise TrimtabError(f"the study {name!r} in {self.url} is another run's: name another storage")
        self._studies[agent] = study, len(there)
        return study, len(there)

    def _trial(self, evaluation: Evaluation) -> Any:
        import optuna

        vector = self.space.encode(evaluation.policy)
        chosen = {knob.name: knob.choices[i] for knob, i in zip(self.space.knobs, vector, strict=True)}
        seconds = sum(evaluation.seconds.values())
        trial = optuna.trial.create_trial(
            value=evaluation.accuracy,
            params={name: c if isinstance(c, int) else str(c) for name, c in chosen.items()},
            distributions=self._distributions,
            constraints=dict(evaluation.violations),
            user_attrs={**self._attributes(evaluation), "seconds": seconds},
        )
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=seconds)
        return trial

    def _attributes(self, evaluation: Evaluation) -> dict[str, Any]:
        cost, latency = evaluation.cost, evaluation.latency
        found: dict[str, Any] = {
            "policy": evaluation.policy.id,
            "loss": evaluation.loss,
            "predicted latency": cost.latency,
            "size": cost.size,
            "macs": cost.macs,
            "memory": cost.memory,
        }
        if latency is not None:
            found |= {"measured latency": latency.ratio * self.base_seconds}
        return found


def export_study(problem: Problem, folder: Path, url: str) -> dict[str, int]:
    """Write the journal in a run's folder, finished or still growing, into a storage; return trials written by study.

    `problem` is the one of the run's configuration. A run that has not begun, or a URL of no known form, is a
    `BadInput`, a storage that fails a `TrimtabError`.
    """
    records = read_journal(folder / "journal")
    found = next((record.data for record in records if record.kind == "setting"), None)
    if found is None:
        raise BadInput(f"the run in {folder} has not begun to search: there is nothing to export yet")
    setting, memory = recall_setting(problem, found), Memory(records)
    baseline = setting.baseline
    export = OptunaExport(url, folder.absolute().name, setting.problem.space, baseline.base.latency)
    written = {}
    for agent in memory.events:
        policies = [policy.id for batch in memory.batches(agent) for policy in batch.policies]
        done = [
            memory.measured_evaluation(name, baseline.limit) for name in takewhile(memory.judged.__contains__, policies)
        ]
        written[f"{export.run}/{agent}"] = export.write(agent, done)
    return written


def optuna_export_for(setting: Setting, folder: Path) -> OptunaExport | None:
    """Return the export that a run's configuration asks for."""
    url, space = setting.problem.config.storage, setting.problem.space
    return None if url is None else OptunaExport(url, folder.absolute().name, space, setting.baseline.base.latency)


def _connect(url: str) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if url.startswith("journal:"):
        return optuna.storages.JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    return optuna.storages.RDBStorage(url)


def _distribution(knob: Knob) -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    counts = [choice for choice in knob.choices if isinstance(choice, int)]
    if counts:
        return IntDistribution(min(counts), max(counts))
    return CategoricalDistribution([str(choice) for choice in knob.choices])
