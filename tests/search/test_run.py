from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.evaluators.accuracy import Judge, Judgement, judging_session
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.data import Images, Labels
from trimtab.evaluators.measure.comparison import Verdict
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Link
from trimtab.search.finish.evaluate import evaluate_policy
from trimtab.search.finish.export import ExportCheck, export_candidate
from trimtab.search.finish.run_link import measured_link
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.experiment import prepare_folder
from trimtab.search.loop.journal import Journal, Record, read_journal
from trimtab.search.loop.preference import preferred
from trimtab.search.progress import Progress
from trimtab.search.run import Outcome, open_run, run_search
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import bench_of
from trimtab.spaces import Candidate, Policy


@dataclass(frozen=True)
class Finished:
    problem: Problem
    outcome: Outcome
    records: list[Record]
    final_reads: int
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.outcome.folder

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record.data for record in self.records if record.kind == kind]


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory, with_shared_cache: None) -> Finished:
    """A complete run, with its reads of the final images counted."""
    reads = 0

    def final() -> tuple[Images, Labels]:
        nonlocal reads
        reads += 1
        return problem.splits.final()

    counted = replace(problem, splits=replace(problem.splits, final=final))
    folder = tmp_path_factory.mktemp("runs") / "run"
    outcome = run_search(counted, folder, Progress())
    summary = json.loads((folder / "summary.json").read_text())
    return Finished(problem, outcome, read_journal(folder / "journal"), reads, summary)


def test_a_run_leaves_its_files_and_no_half_ones(finished: Finished) -> None:
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    events = [path for path in files if path.name.startswith("events.out.tfevents.")]
    assert {str(path.parent.relative_to(finished.folder)) for path in events} == {
        f"tensorboard/{agent}" for agent in ("milp", "random", "uniform")
    }
    found = {str(path.relative_to(finished.folder)) for path in files if path not in events}
    exports = {f"export/{name}" for name in ("policy.json", "model.safetensors", "model.onnx")}
    winners = {row["best"]["policy"] for row in finished.summary["agents"] if row["best"]}
    candidates = {f"candidates/{policy}.safetensors" for policy in winners}
    assert found == {"config.yaml", "journal", "policy.json", "report.html", "summary.json"} | exports | candidates
    assert len({path.stat().st_mode for path in files}) == 1


def test_the_configuration_in_the_folder_is_that_of_the_run(finished: Finished) -> None:
    assert open_run(finished.folder) == finished.problem.config


def test_the_journal_begins_with_the_setting_and_ends_finished(finished: Finished) -> None:
    kinds = [record.kind for record in finished.records]
    assert kinds[:2] == ["experiment", "setting"]
    assert kinds[-1] == "finished"
    assert finished.of("finished")[0]["winner"] == Policy.from_json(finished.summary["winner"]["policy"]).id


def test_all_agents_have_equally_many_evaluations(finished: Finished) -> None:
    counts = {row["agent"]: row["evaluations"] for row in finished.summary["agents"]}
    assert set(counts) == {"uniform", "random", "milp"}
    assert counts["random"] == counts["milp"] == 6
    asked = Counter[str]()
    for batch in finished.of("ask"):
        asked[batch["agent"]] += len(batch["policies"])
    assert asked == counts


def test_no_policy_is_judged_twice(finished: Finished) -> None:
    judged = [Policy.from_json(data["policy"]).id for data in finished.of("result")]
    assert len(judged) == len(set(judged))
    asked = {Policy.from_json(policy).id for batch in finished.of("ask") for policy in batch["policies"]}
    assert asked == set(judged)


def test_only_feasible_policies_are_judged(finished: Finished) -> None:
    limits = finished.of("setting")[0]["baseline"]["limits"]
    for data in finished.of("result"):
        evaluation = Evaluation.from_json(data)
        assert evaluation.feasible
        assert all(evaluation.cost.get(name) <= limit for name, limit in limits.items())


def test_the_summary_agrees_with_the_journal(finished: Finished) -> None:
    judged = {Policy.from_json(data["policy"]).id: data for data in finished.of("result")}
    for point in finished.summary["points"]:
        data = judged[point["policy"]]
        assert (point["accuracy"], point["size"]) == (data["accuracy"], data["cost"]["size"])
    baseline = finished.of("setting")[0]["baseline"]
    assert {b["name"]: b["limit"] for b in finished.summary["budgets"]} == baseline["limits"]
    assert finished.summary["base"]["latency"] == baseline["base"]["latency"]
    base, config = baseline["base"], finished.problem.config
    assert baseline["limits"]["size"] == pytest.approx(0.5 * base["size"])
    assert baseline["limits"]["latency"] == pytest.approx(1.2 * base["latency"])
    assert finished.summary["trials"] == config.trials


