"""What the search's tests share: one cache, one trained network, the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.search.runs import TINY, CommandLine, tiny

from trimtab.search.progress import Progress
from trimtab.search.run import run_search
from trimtab.search.setup.problem import Problem, load_problem


@pytest.fixture(autouse=True)
def search_cache(cache: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The search's tests share what was measured and trained."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a tenth of their length: how well they measure is not what the search's tests test."""
    monkeypatch.setattr("trimtab.evaluators.measure.comparison.SLICE_SECONDS", 0.0002)
    monkeypatch.setattr("trimtab.evaluators.measure.rounds.SLICE_SECONDS", 0.0002)
    monkeypatch.setattr("trimtab.evaluators.measure.end_to_end.BLOCKS_BETWEEN", (0.005, 0.01))


@pytest.fixture(scope="session")
def with_shared_cache(shared_cache: Path) -> Iterator[None]:
    """The shared cache for what outlives one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(shared_cache))
        yield


@pytest.fixture(scope="session")
def problem(with_shared_cache: None) -> Problem:
    """The network of `TINY`, trained, traced, with its judge."""
    return load_problem(tiny(), Progress())


@pytest.fixture(scope="session")
def small_run(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of four evaluations by each of two agents; not to be written to."""
    folder = tmp_path_factory.mktemp("small") / "run"
    run_search(replace(problem, config=tiny(trials=4, baselines=["random"])), folder, Progress())
    return folder


@pytest.fixture
def trimtab(shared_cache: Path, tmp_path: Path) -> CommandLine:
    """The command line, started in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    return CommandLine(shared_cache, folder)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written(agent="random")`: the small configuration as a file, with changes."""

    def write(name: str = "tiny.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return path

    return write
