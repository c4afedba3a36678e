"""Experiments: how searches and contests begin, and which may be gone on with."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.search.loop.experiment import CHANGEABLE, Experiment, Kind, begin
from trimtab.search.loop.journal import read_journal
from trimtab.search.progress import Progress
from trimtab.search.setup.problem import Problem

SIZE, MACS = {"size": "0.5x"}, {"macs": "0.7x", "size": "0.6x"}


def begun(
    stack: ExitStack, kind: Kind, problem: Problem, folder: Path, *budgets: dict[str, Any], resume: bool = False
) -> Experiment:
    return stack.enter_context(begin(kind, problem, budgets, ["random"], folder, Progress(), resume))


@pytest.mark.parametrize("kind", CHANGEABLE)
@pytest.mark.parametrize("offered", [False, True])
def test_bf16_arithmetic_is_for_engines_that_have_it(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, offered: bool
) -> None:
    monkeypatch.setattr("trimtab.evaluators.engines.native.NativeEngine.has_bf16", offered)
    impossible = {"size": "1 B"}
    config = tiny(space={"channels": 3, "bits": [[16, 16], [32, 32]], "ranks": []}, budgets=impossible)
    # What comes next where it is offered: no network has one byte.
    error, text = (InfeasibleBudget, "size") if offered else (BadInput, r"has no bf16 arithmetic for \[16, 16\]")
    with ExitStack() as stack, pytest.raises(error, match=text):
        begun(stack, kind, replace(problem, config=config), tmp_path / "run", impossible)
    assert not (tmp_path / "run").exists()


def test_a_search_whose_files_have_moved_is_gone_on_with(problem: Problem, tmp_path: Path) -> None:
    data = problem.config.data.model_copy(update={"root": "/somewhere/else"})
    moved = replace(problem, config=problem.config.model_copy(update={"data": data}))
    with ExitStack() as stack:
        begun(stack, "search", problem, tmp_path / "run", problem.config.budgets)
    with ExitStack() as stack:
        again = begun(stack, "search", moved, tmp_path / "run", problem.config.budgets, resume=True)
        assert len(again.settings) == 1


@pytest.fixture(scope="module")
def contest(problem: Problem, tmp_path_factory: pytest.TempPathFactory, with_shared_cache: None) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "contest"
    with ExitStack() as stack:
        begun(stack, "contest", problem, folder, SIZE, MACS)
    return folder


def test_settings_share_the_link_and_keep_their_budgets(contest: Path) -> None:
    records = read_journal(contest / "journal")
    assert [record.kind for record in records] == ["experiment", "setting", "setting"]
    first, second = (record.data for record in records[1:])
    assert (first["budget"], second["budget"]) == ("size 0.5x", "macs 0.7x, size 0.6x")
    assert first["baseline"]["link"] == second["baseline"]["link"]
    assert set(first["baseline"]["limits"]) == {"size"}
    assert set(second["baseline"]["limits"]) == {"macs", "size"}


def test_what_was_measured_is_read_again_and_what_is_new_measured(problem: Problem, contest: Path) -> None:
    before = read_journal(contest / "journal")
    third = {"size": "0.7x"}
    with ExitStack() as stack:
        again = begun(stack, "contest", problem, contest, MACS, third, resume=True)
        told = {setting.budget: json.loads(json.dumps(setting.to_json())) for setting in again.settings}
    records = read_journal(contest / "journal")
    assert records[: len(before)] == before
    assert [record.data["budget"] for record in records[len(before) :]] == ["size 0.7x"]
    assert told["macs 0.7x, size 0.6x"] == before[2].data
    assert not any(setting.elsewhere for setting in again.settings)
    assert told["size 0.7x"]["baseline"]["link"] == before[2].data["baseline"]["link"]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("search", {}, "of a contest, not of a search"),
        ("contest", {"seed": 3}, "the configuration is not the one that the contest"),
        ("contest", {"repairs": {"bias": False}}, "the configuration is not the one"),
    ],
)
def test_an_experiment_is_not_gone_on_with_as_another(
    problem: Problem, contest: Path, kind: Kind, changes: dict[str, Any], said: str
) -> None:
    before = (contest / "journal").read_bytes()
    with ExitStack() as stack, pytest.raises(BadInput, match=said):
        begun(stack, kind, replace(problem, config=tiny(**changes)), contest, SIZE, resume=True)
    assert (contest / "journal").read_bytes() == before


def test_a_setting_of_another_machine_says_so(problem: Problem, contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.search.setup.setting.cpu_name", lambda: "another processor")
    with ExitStack() as stack:
        (setting,) = begun(stack, "contest", problem, contest, SIZE, resume=True).settings
        assert setting.elsewhere == " on ".join(read_journal(contest / "journal")[1].data["machine"])