def test_the_winner_is_preferred_among_all_agents(finished: Finished) -> None:
    bests = {row["agent"]: row["best"] for row in finished.summary["agents"] if row["best"]}
    winner = finished.summary["winner"]
    judged = [Evaluation.from_json(data) for data in finished.of("result")]
    found = preferred(e for e in judged if e.policy.id in {best["policy"] for best in bests.values()})
    assert found is not None
    best = bests[winner["agent"]]
    assert (best["policy"], best["accuracy"], best["loss"]) == (found.policy.id, found.accuracy, found.loss)
    assert json.loads((finished.folder / "policy.json").read_text()) == winner["policy"]
    assert json.loads((finished.folder / "export" / "policy.json").read_text()) == winner["policy"]


class Undecided(Judge):
    """A judge in whose eyes all networks answer alike."""

    def __call__(self, policy: Policy) -> Judgement:
        judged = super().__call__(policy)
        return replace(judged, answers=Answers(judged.answers.images, 1))


def test_of_networks_of_the_same_accuracy_the_one_of_the_lowest_loss_is_exported(
    problem: Problem, tmp_path: Path
) -> None:
    judge = problem.judge
    undecided = Undecided(judge.space, judge.calibration, judge.images, judge.targets)
    config = tiny(trials=6, agent="random", baselines=["uniform"], budgets={"size": "0.5x"})
    outcome = run_search(replace(problem, config=config, judge=undecided), tmp_path / "run", Progress())
    records = read_journal(tmp_path / "run" / "journal")
    judged = [Evaluation.from_json(record.data) for record in records if record.kind == "result"]
    assert len({e.accuracy for e in judged}) == 1
    assert len({e.loss for e in judged}) > 2
    best = min((e for e in judged if e.feasible), key=lambda e: e.loss)
    assert Policy.load(tmp_path / "run" / "export" / "policy.json") == best.policy
    assert outcome.winner is not None
    assert outcome.winner.evaluation.loss == best.loss
    assert judge.loss(judging_session(judge.candidate(best.policy)).run(judge.images)) == best.loss


def test_every_reported_network_meets_the_budgets_when_measured(finished: Finished) -> None:
    limits = finished.of("setting")[0]["baseline"]["limits"]
    reported = [row["best"] for row in finished.summary["agents"] if row["best"]]
    assert reported
    for best in reported:
        assert best["limit_share"][2] <= 1
        assert best["size"] <= limits["size"]
        assert all(violation <= 0 for violation in best["violations"].values())


def refuse_exports(monkeypatch: pytest.MonkeyPatch, verdict: Verdict, times: int) -> list[str]:
    """Let the first exported files be measured on the wrong side of the latency budget; return whose they were."""
    refused: list[str] = []

    def exported(
        problem: Problem, candidate: Candidate, folder: Path, link: Link, limit: Interval
    ) -> list[ExportCheck]:
        native, *others = export_candidate(problem, candidate, folder, link, limit)
        if len(refused) < times:
            refused.append(candidate.policy.id)
            share = {"over": (1.1, 1.05, 1.15), "open": (1.0, 0.95, 1.05)}[verdict]
            bounds = Interval(*(part * limit.middle for part in share))
            native = replace(native, latency=replace(native.latency, bounds=bounds), verdict=verdict)
        return [native, *others]

    monkeypatch.setattr("trimtab.search.run.export_candidate", exported)
    return refused


