from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.search.runs import CommandLine

from trimtab.errors import BadInput
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Journal, Record, is_written, read_journal
from trimtab.search.loop.preference import preferred
from trimtab.search.report.watch import follow, line_of, read_state
from trimtab.spaces import Policy


def begun(run: Path, folder: Path, records: int) -> Path:
    """A copy of a run's folder as it was after so many records of its journal."""
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    lines = (run / "journal").read_bytes().splitlines(keepends=True)
    (folder / "journal").write_bytes(b"".join(lines[: 1 + records]))
    return folder


def place(run: Path, kind: str, **data: Any) -> int:
    """The number of records up to the first one of a kind with this data."""
    records = read_journal(run / "journal")
    return next(r.seq + 1 for r in records if r.kind == kind and data.items() <= r.data.items())


def judged(records: list[Record]) -> dict[str, Evaluation]:
    found = [Evaluation.from_json(record.data) for record in records if record.kind == "result"]
    return {each.policy.id: each for each in found}


def test_what_is_shown_is_what_the_journal_says_at_every_moment(small_run: Path, tmp_path: Path) -> None:
    first = place(small_run, "stage", stage="search")
    records = read_journal(small_run / "journal")
    for number in range(first, len(records)):
        folder = begun(small_run, tmp_path / str(number), number)
        with (folder / "journal").open("ab") as journal:
            journal.write(b'{"crc":"00000000","seq":')  # what is being written just now
        state, known, counts = read_state(folder), judged(records[:number]), Counter[str]()
        for record in records[:number]:
            if record.kind == "ask":
                counts[record.data["agent"]] += sum(Policy.from_json(p).id in known for p in record.data["policies"])
        assert {each.agent: (each.done, each.asked) for each in state.agents} == {
            name: (counts[name], 4) for name in ("random", "milp")
        }
        measured = {r.data["policy"] for r in records[:number] if r.kind == "measured"}
        untouched = [each for each in known.values() if each.policy.id not in measured]
        if not measured and "verified" not in {r.kind for r in records[:number]}:
            assert state.best == preferred(untouched)
        assert state.ended
        assert state.stage.startswith("stopped while ")


def test_a_run_that_goes_on_is_searching_and_has_time_left(small_run: Path, tmp_path: Path) -> None:
    folder = begun(small_run, tmp_path / "run", place(small_run, "told", agent="random"))
    assert not is_written(folder / "journal")
    with Journal(folder / "journal") as journal:
        assert is_written(folder / "journal")
        state, spent = read_state(folder), journal.records()[-1].data["seconds"]["total"]
        done = state.agents[0].done
        assert (state.stage, state.ended, state.result) == ("searching", False, None)
        assert state.rate == pytest.approx(done / spent)
        assert state.left == pytest.approx((8 - done) * spent / done)
        assert f"{done} of 8 evaluations" in line_of(state)
        journal.append("stage", {"stage": "search", "seconds": spent + 1e-3})
        assert read_state(folder).left == pytest.approx(1e-3)


def test_finishing_is_shown_with_the_time_that_it_may_take(small_run: Path, tmp_path: Path) -> None:
    folder = begun(small_run, tmp_path / "run", place(small_run, "stage", stage="verification"))
    (folder / "finishing").mkdir()
    with Journal(folder / "journal") as journal:
        journal.append("stage", {"stage": "finishing"})
        order = {"contenders": [{}, {}, {}], "asked": {"time": 100.0}}
        (folder / "finishing" / "order.json").write_text(json.dumps(order))
        state = read_state(folder)
        assert state.stage == "finishing"
        assert 95 < (state.left or 0) <= 100
        at = {"policy": "b", "stage": "tried", "done": 30, "steps": 90, "loss": 0.5, "rate": 100.0, "seconds": 7.0}
        (folder / "finishing" / "progress.json").write_text(json.dumps(at))
        (folder / "finishing" / "a.tried.safetensors").touch()
        assert "network 2 of 3 on trial: step 30 of 90, loss 0.500" in line_of(read_state(folder))
        (folder / "finishing" / "progress.json").write_text(json.dumps({**at, "stage": "trained"}))
        assert read_state(folder).left == pytest.approx(14.0)
        states = follow(folder, 0.01)
        assert not next(states).ended
        journal.append("finished", {"winner": None})
    assert [state.stage for state in states] == ["finished"]


def test_nothing_is_written_to_look_at_a_run(small_run: Path) -> None:
    def seen() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in small_run.rglob("*") if path.is_file()}

    before = seen()
    state = read_state(small_run)
    assert seen() == before
    summary = json.loads((small_run / "summary.json").read_text())
    best = next(row["best"] for row in summary["agents"] if row["agent"] == summary["winner"]["agent"])
    assert state.best is not None
    assert state.best.policy.id == best["policy"]
    assert state.result is not None
    assert f"{summary['base']['size'] / best['size']:.1f}× smaller" in state.result
    assert json.loads(json.dumps(state.to_json()))["best"]["accuracy"] == state.best.accuracy


def test_a_finished_run_is_shown_once_and_no_run_is_refused_in_a_line(
    small_run: Path, tmp_path: Path, trimtab: CommandLine
) -> None:
    ran = trimtab("watch", small_run, "--every", "1000")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("resnet8 on digits: finished") == 1
    assert ran.out.count("4 of 4") == 2
    assert "smaller" in ran.out
    ran = trimtab("watch", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("trimtab: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("config", ["", "[1", "agent: milp", "network: a\ndata: b", "\xff"])
def test_what_is_not_a_run_is_bad_input(config: str, small_run: Path, tmp_path: Path) -> None:
    shutil.copy(small_run / "journal", tmp_path)
    (tmp_path / "config.yaml").write_bytes(config.encode("latin-1"))
    with pytest.raises(BadInput, match="is not a run"):
        read_state(tmp_path)
    shutil.copy(small_run / "config.yaml", tmp_path)
    (tmp_path / "journal").write_bytes(b"")
    with pytest.raises(BadInput, match="has begun"):
        read_state(tmp_path)
