"""Runs that minimise a cost and keep the accuracy, from end to end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.search.runs import CommandLine, tiny

from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.evaluators.accuracy import graded
from trimtab.evaluators.answers import lost
from trimtab.search.contest.contest import Plan, run_contest
from trimtab.search.finish.evaluate import evaluate_policy
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import read_journal
from trimtab.search.loop.preference import preferred, tie
from trimtab.search.progress import Progress
from trimtab.search.report.summary import certificate
from trimtab.search.run import Outcome, run_search
from trimtab.search.setup.config import Config, default_config, load_config, make_config
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.spaces import Policy

POINTS = 15.0

#: Bits under which every network loses much.
NARROW = {"channels": 1, "bits": [[1, 8], [2, 8]], "ranks": []}


def asked(**changes: Any) -> Config:
    """The smallest network that loses at most so many points, on 100 images."""
    usual = {
        "budgets": {"macs": "0.9x"},
        "minimise": "size",
        "keep": {"accuracy": -POINTS},
        "space": {"channels": 3, "bits": [[2, 8], [8, 8]], "ranks": []},
        "baselines": ["random"],
        "trials": 8,
    }
    return tiny(**{**usual, **changes})


@pytest.fixture(scope="module")
def given(with_shared_cache: None) -> Problem:
    return load_problem(asked(), Progress())


@dataclass
class Ran:
    problem: Problem
    outcome: Outcome
    evaluations: list[Evaluation]


@pytest.fixture(scope="module")
def ran(given: Problem, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    outcome = run_search(given, tmp_path_factory.mktemp("runs") / "run", Progress())
    records = read_journal(outcome.folder / "journal")
    return Ran(given, outcome, [Evaluation.from_json(r.data) for r in records if r.kind == "result"])


def test_the_winner_is_the_smallest_that_was_shown_to_keep_the_accuracy(ran: Ran) -> None:
    judge, winner = ran.problem.judge, ran.outcome.winner
    base = judge(ran.problem.space.base()).answers
    keeps = [e for e in ran.evaluations if lost(base, e.answers, 0.95).bound <= POINTS / 100]
    assert winner is not None
    assert keeps
    assert len(keeps) < len(ran.evaluations)
    assert {e.policy.id for e in keeps if e.violations["macs"] <= 0} == {
        e.policy.id for e in ran.evaluations if e.feasible
    }
    assert winner.evaluation.cost.size == min(e.cost.size for e in keeps if e.feasible)
    answers = graded(judge.outputs(judge.candidate(winner.evaluation.policy), judge.images), judge.targets)
    assert lost(base, answers, 0.95).bound <= POINTS / 100


def test_the_summary_says_what_is_lost_where_it_was_chosen_and_where_it_was_not(ran: Ran) -> None:
    judge, (images, labels), winner = ran.problem.judge, ran.problem.splits.final(), ran.outcome.winner
    assert winner is not None
    (row,) = [row["best"] for row in ran.outcome.summary["agents"] if row["agent"] == winner.agent]
    policies = (ran.problem.space.base(), winner.evaluation.policy)
    base, own = (graded(judge.outputs(judge.candidate(policy), images), labels) for policy in policies)
    final, found = row["kept"]["final"], lost(base, own, 0.95)
    assert (final["value"], final["bound"]) == pytest.approx((found.value, found.bound))
    assert final["kept"] == (found.bound <= POINTS / 100)
    assert f"{100 * found.bound:.2f} by 95 %" in final["said"]
    page = (ran.outcome.folder / "report.html").read_text()
    assert row["kept"]["selection"]["said"] in page
    assert final["said"] in page
    assert ran.outcome.summary["certificate"] in page
    names = {budget["name"]: budget for budget in ran.outcome.summary["budgets"]}
    assert names["accuracy"]["limit"] == pytest.approx(POINTS / 100)
    assert set(names) == {"macs", "accuracy"}


def test_the_certificate_counts_what_is_true(ran: Ran) -> None:
    base = ran.outcome.summary["base"]["size"]
    least = min(e.cost.size for e in ran.evaluations if e.feasible)
    below = sum(e.cost.size < least for e in ran.evaluations)
    said = f"Nothing below {least / base:.3f}x of the size .* in {len(ran.evaluations)} evaluations, {below} of which"
    assert re.search(said, certificate("size", ran.evaluations))
    none = certificate("size", [e for e in ran.evaluations if not e.feasible])
    assert none.startswith("Nothing was found to keep the accuracy")


def test_a_trace_falls_to_the_winner(ran: Ran) -> None:
    winner = ran.outcome.winner
    assert winner is not None
    assert winner.evaluation.objective is not None
    for row in ran.outcome.summary["agents"]:
        known = [share for share in row["trace"] if share is not None]
        assert known == sorted(known, reverse=True)
    (trace,) = [row["trace"] for row in ran.outcome.summary["agents"] if row["agent"] == winner.agent]
    assert trace[-1] == pytest.approx(winner.evaluation.objective.share.middle)


def test_an_evaluation_says_what_the_policy_loses(ran: Ran) -> None:
    policy = Policy.load(ran.outcome.folder / "policy.json")
    found = evaluate_policy(ran.problem, policy, Progress(), ran.outcome.folder)
    (row,) = [r["best"] for r in ran.outcome.summary["agents"] if r["best"] and r["best"]["policy"] == policy.id]
    assert found["kept"] == row["kept"]


def test_a_run_is_gone_on_with_by_the_same_question_alone(ran: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ran.outcome.folder, folder)
    others = {"keep": {"accuracy": -3.0}}, {"keep": {"accuracy": -POINTS, "confidence": 0.9}}, {"minimise": "latency"}
    for changes in others:
        with pytest.raises(BadInput, match="configuration is not the one"):
            run_search(replace(ran.problem, config=asked(**changes)), folder, Progress(), resume=True)
    outcome = run_search(replace(ran.problem, config=asked(trials=12)), folder, Progress(), resume=True)
    kinds = [record for record in read_journal(folder / "journal") if record.kind == "ask"]
    asked_before = [record for record in read_journal(ran.outcome.folder / "journal") if record.kind == "ask"]
    assert [r.data for r in kinds if r.data["agent"] == "random"][:8] == [
        r.data for r in asked_before if r.data["agent"] == "random"
    ]
    assert {row["evaluations"] for row in outcome.summary["agents"]} == {12}


def test_a_stopped_run_goes_on_as_the_whole_one(given: Problem, ran: Ran, tmp_path: Path) -> None:
    """Sizes are exact, so nothing that is measured has a say."""
    half = replace(given, config=asked(trials=4))
    run_search(half, tmp_path / "run", Progress())
    run_search(given, tmp_path / "run", Progress(), resume=True)
    for agent in ("random", "milp"):
        parts, whole = (
            [r.data for r in read_journal(folder / "journal") if r.kind == "ask" and r.data["agent"] == agent]
            for folder in (tmp_path / "run", ran.outcome.folder)
        )
        assert parts == whole


def test_training_brings_back_what_lost_too_much(given: Problem, tmp_path: Path) -> None:
    """Weights of two bits lose more than may be lost before training, and less after it."""
    brief = {"epochs": 12, "candidates": 2, "learning_rate": 0.003, "batch": 64, "processes": 1}
    config = asked(space=NARROW, keep={"accuracy": -7.0}, budgets={}, baselines=[], agent="uniform", trials=3)
    problem = load_problem(config, Progress())
    outcome = run_search(problem, tmp_path / "untrained", Progress())
    assert outcome.winner is None
    assert outcome.summary["nearest"]["kept"]["bound"] > 0.07
    assert "No winner" in (tmp_path / "untrained" / "report.html").read_text()
    settings = {**config.model_dump(by_alias=True, exclude_none=True), "finish": brief}
    trained = replace(problem, config=make_config(settings))
    outcome = run_search(trained, tmp_path / "trained", Progress())
    assert outcome.winner is not None
    assert outcome.summary["finished"]["kept"]["selection"]["kept"]
    assert outcome.winner.evaluation.violations["accuracy"] <= 0
    assert (tmp_path / "trained" / "export" / "model.safetensors").is_file()
    assert Policy.load(tmp_path / "trained" / "policy.json") == outcome.winner.evaluation.policy


def test_equal_costs_go_to_the_lower_loss_and_latencies_tie_within_their_intervals(ran: Ran) -> None:
    one, other = (replace(e, loss=loss) for e, loss in zip(ran.evaluations[:2], (0.2, 0.1), strict=True))
    assert one.objective is not None

    def at(e: Evaluation, *share: float) -> Evaluation:
        return replace(e, objective=replace(one.objective, share=type(one.objective.share)(*share)))

    apart = at(one, 0.30, 0.29, 0.31), at(other, 0.33, 0.32, 0.34)
    assert not tie(*apart)
    assert preferred(apart) is apart[0]
    tied = at(one, 0.30, 0.29, 0.31), at(other, 0.32, 0.305, 0.33)
    assert tie(*tied)
    assert preferred(tied) is tied[1]


def test_too_few_images_to_show_it_are_said_before_anything_is_measured(given: Problem, tmp_path: Path) -> None:
    few = replace(given, config=asked(keep={"accuracy": -0.5}))
    with pytest.raises(InfeasibleBudget, match=r"cannot be shown on 100 images: .* at most 3\.\d\d points"):
        run_search(few, tmp_path / "run", Progress())
    assert not (tmp_path / "run").exists()


def test_a_contest_refuses_the_question(given: Problem, tmp_path: Path) -> None:
    plan = Plan(("random",), 1, ({"macs": "0.9x"},))
    with pytest.raises(BadInput, match="leave out minimise and keep"):
        run_contest(given, plan, tmp_path / "contest", Progress())
    assert not (tmp_path / "contest").exists()


def test_nothing_that_keeps_it_ends_with_code_3_and_says_what_came_nearest(
    trimtab: CommandLine, written: Callable[..., Path]
) -> None:
    question = {"minimise": "size", "keep": {"accuracy": -7.0}, "budgets": {}}
    config = written(**question, space=NARROW, agent="uniform", baselines=[], trials=2)
    done = trimtab("search", config, "--out", "run")
    assert done.code == 3, done.err
    assert "No policy" in done.out
    assert "The nearest network" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minimise": "speed"}, "minimise: unknown cost 'speed'"),
        ({"minimise": "laten"}, "did you mean 'latency'"),
        ({"minimise": ["size"]}, "minimise"),
        ({"minimise": None}, "keep says what has to be kept .* write minimise too"),
        ({"keep": None}, "say what has to be kept"),
        ({"keep": -1.0}, "write keys, like"),
        ({"keep": {}}, "'keep.accuracy' is missing"),
        ({"keep": {"acuracy": -1}}, "did you mean 'keep.accuracy'"),
        ({"keep": {"accuracy": 1.0}}, "points that may be lost, written like -1.0; found 1"),
        ({"keep": {"accuracy": 0}}, "points that may be lost"),
        ({"keep": {"accuracy": -100}}, "points that may be lost"),
        ({"keep": {"accuracy": float("nan")}}, "finite"),
        ({"keep": {"accuracy": "some"}}, "keep.accuracy: .* found 'some'"),
        ({"keep": {"accuracy": -1, "confidence": 95}}, "keep.confidence: .* less than 1"),
        ({"keep": {"accuracy": -1, "confidence": 0.5}}, "keep.confidence: .* greater than 0.5"),
        ({"budgets": {"size": "0.5x"}}, "size is what is minimised, and has no budget"),
        ({"budgets": None}, "budgets"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_by_what_is_wrong_with_it(changes: dict[str, Any], said: str) -> None:
    question = {"network": "resnet8", "minimise": "size", "keep": {"accuracy": -1.0}}
    with pytest.raises(BadInput, match=said):
        make_config({**question, **changes})


def test_a_setting_takes_the_place_of_a_file_s_budget_on_the_same_cost(tmp_path: Path) -> None:
    question = ["minimise=latency", "keep.accuracy=-1.0"]
    assert set(default_config().budgets) == {"latency", "size"}
    assert set(default_config(question).budgets) == {"size"}
    with pytest.raises(BadInput, match="latency is what is minimised"):
        default_config([*question, "budgets.latency=0.5x"])
    file = tmp_path / "both.yaml"
    file.write_text("network: resnet8\nbudgets: {size: 0.5x}\nminimise: size\nkeep: {accuracy: -1}\n")
    with pytest.raises(BadInput, match="size is what is minimised"):
        load_config(file)
