"""Filling the layer database, and searching with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.search.runs import tiny

from trimtab.evaluators.timing import cache_dir
from trimtab.search.config import default_config
from trimtab.search.fill import fill_database
from trimtab.search.problem import Problem, load_problem
from trimtab.search.progress import Progress
from trimtab.search.run import run_search


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return load_problem(tiny(proxy="layers"), Progress())


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (cache_dir() / "layers").glob("*/*.safetensors")}


def test_workers_fill_what_one_process_would_and_nothing_twice(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "one"))
    alone = fill_database(problem, 0, Progress())
    expected = {path.name: content for path, content in files().items()}
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "two"))
    together = fill_database(problem, 2, Progress())
    assert {path.name: content for path, content in files().items()} == expected
    assert alone.entries == alone.made == together.made == len(expected)
    next(iter(files())).unlink()
    again = fill_database(problem, 0, Progress())
    assert (again.entries, again.made) == (alone.entries, 1)
    assert {path.name: content for path, content in files().items()} == expected


def test_a_search_judges_what_is_stitched_and_finishes_what_is_fitted(problem: Problem, tmp_path: Path) -> None:
    outcome = run_search(problem, tmp_path / "run", Progress())
    assert outcome.winner is not None
    policy = outcome.winner.evaluation.policy
    assert problem.judge.database is not None
    assert outcome.winner.evaluation.accuracy == problem.judge(policy).accuracy
    proxy, finished = problem.judge.proxy(policy), problem.judge.candidate(policy)
    assert proxy.network.weights_hash() != finished.network.weights_hash()


def test_the_default_fits_in_sequence() -> None:
    assert default_config().proxy == "sequence"
