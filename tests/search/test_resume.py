"""Kills and interrupts of a real process, and what going on afterwards makes of them.

The budgets here are size and MACs, whose limits do not depend on any measurement: then the same seed gives the same
limits, the same proposals and the same violations in every run, and all sequences can be compared exactly. Under a
latency budget each run measures its own baseline, so its limits, and what is projected into them, differ from run to
run; a resumed run reads its baseline from the journal, so within one run the same exactness holds.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.search.runs import CommandLine

from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Record, read_journal
from trimtab.search.loop.preference import preferred
from trimtab.spaces import Policy

BUDGETS = {"size": "0.5x", "macs": "0.6x"}


def lines(folder: Path) -> int:
    path = folder / "journal"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def of(records: list[Record], kind: str) -> list[dict[str, Any]]:
    return [record.data for record in records if record.kind == kind]


def asked(records: list[Record]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for batch in of(records, "ask"):
        found.setdefault(batch["agent"], []).extend(Policy.from_json(p).id for p in batch["policies"])
    return found


def judged(records: list[Record]) -> list[tuple[str, float]]:
    return [(Policy.from_json(data["policy"]).id, data["accuracy"]) for data in of(records, "result")]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(
    trimtab: CommandLine, written: Callable[..., Path], tmp_path: Path
) -> None:
    # More trials than the estimator's start-up, so that resumed proposals depend on what was told.
    config = written(trials=26, baselines=["random"], budgets=BUDGETS)
    assert trimtab("search", config, "--out", tmp_path / "whole").code == 0
    whole = read_journal(tmp_path / "whole" / "journal")
    total, killed = lines(tmp_path / "whole"), tmp_path / "killed"

    rng = random.Random(5)
    stops = sorted(rng.sample(range(4, total - 2), 3))
    seen: list[Record] = []
    for kill, stop in enumerate(stops):
        again = ["--resume"] if kill else []
        ran = trimtab.stop_when(
            lambda stop=stop: lines(killed) >= stop,  # type: ignore[misc]
            signal.SIGKILL,
            "search",
            config,
            "--out",
            killed,
            *again,
        )
        assert ran.code == -signal.SIGKILL, ran.err
        now = read_journal(killed / "journal")
        assert now[: len(seen)] == seen  # nothing that was acknowledged is lost
        seen = now
    assert trimtab("search", "--resume", "--out", killed).code == 0

    records = read_journal(killed / "journal")
    assert records[: len(seen)] == seen
    assert asked(records) == asked(whole)
    assert judged(records) == judged(whole)
    assert len(dict(judged(records))) == len(judged(records))


@pytest.mark.slow
def test_ctrl_c_finishes_early_and_leaves_a_run_that_goes_on(
    trimtab: CommandLine, written: Callable[..., Path], tmp_path: Path
) -> None:
    # So many trials that no machine is through before the signal comes, however busy it is.
    config, folder = written(trials=5000, baselines=[], agent="random"), tmp_path / "run"
    ran = trimtab.stop_when(lambda: lines(folder) >= 6, signal.SIGINT, "search", config, "--out", folder)
    assert ran.code == 130, ran.err
    assert "--resume" in ran.err
    assert "Traceback" not in ran.err
    assert {path.name for path in folder.iterdir()} >= {"policy.json", "summary.json", "report.html", "export"}
    before = judged(read_journal(folder / "journal"))
    assert 0 < len(before) < 5000
    more = len(before) + 4
    assert trimtab("search", "--resume", "--out", folder, "--set", f"trials={more}").code == 0
    after = judged(read_journal(folder / "journal"))
    assert after[: len(before)] == before
    assert len(after) == more


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(trimtab: CommandLine, written: Callable[..., Path], tmp_path: Path) -> None:
    config, folder = written(trials=5000, baselines=[], agent="random"), tmp_path / "run"
    with trimtab.start("search", config, "--out", folder) as process:
        while lines(folder) < 6 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping after the evaluations in flight" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert not (folder / "summary.json").exists()
    assert judged(read_journal(folder / "journal"))


@pytest.mark.slow
def test_the_best_so_far_is_on_disk_while_the_search_runs(
    trimtab: CommandLine, written: Callable[..., Path], tmp_path: Path
) -> None:
    config, folder = written(trials=5000, baselines=[], agent="random", budgets=BUDGETS), tmp_path / "run"
    ran = trimtab.stop_when(lambda: lines(folder) >= 40, signal.SIGKILL, "search", config, "--out", folder)
    assert ran.code == -signal.SIGKILL, ran.err
    told = len(of(read_journal(folder / "journal"), "told"))
    evaluations = [Evaluation.from_json(data) for data in of(read_journal(folder / "journal"), "result")]
    bests = [preferred(e for e in evaluations[:n] if e.feasible) for n in (told - 1, told, told + 1)]
    assert Policy.load(folder / "policy.json") in [best.policy for best in bests if best]
