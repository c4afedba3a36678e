"""Contests on Ray Tune, as a user runs them: through to the end, killed, and gone on with."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.search.runs import CommandLine

from trimtab.errors import BadInput
from trimtab.search.contest.contest import Plan, parse_budgets
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Record, read_journal
from trimtab.search.loop.loop import Memory
from trimtab.spaces import Policy

CONTEST = ("--agents", "random,tpe", "--seeds", "2", "--trials", "6", "--workers", "2")


def test_budgets_are_read() -> None:
    found = parse_budgets(" latency=0.5x int8, size=120 KiB ; size=0.3x;")
    assert found == [{"latency": "0.5x int8", "size": "120 KiB"}, {"size": "0.3x"}]


@pytest.mark.parametrize("text", ["", ";", "latency", "latency=", "=3 ms", "size=1x,;"])
def test_what_are_no_budgets(text: str) -> None:
    with pytest.raises(BadInput, match="--budgets"):
        parse_budgets(text)


def test_a_plan_knows_its_agents() -> None:
    with pytest.raises(BadInput, match="did you mean 'random'"):
        Plan(("randm",), 1, ({"size": "1x"},))
    for agents in ((), ("random", "random")):
        with pytest.raises(BadInput, match="each agent once"):
            Plan(agents, 1, ({"size": "1x"},))


def journals(folder: Path) -> dict[str, list[Record]]:
    return {path.parent.name: read_journal(path) for path in (folder / "trials").glob("*/journal")}


def judged(records: list[Record]) -> list[tuple[str, float]]:
    results = [record.data for record in records if record.kind == "result"]
    return [(Policy.from_json(data["policy"]).id, data["accuracy"]) for data in results]


def agent_of(trial: str) -> str:
    return trial.split("-")[-2]


@pytest.mark.ray
@pytest.mark.slow
def test_a_contest_that_is_killed_goes_on_to_the_same_end(
    trimtab: CommandLine, written: Callable[..., Path], tmp_path: Path
) -> None:
    config, folder = written(), tmp_path / "contest"
    arguments = ("compare", config, *CONTEST, "--budgets", "size=0.5x,macs=0.7x", "--out", folder)

    def begun() -> bool:
        return sum(len(judged(records)) for records in journals(folder).values()) >= 5

    killed = trimtab.stop_when(begun, signal.SIGKILL, *arguments)
    assert killed.code == -signal.SIGKILL, killed.err
    before = {trial: judged(records) for trial, records in journals(folder).items()}

    again = trimtab(*arguments, "--resume", "--json")
    assert again.code == 0, again.err
    summary: dict[str, Any] = json.loads(again.out)
    after = journals(folder)
    assert set(after) == {f"size-0.5x-macs-0.7x-{agent}-seed{seed}" for agent in ("random", "tpe") for seed in (0, 1)}
    for trial, records in after.items():
        assert judged(records)[: len(before.get(trial, []))] == before.get(trial, [])
        assert len(judged(records)) == len(dict(judged(records))) == 6
        run = Memory(records).run(agent_of(trial))
        assert len(run.asking) == len(run.moments) == len(run.evaluations) == 6
        assert run.moments == sorted(run.moments)
        assert run.best is not None
    drawn = {tuple(judged(records)) for trial, records in after.items() if agent_of(trial) == "random"}
    assert len(drawn) == 2

    check(summary, after, folder)
    assert json.loads((folder / "compare.json").read_text()) == {k: v for k, v in summary.items() if k != "folder"}
    for trial in after:
        assert (folder / "tune" / trial / "result.json").is_file()
        assert list((folder / "tune" / trial).glob("events.out.tfevents.*"))

    # Nothing is left to do; one more agent is one more trial per seed, and the others are not repeated.
    grown = trimtab("compare", *arguments[1:], "--agents", "random,tpe,uniform", "--resume")
    assert grown.code == 0, grown.err
    assert "2 of 6 trials to run" in grown.err
    assert {trial: records for trial, records in journals(folder).items() if trial in after} == after
    assert "uniform" in (folder / "compare.md").read_text()


def check(summary: dict[str, Any], trials: dict[str, list[Record]], folder: Path) -> None:
    """The summary against the journals, worked out in another way."""
    (budget,) = summary["budgets"]
    counts = summary["feasible"]
    assert counts["evaluated"] == counts["on_the_table"] == 24
    assert counts["winners"] == counts["measured"] == 4
    for run in budget["runs"]:
        name = f"size-0.5x-macs-0.7x-{run['agent']}-seed{run['seed']}"
        results = [Evaluation.from_json(r.data) for r in trials[name] if r.kind == "result"]
        assert run["best"] == max(e.accuracy for e in results)
        assert run["steps"]["evaluations"][-1][1] == run["best"]
        assert Policy.load(folder / "trials" / name / "policy.json").id == run["winner"]["policy"]
        assert all(value <= 0 for value in run["winner"]["violations"].values())
        assert run["winner"]["latency"][1] <= run["winner"]["latency"][0] <= run["winner"]["latency"][2]
    for row in budget["agents"]:
        bests = sorted(run["best"] for run in budget["runs"] if run["agent"] == row["agent"])
        assert (row["after"]["6"]["low"], row["after"]["6"]["high"]) == (bests[0], bests[1])
    page = (folder / "compare.html").read_text()
    assert page.isascii()
    assert page.count('class="plot"') == 2
    assert budget["verdicts"][-1] in (folder / "compare.md").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_and_a_time_limit_end_a_contest_with_a_report(
    trimtab: CommandLine, written: Callable[..., Path], tmp_path: Path
) -> None:
    config, folder = written(), tmp_path / "contest"
    arguments = ("compare", config, "--agents", "random", "--seeds", "2", "--budgets", "size=0.5x", "--out", folder)

    def begun() -> bool:
        return sum(len(judged(records)) for records in journals(folder).values()) >= 5

    stopped = trimtab.stop_when(begun, signal.SIGINT, *arguments, "--trials", "5000", "--workers", "2")
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    summary = json.loads((folder / "compare.json").read_text())
    assert {run["ended"] for run in summary["budgets"][0]["runs"]} == {"interrupted"}
    assert "interruption" in summary["budgets"][0]["verdicts"][-2]
    assert summary["feasible"]["winners"] > 0

    longest = max(run["seconds"] for run in summary["budgets"][0]["runs"])
    limit = round(longest + 2.0, 1)
    again = trimtab(*arguments, "--trials", "5000", "--time-limit", f"{limit}s", "--resume", "--json")
    assert again.code == 0, again.err
    for run in json.loads(again.out)["budgets"][0]["runs"]:
        assert run["ended"] == "time"
        moments = [where for where, _ in run["steps"]["seconds"]]
        assert limit <= run["seconds"] < limit + 5.0
        assert moments[-1] <= run["seconds"]
