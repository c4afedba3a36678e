from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tests.search.runs import CommandLine, tiny

from trimtab.errors import BadInput, TrimtabError
from trimtab.search.loop.journal import Record, read_journal
from trimtab.search.loop.optuna_export import export_study
from trimtab.search.progress import Progress
from trimtab.search.run import Outcome, run_search
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.problem import Problem
from trimtab.spaces import Policy, Space
from trimtab.spaces.space import Removal

AGENTS = ("random", "milp")


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def search(problem: Problem, folder: Path, storage: str | None) -> tuple[Outcome, list[str]]:
    said = Said()
    config = tiny(trials=4, baselines=["random"], storage=storage)
    return run_search(replace(problem, config=config), folder, said), said.lines


@pytest.fixture(scope="module")
def run(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was mirrored while it went on, into studies.db beside it."""
    folder = tmp_path_factory.mktemp("mirrored")
    search(problem, folder / "run", f"sqlite:///{folder}/studies.db")
    return folder / "run"


def told(run: Path, agent: str) -> list[dict[str, Any]]:
    """The results of an agent's policies, in the order asked, by the journal itself."""
    records = read_journal(run / "journal")
    results = {data["policy_id"]: data for data in map(with_id, records) if data}
    batches = [record.data["policies"] for record in records if record.kind == "ask" and record.data["agent"] == agent]
    return [results[Policy.from_json(policy).id] for batch in batches for policy in batch]


def with_id(record: Record) -> dict[str, Any]:
    if record.kind != "result":
        return {}
    return {**record.data, "policy_id": Policy.from_json(record.data["policy"]).id}


def beginning(run: Path, kind: str) -> Any:
    return next(record.data for record in read_journal(run / "journal") if record.kind == kind)


def space_of(problem: Problem, run: Path) -> Space:
    return problem.space.without(Removal(**removal) for removal in beginning(run, "setting")["removed"])


def contents(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.value, t.params, t.constraints, t.user_attrs) for t in study.trials]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_study_holds_what_the_journal_holds(problem: Problem, run: Path, agent: str) -> None:
    study = optuna.load_study(storage=f"sqlite:///{run.parent}/studies.db", study_name=f"run/{agent}")
    results, space, base = (
        told(run, agent),
        space_of(problem, run),
        Baseline.from_json(beginning(run, "setting")["baseline"]).base,
    )
    measured = {r.data["policy"]: r.data["latency"] for r in read_journal(run / "journal") if r.kind == "measured"}
    assert len(study.trials) == len(results) == 4
    for trial, result in zip(study.trials, results, strict=True):
        policy = Policy.from_json(result["policy"])
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert (trial.value, trial.user_attrs["policy"]) == (result["accuracy"], policy.id)
        assert trial.user_attrs["predicted latency"] == result["cost"]["latency"]
        assert trial.user_attrs["size"] == result["cost"]["size"]
        assert trial.constraints["size"] == result["violations"]["size"]
        chosen = {knob.name: knob.choices[index] for knob, index in zip(space.knobs, space.encode(policy), strict=True)}
        assert {name: str(value) for name, value in trial.params.items()} == {
            name: str(choice) for name, choice in chosen.items()
        }
        if "measured latency" in trial.user_attrs:
            assert trial.user_attrs["measured latency"] == measured[policy.id]["ratio"] * base.latency
    assert any("measured latency" in trial.user_attrs for trial in study.trials)


def test_mirroring_again_writes_nothing(problem: Problem, run: Path) -> None:
    url = f"sqlite:///{run.parent}/studies.db"
    before = [contents(optuna.load_study(storage=url, study_name=f"run/{agent}")) for agent in AGENTS]
    assert export_study(problem, run, url) == {"run/random": 0, "run/milp": 0}
    assert [contents(optuna.load_study(storage=url, study_name=f"run/{agent}")) for agent in AGENTS] == before


def test_a_run_that_grows_is_caught_up_with_trial_by_trial(problem: Problem, run: Path, tmp_path: Path) -> None:
    growing, url = tmp_path / "run", f"journal:{tmp_path}/studies.log"
    growing.mkdir()
    lines = (run / "journal").read_bytes().splitlines(keepends=True)
    written: dict[str, int] = {}
    for end in (len(lines) // 2, len(lines) * 3 // 4, len(lines)):
        (growing / "journal").write_bytes(b"".join(lines[:end]))
        for study, trials in export_study(problem, growing, url).items():
            written[study] = written.get(study, 0) + trials
    assert written == {"run/random": 4, "run/milp": 4}
    storage = JournalStorage(JournalFileBackend(f"{tmp_path}/studies.log"))
    for agent in AGENTS:
        study = optuna.load_study(storage=storage, study_name=f"run/{agent}")
        assert [trial.user_attrs["policy"] for trial in study.trials] == [r["policy_id"] for r in told(run, agent)]


def test_a_run_that_has_not_begun_is_said(problem: Problem, run: Path, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"".join((run / "journal").read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(BadInput, match="not begun"):
        export_study(problem, tmp_path, "sqlite://")


def test_another_runs_study_is_left_alone(problem: Problem, run: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    study = optuna.create_study(storage=url, study_name="run/random", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"policy": "another"}))
    with pytest.raises(TrimtabError, match="another run's"):
        export_study(problem, run, url)
    assert len(study.trials) == 1


def test_a_storage_that_fails_does_not_lose_the_run(problem: Problem, tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/nowhere/studies.db"
    outcome, lines = search(problem, tmp_path / "run", nowhere)
    assert len(told(outcome.folder, "milp")) == 4
    assert (outcome.folder / "summary.json").is_file()
    about = [line for line in lines if "storage" in line]
    assert len(about) == 1
    assert "nowhere" in about[0]
    assert "\n" not in about[0]
    with pytest.raises(TrimtabError, match="nowhere"):
        export_study(problem, outcome.folder, nowhere)


@pytest.mark.parametrize("url", ["studies.db", "redis://here", "journal:", "sqlite"])
def test_what_is_no_storage_is_refused_before_anything_runs(url: str) -> None:
    with pytest.raises(BadInput, match=r"storage.*sqlite:///"):
        tiny(storage=url)


@pytest.mark.slow
def test_the_command_says_what_it_wrote(trimtab: CommandLine, run: Path) -> None:
    ran = trimtab("optuna-export", run, "sqlite:///copied.db", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["written"] == {"run/random": 4, "run/milp": 4}
    assert (
        trimtab("optuna-export", run, "sqlite:///copied.db").out
        == "run/random: 0 trial(s) written\nrun/milp: 0 trial(s) written\n"
    )
    assert trimtab("optuna-export", run, "copied.db").code == 2
