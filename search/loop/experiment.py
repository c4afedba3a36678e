"""An experiment: settings that are searched in one folder, whose journal remembers everything.

A search is an experiment with one setting; a contest has many. Both begin, and are gone on with, here.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import BadInput
from trimtab.evaluators.engines import ENGINES, EXPORTED, cpu_name
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.price.table import LatencyTable
from trimtab.files import check_folder, write_text
from trimtab.search.loop.candidates import CandidateFolder
from trimtab.search.loop.journal import Journal, Record
from trimtab.search.loop.verify import Verifier
from trimtab.search.progress import Progress
from trimtab.search.setup.baseline import ROUNDS
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting, bench_of, budget_name, engine_of, measure_setting, recall_setting

__all__ = ["Experiment", "begin", "prepare_folder"]

Kind = Literal["search", "contest"]

#: Keys of the configuration that may differ when an experiment is gone on with.
CHANGEABLE: Mapping[Kind, frozenset[str]] = {
    "search": frozenset({"workers", "trials", "time_limit", "storage", "finish"}),
    "contest": frozenset({"workers", "trials", "time_limit", "storage", "finish", "agent", "baselines", "budgets"}),
}

#: How often proposals are measured before it begins. A search measures what becomes the best, too.
PROPOSED: Mapping[Kind, int] = {"search": 1, "contest": ROUNDS}


@dataclass(frozen=True, eq=False)
class Experiment:
    """Settings, measured, and the folder and open journal of their searches. `benches` are by the settings' budgets."""

    folder: Path
    journal: Journal
    settings: tuple[Setting, ...]
    table: LatencyTable
    benches: Mapping[str, LatencyBench]

    @cached_property
    def candidates(self) -> CandidateFolder:
        """The finished networks."""
        return CandidateFolder(self.folder)

    @cached_property
    def verifier(self) -> Verifier:
        """The verification of what was found."""
        return Verifier(self.journal, self.candidates)


def prepare_folder(folder: Path, resume: bool) -> None:
    """Check that an experiment may be written to (or resumed from) a folder, without creating it."""
    if resume and not any((folder / name).is_file() for name in ("journal", "config.yaml")):
        raise BadInput(f"there is no run to resume in {folder}: it has no journal")
    if not folder.exists():
        check_folder(folder)
    elif not folder.is_dir():
        raise BadInput(f"{folder} is a file: choose another --out, a folder")
    elif not resume and any(folder.iterdir()):
        raise BadInput(f"{folder} exists already: choose another --out, or pass --resume to go on with the run in it")


@contextmanager
def begin(
    kind: Kind,
    problem: Problem,
    budgets: Sequence[Mapping[str, Any]],
    agents: Sequence[str],
    folder: Path,
    progress: Progress,
    resume: bool,
) -> Iterator[Experiment]:
    """Begin an experiment under some budgets, or go on with it: what its journal holds is not measured again.

    What `agents` propose first is measured too, so that they do not settle where the latency table is too fast.

    An impossible budget is an `InfeasibleBudget`, and leaves no folder.
    """
    prepare_folder(folder, resume)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / "journal")) if resume else None
        known = {} if journal is None else _recorded_settings(kind, problem, journal)
        table = LatencyTable(engine_of(problem), problem.space)
        benches: dict[str, LatencyBench] = {}
        settings: list[Setting] = []
        for each in budgets:
            under = problem.under(each)
            name = budget_name(under)
            benches[name] = bench_of(under)
            if name in known:
                settings.append(recall_setting(under, known[name]))
                continue
            if len(budgets) > 1:
                progress.line(f"budget {name}")
            link = settings[0].baseline.link if settings else None
            settings.append(measure_setting(under, agents, table, benches[name], progress, link, PROPOSED[kind]))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", problem.config.to_yaml())
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror}") from error
        journal = journal or stack.enter_context(Journal(folder / "journal"))
        if not journal.records():
            journal.append("experiment", _identity(kind, problem))
        for setting in settings:
            if setting.budget not in known:
                journal.append("setting", setting.to_json())
        yield Experiment(folder, journal, tuple(settings), table, benches)


def _recorded_settings(kind: Kind, problem: Problem, journal: Journal) -> dict[str, dict[str, Any]]:
    """Return the settings in the journal of an interrupted experiment by their budgets; another problem's is a
    `BadInput`."""
    records = journal.records()
    if not records:
        return {}
    _check_same(kind, problem, records[0], journal.path.parent)
    return {record.data["budget"]: record.data for record in records if record.kind == "setting"}


def _check_same(kind: Kind, problem: Problem, record: Record, folder: Path) -> None:
    if record.kind != "experiment":
        raise BadInput(
            f"the journal in {folder} is of an older trimtab, which measured otherwise: it cannot be gone on with; "
            "start again, in another folder"
        )
    if record.data["of"] != kind:
        raise BadInput(f"the journal in {folder} is of a {record.data['of']}, not of a {kind}")
    now = _identity(kind, problem)
    for key, what in (("network", "network"), ("weights", "network's weights"), ("config", "configuration")):
        new, old = (_asked(data[key]) for data in (now, record.data))
        if json.dumps(new, sort_keys=True) != json.dumps(old, sort_keys=True):
            raise BadInput(f"the {what} is not the one that the {kind} in {folder} was started with")


def _asked(value: Any) -> Any:
    """A configuration without the keys that ask for nothing, which an older record may lack, and without the places of
    its files: they may have moved, and the weights are compared themselves."""
    if not isinstance(value, dict):
        return value
    places = {"data": "root", "network": "checkpoint"}
    kept = {key: each for key, each in value.items() if each is not None}
    for name, place in places.items():
        if isinstance(kept.get(name), dict):
            kept[name] = {key: each for key, each in kept[name].items() if key != place and each is not None}
    return kept


def _identity(kind: Kind, problem: Problem) -> dict[str, Any]:
    """What has to be the same for an experiment to be gone on with, and what is good to know later."""
    network = problem.space.network
    config: Collection[str] = CHANGEABLE[kind]
    return {
        "of": kind,
        "network": network.fingerprint(),
        "weights": network.weights_hash(),
        "config": problem.config.model_dump(mode="json", by_alias=True, exclude=set(config)),
        "engine": engine_of(problem).signature,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _packages(problem)},
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _packages(problem: Problem) -> list[str]:
    """The packages whose versions say what a run is made with."""
    engines = (problem.config.engine.name, problem.config.accuracy_engine, *EXPORTED)
    return sorted({"trimtab", "torch", "optuna", *(ENGINES[name].package for name in engines if name in ENGINES)})
