"""Finishing: the stage of a run that trains its winner, and the command that does it later."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.search.runs import tiny

from trimtab import kernels
from trimtab.errors import BadInput
from trimtab.evaluators.accuracy import judging_session
from trimtab.evaluators.lowering import lower
from trimtab.search.loop.candidates import CandidateFolder, candidate_of
from trimtab.search.loop.journal import read_journal
from trimtab.search.loop.verify import Verifier
from trimtab.search.progress import Progress
from trimtab.search.run import Outcome, finish_run, run_search
from trimtab.search.setup.config import Config, FinishConfig, make_config
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.search.setup.setting import Setting
from trimtab.search.training.distillation import Distillation
from trimtab.spaces import Policy
from trimtab.spaces.candidate_file import load_candidate

#: A training of seconds, strong enough to show.
BRIEF = {"epochs": 12, "candidates": 2, "learning_rate": 0.003, "batch": 64, "processes": 1}


def trained(**changes: object) -> Config:
    """A configuration whose candidates lose enough for training to gain."""
    space = {"channels": 3, "bits": [[2, 8]], "ranks": []}
    budgets = {"latency": "1.2x", "size": "0.2x"}
    return tiny(space=space, budgets=budgets, finish={**BRIEF, **changes}, trials=4)


class Lines(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def given(with_shared_cache: None) -> Problem:
    return load_problem(trained(), Progress())


@pytest.fixture(scope="module")
def outcome(given: Problem, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_search(given, tmp_path_factory.mktemp("runs") / "run", Progress())


def test_the_winner_is_the_trained_network(given: Problem, outcome: Outcome) -> None:
    assert outcome.winner is not None
    policy, finished = outcome.winner.evaluation.policy, outcome.summary["finished"]
    assert finished["policy"] == policy.id == Policy.load(outcome.folder / "policy.json").id
    candidate, provenance = load_candidate(CandidateFolder(outcome.folder).file(policy), given.space)
    assert provenance.stage == "finished"
    assert provenance.recipe["recipe"]["learning_rate"] == 0.003
    judge = given.judge
    logits = judge.outputs(candidate, judge.images)
    assert finished["accuracy"] == (logits.argmax(1) == judge.targets).mean() == outcome.winner.evaluation.accuracy
    assert finished["loss"] == judge.loss(logits)
    assert finished["size"] == kernels.stored_bytes(lower(candidate))
    assert all(violation <= 0 for violation in finished["violations"].values())
    assert finished["training"]["accuracy_before"] <= finished["accuracy"]
    assert len(finished["training"]["tried"]) == 2


def test_the_exported_file_is_the_trained_network(given: Problem, outcome: Outcome) -> None:
    assert outcome.winner is not None
    candidate = candidate_of(given, outcome.winner.evaluation.policy, outcome.folder)
    x = given.judge.images
    exported = kernels.load(outcome.folder / "export" / "model.safetensors").run(x)
    np.testing.assert_array_equal(exported, judging_session(candidate).run(x))
    for check in outcome.summary["exports"]:
        assert Path(check["path"]).is_file()
        assert check["agreement"] > 0.9


def test_the_network_as_it_was_stays_beside_it(given: Problem, outcome: Outcome) -> None:
    assert outcome.winner is not None
    folder, policy = CandidateFolder(outcome.folder), outcome.winner.evaluation.policy
    before = folder.repaired(given.judge, policy)
    made = given.judge.candidate(policy)
    assert before.network.weights_hash() == made.network.weights_hash()
    assert folder.current(given.judge, policy)[0].network.weights_hash() != made.network.weights_hash()
    assert not (outcome.folder / "finishing").exists()


def test_the_report_says_what_training_made(outcome: Outcome) -> None:
    page = (outcome.folder / "report.html").read_text()
    finished = outcome.summary["finished"]
    assert f"{finished['training']['accuracy_before']:.2%} &#8594; {finished['accuracy']:.2%}" in page
    assert f"{finished['final_before']:.2%} &#8594; {finished['final_accuracy']:.2%}" in page


def test_an_ended_run_is_trained_on(given: Problem, outcome: Outcome) -> None:
    assert outcome.winner is not None
    before = outcome.summary["finished"]
    summary = finish_run(given, outcome.folder, Progress()).summary
    before, after = json.loads(json.dumps([before, summary["finished"]]))
    assert after["policy"] == before["policy"]
    if after != before:  # where another training made it no better, it is as it was
        assert after["training"]["tried"] == []
        assert after["training"]["accuracy_before"] == before["accuracy"]
    assert json.loads((outcome.folder / "summary.json").read_text())["finished"] == after


def test_off_means_that_nothing_is_trained(with_shared_cache: None, tmp_path: Path) -> None:
    problem = load_problem(trained(enabled=False), Progress())
    outcome = run_search(problem, tmp_path / "run", Progress())
    assert outcome.summary["finished"] is None
    assert outcome.winner is not None
    summary = finish_run(replace(problem, config=trained()), tmp_path / "run", Progress()).summary
    assert summary["finished"]["training"]["accuracy_before"] == outcome.winner.evaluation.accuracy


@pytest.mark.parametrize("text", [False, "off", True, "on", None, {"time": "5m"}])
def test_one_key_switches_it(text: object) -> None:
    found = tiny(finish=text).finish
    assert found == FinishConfig(enabled=text not in (False, "off"), **(text if isinstance(text, dict) else {}))
    assert make_config(tiny(finish=text).model_dump(mode="json", by_alias=True, exclude_none=True)).finish == found


@pytest.mark.parametrize(
    ("finish", "said"),
    [
        ("maybe", "finish: write true, false, or keys"),
        ({"time": "-1"}, "finish.time: '-1' is not a duration"),
        ({"epochs": 0}, "finish.epochs: Input should be greater than 0"),
        ({"first": 1}, "finish.first: Input should be less than 1"),
        ({"bogus": 1}, "finish.bogus"),
        ({"candidates": 0}, "finish.candidates"),
    ],
)
def test_wrong_keys_are_named(finish: object, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)) as caught:
        tiny(finish=finish)
    assert "FinishConfig" not in str(caught.value)


def over_size(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.search.finish.finishing.stored_bytes", lambda graph: 100 * kernels.stored_bytes(graph))


def test_what_training_takes_over_a_budget_is_not_kept(
    given: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_size(given, monkeypatch)
    said = Lines()
    outcome = run_search(given, tmp_path / "run", said)
    assert outcome.summary["finished"] is None
    assert outcome.winner is not None
    assert any("over its budgets (size by" in line for line in said.said)
    candidate = candidate_of(given, outcome.winner.evaluation.policy, tmp_path / "run")
    assert candidate.network.weights_hash() == given.judge.candidate(candidate.policy).network.weights_hash()
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    # It is not lost: measured again, and now within, it is taken without another training.
    monkeypatch.undo()
    monkeypatch.setattr("trimtab.search.finish.finishing.train", None)
    assert finish_run(given, tmp_path / "run", Progress(), resume=True).summary["finished"] is not None


def test_training_keeps_within_the_bytes_that_the_search_has_filled(
    with_shared_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is left of the budget; and it is the holding that does it."""
    import trimtab.search.run as module

    problem = load_problem(trained(enabled=False), Progress())
    outcome = run_search(problem, tmp_path / "run", Progress())
    assert outcome.winner is not None
    full = kernels.stored_bytes(lower(candidate_of(problem, outcome.winner.evaluation.policy, outcome.folder)))
    recall = module.recall_setting

    def recalled(*arguments: object) -> Setting:
        setting = recall(*arguments)  # type: ignore[arg-type]
        limits = {**setting.baseline.limits, "size": full}
        return replace(setting, baseline=replace(setting.baseline, limits=limits))

    monkeypatch.setattr(module, "recall_setting", recalled)
    problem = replace(problem, config=trained(learning_rate=0.01))
    said = Lines()
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "adjust", lambda learner: None)
        finish_run(problem, tmp_path / "run", said)
    assert any("over its budgets (size by" in line for line in said.said)
    held = Lines()
    finished = finish_run(problem, tmp_path / "run", held).summary["finished"]
    assert not any("over its budgets" in line for line in held.said)
    if finished is None:  # so few images may not prefer it
        (file,) = (tmp_path / "run" / "finishing").glob("*.trained.safetensors")
        trained_one, _ = load_candidate(file, problem.space)
        assert kernels.stored_bytes(lower(trained_one)) <= full
        return
    assert finished["size"] <= full
    assert finished["accuracy"] > finished["training"]["accuracy_before"]


