"""Filling the layer database, and searching with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.search.runs import tiny

from trimtab.files import cache_dir
from trimtab.search.bench.judge import bench_judge
from trimtab.search.progress import Progress
from trimtab.search.run import run_search
from trimtab.search.setup.config import default_config
from trimtab.search.setup.fill import fill_database
from trimtab.search.setup.problem import Problem, load_problem


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
    monkeypatch.setattr("trimtab.search.setup.processes.HERE", 0.0)
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


@pytest.mark.parametrize("proxy", ["layers", "sequence"])
def test_the_benchmark_of_judging_says_where_the_time_goes(proxy: str) -> None:
    *parts, whole = bench_judge(tiny(proxy=proxy), 3, 0)
    before = ["stitch", "settle"] if proxy == "layers" else ["repair"]
    assert [row["part"] for row in parts] == [*before, "store", "compile", "run"]
    assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"])
    assert sum(row["share"] for row in parts) == pytest.approx(whole["share"]) == 1
    assert whole["per_second"] == pytest.approx(1 / whole["seconds"])
    assert whole["per_core_second"] > 0
    assert all(0 <= row["p50"] <= row["p95"] for row in [*parts, whole])