@pytest.mark.parametrize("verdict", ["over", "open"])
def test_a_file_that_was_not_measured_within_the_budget_is_not_the_winner(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    refused = refuse_exports(monkeypatch, verdict, 1)
    outcome = run_search(replace(problem, config=tiny(baselines=["random"], trials=4)), tmp_path / "run", Progress())
    assert outcome.winner is not None
    assert outcome.summary["refused"] == refused
    assert outcome.winner.evaluation.policy.id not in refused
    for path in ("policy.json", "export/policy.json"):
        assert Policy.load(tmp_path / "run" / path) == outcome.winner.evaluation.policy
    winning = next(r for r in outcome.summary["agents"] if r["agent"] == outcome.winner.agent)["best"]
    (native, _) = outcome.summary["exports"]
    assert native["verdict"] == "within"
    assert winning["latency"] == native["latency"]  # what is called met is what was measured of the file


def test_where_no_file_was_measured_within_the_budget_nothing_is_called_met(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    refused = refuse_exports(monkeypatch, "over", 100)
    progress = Progress()
    monkeypatch.setattr(progress, "line", said.append)
    outcome = run_search(replace(problem, config=tiny(baselines=[], trials=3)), tmp_path / "run", progress)
    assert (outcome.winner, outcome.summary["winner"]) == (None, None)
    assert outcome.summary["refused"] == refused
    assert len(refused) == len(set(refused)) > 0
    assert not (tmp_path / "run" / "policy.json").exists()
    assert not (tmp_path / "run" / "export").exists()
    assert "not met" in (tmp_path / "run" / "report.html").read_text()
    assert any("over the latency budget" in line for line in said)


def test_the_exported_weights_are_within_the_size_budget(finished: Finished) -> None:
    from safetensors import safe_open

    limit = finished.of("setting")[0]["baseline"]["limits"]["size"]
    with safe_open(finished.folder / "export" / "model.safetensors", "numpy") as file:
        stored = file.get_tensor("weights").nbytes
    assert stored <= limit
    best = next(r["best"] for r in finished.summary["agents"] if r["agent"] == finished.summary["winner"]["agent"])
    assert stored == best["size"]


def test_the_final_images_are_read_once(finished: Finished) -> None:
    assert finished.final_reads == 1
    assert 0 <= finished.summary["base"]["final_accuracy"] <= 1


def test_the_exports_agree_with_what_was_measured(finished: Finished) -> None:
    native, onnx = finished.summary["exports"]
    assert (native["engine"], native["agreement"], native["largest_difference"]) == ("native", 1.0, 0.0)
    assert onnx["engine"] == "onnxruntime"
    assert onnx["agreement"] >= 0.97
    winner = finished.outcome.winner
    assert winner is not None
    assert native["accuracy"] == winner.evaluation.accuracy


WITHOUT_TORCH = """
import sys
for name in ("torch", "ray", "optuna", "onnx", "sklearn"):
    sys.modules[name] = None
import numpy as np
from trimtab import kernels
images = np.load(sys.argv[2])
np.save(sys.argv[3], kernels.load(sys.argv[1]).run(images))
"""


def test_the_artefact_runs_without_torch(finished: Finished, tmp_path: Path) -> None:
    images, labels = finished.problem.judge.images[:1], finished.problem.judge.targets
    np.save(tmp_path / "x.npy", images)
    artefact = finished.folder / "export" / "model.safetensors"
    command = [sys.executable, "-c", WITHOUT_TORCH, artefact, tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run(list(map(str, command)), check=True)
    assert np.load(tmp_path / "y.npy").shape == (1, labels.max() + 1)


def test_the_front_is_feasible_and_rises(finished: Finished) -> None:
    front = finished.outcome.front
    assert front
    assert all(evaluation.feasible for evaluation in front)
    assert [e.accuracy for e in front] == sorted({e.accuracy for e in front})
    assert [e.policy.id for e in front] == finished.summary["pareto"]


def test_resuming_a_finished_run_evaluates_nothing(finished: Finished, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "again"
    shutil.copytree(finished.folder, folder)
    run_search(finished.problem, folder, Progress(), resume=True)
    added = read_journal(folder / "journal")[len(finished.records) :]
    assert {record.kind for record in added} <= {"finished", "measured", "stage", "verified"}
    again = json.loads((folder / "summary.json").read_text())
    keys = ("agent", "policy", "accuracy", "size")
    points = [[{key: p[key] for key in keys} for p in s["points"]] for s in (finished.summary, again)]
    assert points[0] == points[1]


def test_more_trials_go_on_where_the_run_ended(finished: Finished, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "more"
    shutil.copytree(finished.folder, folder)
    more = replace(finished.problem, config=tiny(trials=8))
    outcome = run_search(more, folder, Progress(), resume=True)
    asked = [record.data for record in read_journal(folder / "journal") if record.kind == "ask"]
    assert asked[: len(finished.of("ask"))] == finished.of("ask")
    assert {r["agent"]: r["evaluations"] for r in outcome.summary["agents"]}["random"] == 8
    assert open_run(folder).trials == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 3}, "the configuration is not the one"),
        ({"budgets": {"size": "0.4x"}}, "the configuration is not the one"),
    ],
)
def test_a_run_is_not_resumed_as_another(
    finished: Finished, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = replace(finished.problem, config=tiny(**changes))
    before = (finished.folder / "journal").read_bytes()
    with pytest.raises(BadInput, match=said):
        run_search(other, finished.folder, Progress(), resume=True)
    assert (finished.folder / "journal").read_bytes() == before
    assert open_run(finished.folder) == finished.problem.config


@pytest.mark.parametrize("made", [(), ("config.yaml",), ("config.yaml", "journal")])
def test_a_run_killed_before_its_first_record_begins_again(
    finished: Finished, tmp_path: Path, made: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in made:
        (folder / name).write_bytes((finished.folder / name).read_bytes()[:45] if name == "journal" else b"")
    if not made:
        with pytest.raises(BadInput, match="no run to resume"):
            prepare_folder(folder, resume=True)
        return
    problem = replace(finished.problem, config=tiny(trials=1, baselines=[]))
    outcome = run_search(problem, folder, Progress(), resume=True)
    kinds = [record.kind for record in read_journal(folder / "journal")]
    assert kinds[:2] == ["experiment", "setting"]
    assert len(outcome.summary["points"]) == 1


def test_an_infeasible_budget_leaves_no_folder(problem: Problem, tmp_path: Path) -> None:
    impossible = replace(problem, config=tiny(budgets={"size": "0.01x"}))
    with pytest.raises(InfeasibleBudget, match=r"budget size = .* KiB cannot be met: the smallest reachable size"):
        run_search(impossible, tmp_path / "run", Progress())
    assert not (tmp_path / "run").exists()


def test_the_smallest_reachable_value_that_is_said_can_be_reached(problem: Problem, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudget) as error:
        run_search(replace(problem, config=tiny(budgets={"size": "1 B"})), tmp_path / "run", Progress())
    said = str(error.value).split("space is ")[1].split(" KiB")[0]
    budget = f"{float(said) * 1.001:.6f} KiB"
    config = tiny(budgets={"size": budget}, trials=2, baselines=[])
    outcome = run_search(replace(problem, config=config), tmp_path / "run", Progress())
    assert outcome.winner is not None


def test_a_run_of_an_older_trimtab_is_refused_by_name(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes((finished.folder / "config.yaml").read_bytes())
    with Journal(tmp_path / "run" / "journal") as journal:
        for kind in ("run", "space", "ground"):
            journal.append(kind, {})
    with pytest.raises(BadInput, match="of an older trimtab"):
        run_search(finished.problem, tmp_path / "run", Progress(), resume=True)
    # What only measures is not kept from it: it ties the yardstick anew.
    link, _ = measured_link(finished.problem, bench_of(finished.problem), tmp_path / "run", Progress())
    assert link.blocks > 0


def test_what_evaluates_and_exports_takes_the_run_s_link(finished: Finished) -> None:
    link, limit = measured_link(finished.problem, bench_of(finished.problem), finished.folder, Progress())
    baseline = finished.of("setting")[0]["baseline"]
    assert link == Link.from_json(baseline["link"])
    assert limit == Interval(*baseline["limit"])


def test_an_evaluation_agrees_with_the_report(finished: Finished) -> None:
    policy = Policy.load(finished.folder / "policy.json")
    found = evaluate_policy(finished.problem, policy, Progress(), finished.folder)
    best = next(r["best"] for r in finished.summary["agents"] if r["agent"] == finished.summary["winner"]["agent"])
    # The int8 form, which one of them might have been told in multiples of, takes half as long again.
    assert best["latency"]["ratio"] == pytest.approx(found["latency"]["ratio"], rel=0.2)
    assert found["verdict"] == "within"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, said in (("full", "exists already"), ("file", "is a file")):
        with pytest.raises(BadInput, match=said):
            prepare_folder(tmp_path / name, resume=False)
    with pytest.raises(BadInput, match="not a folder that may be written to"):
        prepare_folder(tmp_path / "file" / "below", resume=False)
    prepare_folder(tmp_path / "empty", resume=False)
    prepare_folder(tmp_path / "new" / "deep", resume=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(BadInput, match="no run to resume"):
        prepare_folder(tmp_path / "new", resume=True)


def test_a_time_limit_is_shared_by_the_agents_and_kept_within_an_evaluation(problem: Problem, tmp_path: Path) -> None:
    config = tiny(trials=5000, time_limit="4s", budgets={"size": "0.5x", "macs": "0.9x"})
    run_search(replace(problem, config=config), tmp_path / "run", Progress())
    records = read_journal(tmp_path / "run" / "journal")
    spent: dict[str, list[float]] = {}
    for record in records:
        if record.kind == "told":
            spent.setdefault(record.data["agent"], []).append(record.data["seconds"]["total"])
    assert set(spent) == {"uniform", "random", "milp"}
    assert all(len(batches) < 5000 for batches in spent.values())
    everything = [seconds for batches in spent.values() for seconds in batches]
    assert sum(everything) < 4 + max(everything)
    assert sum(spent["milp"][:-1]) < 4  # when the last evaluation was begun, there was time left
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {row["agent"]: row["evaluations"] for row in summary["agents"]} == {a: len(b) for a, b in spent.items()}