def test_what_training_makes_worse_is_not_kept(given: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trimtab.search.finish.finishing as module

    real = module.train

    def ruin(candidate: object, *arguments: object, **settings: object) -> object:
        found = real(candidate, *arguments, **settings)  # type: ignore[arg-type]
        nodes = [op.with_weights(bias=np.zeros_like(op.bias)) if op.is_layer else op for op in found.network]
        return replace(found, network=replace(found.network, nodes=tuple(nodes)))

    monkeypatch.setattr(module, "train", ruin)
    said = Lines()
    outcome = run_search(given, tmp_path / "run", said)
    assert outcome.summary["finished"] is None
    assert any("it stays as it was" in line for line in said.said)


def test_what_predicts_as_the_network_as_given_is_not_trained(with_shared_cache: None, tmp_path: Path) -> None:
    problem = load_problem(
        tiny(budgets={"size": "2x"}, finish=BRIEF, trials=2, agent="uniform", baselines=[]), Progress()
    )
    said = Lines()
    outcome = run_search(problem, tmp_path / "run", said)
    assert outcome.winner is not None
    assert outcome.winner.evaluation.loss < 1e-3
    assert outcome.summary["finished"] is None
    assert any("nothing to train" in line for line in said.said)


def test_an_interrupt_while_winners_are_verified_lets_that_end_and_nothing_is_trained(
    given: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Verifier.winner

    def interrupted(*arguments: object) -> object:
        monkeypatch.setattr(Verifier, "winner", real)
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Verifier, "winner", interrupted)
    outcome = run_search(given, tmp_path / "run", Progress())
    assert outcome.interrupted
    assert outcome.winner is not None
    assert outcome.summary["finished"] is None
    last = read_journal(tmp_path / "run" / "journal")[-1]
    assert (last.kind, last.data["interrupted"]) == ("finished", True)
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    again = run_search(given, tmp_path / "run", Progress(), resume=True)
    assert again.summary["finished"] is not None
    assert not read_journal(tmp_path / "run" / "journal")[-1].data["interrupted"]


def test_an_interrupted_finishing_is_reported_and_gone_on_with(
    given: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trimtab.search.finish.finishing as module

    real, calls = module.train, 0

    def interrupted(*arguments: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train", interrupted)
    said = Lines()
    outcome = run_search(given, tmp_path / "run", said)
    assert outcome.interrupted
    assert outcome.winner is not None
    assert outcome.summary["finished"] is None
    assert any("trimtab finish" in line for line in said.said)
    again = run_search(given, tmp_path / "run", Progress(), resume=True)
    assert calls == 4  # what was trained is not trained again: the second try, and the best to the end
    assert again.summary["finished"] is not None
    assert not again.interrupted
    run_search(given, tmp_path / "run", Progress(), resume=True)
    assert calls == 4


def test_a_run_without_a_winner_cannot_be_finished(given: Problem, outcome: Outcome, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**outcome.summary, "winner": None}))
    with pytest.raises(BadInput, match="no winner"):
        finish_run(given, tmp_path, Progress())
    with pytest.raises(BadInput, match="holds no finished run"):
        finish_run(given, tmp_path / "nowhere", Progress())


def test_what_a_search_began_the_command_goes_on_with(
    given: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trimtab.search.finish.finishing as module

    real, trainings = module.train, list[str]()

    def interrupted(*arguments: object, **settings: object) -> object:
        trainings.append(Path(str(settings["checkpoint"])).name)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train", interrupted)
    run_search(given, tmp_path / "run", Progress())
    # Whatever is asked for now, the training is the one that was ordered.
    other = replace(given, config=trained(epochs=1, learning_rate=0.1))
    summary = finish_run(other, tmp_path / "run", Progress(), resume=True).summary
    assert trainings[3:] == trainings[2:3]
    assert len(summary["finished"]["training"]["tried"]) == 2
    assert summary["finished"]["training"]["recipe"]["learning_rate"] == 0.003


def test_a_training_that_fails_leaves_a_run_that_is_reported(
    given: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = given.splits.train()
    broken = replace(given, splits=replace(given.splits, train=lambda: (images, labels + 1)))
    said = Lines()
    outcome = run_search(broken, tmp_path / "run", said)
    assert outcome.winner is not None
    assert outcome.summary["finished"] is None
    assert "the winner stays untrained: training images have labels up to 10, the network has 10 outputs" in said.said
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_finished_run_that_is_gone_on_with_stays_finished(given: Problem, tmp_path: Path) -> None:
    problem = load_problem(trained(enabled=False), Progress())
    run_search(problem, tmp_path / "run", Progress())
    finished = finish_run(given, tmp_path / "run", Progress()).summary["finished"]
    again = run_search(problem, tmp_path / "run", Progress(), resume=True)
    assert again.summary["finished"] is not None
    assert again.summary["finished"]["loss"] == finished["loss"]
