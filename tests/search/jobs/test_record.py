"""Exit codes of runs, from what their journals and jobs leave in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
import yaml
from tests.search.runs import tiny

from trimtab.errors import BadInput
from trimtab.search.jobs.cluster import TIMING, Node
from trimtab.search.jobs.entry import main
from trimtab.search.jobs.package import make_package
from trimtab.search.jobs.record import JobRecord, code_of, is_here
from trimtab.search.jobs.run import JobRun
from trimtab.search.jobs.submission import Submission
from trimtab.search.loop.journal import Journal

RECORD = JobRecord("trimtab-0", "trimtab-0-1")


@pytest.mark.parametrize(
    ("end", "left", "code"),
    [
        ({"winner": "a", "interrupted": False}, None, 0),
        ({"winner": "a"}, 1, 0),  # of a version that did not say it, or after trimtab finish
        ({"winner": "a", "interrupted": True}, None, 4),
        ({"winner": None, "interrupted": True}, None, 1),
        ({"winner": None, "interrupted": False}, None, 3),
        (None, None, None),
        (None, 2, 2),
        (None, 3, 3),
    ],
)
def test_the_journal_says_how_a_run_ended_and_the_job_what_never_began(
    tmp_path: Path, end: dict[str, object] | None, left: int | None, code: int | None
) -> None:
    JobRecord("trimtab-0", "trimtab-0-1", left).write(tmp_path)
    with Journal(tmp_path / "journal") as journal:
        journal.append("experiment", {"of": "search"})
        journal.append("finished", {"winner": "before"})
        journal.append("stage", {"stage": "search"})
        if end is not None:
            journal.append("finished", end)
    assert code_of(tmp_path) == code


def test_a_run_that_nobody_goes_on_with_has_failed(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copytree(small_run, run)
    RECORD.write(run)
    state = JobRun.find(str(run), "").state()
    assert (state.code, state.job, state.run is not None and state.run.stage) == (0, "trimtab-0-1", "finished")
    lines = (run / "journal").read_bytes().splitlines(keepends=True)
    (run / "journal").write_bytes(b"".join(lines[:-1]))
    state = JobRun.find(str(run), "").state()
    assert state.code == 1
    assert "the same submit goes on with it" in state.line()


def test_a_run_is_fetched_with_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    RECORD.write(run)
    (run / "checkpoint-1.pt").touch()
    (run / "config.yaml").write_text(f"network: {{zoo: lenet5, checkpoint: {run / 'checkpoint-1.pt'}}}\n")
    JobRun.find(str(run), "").fetch(tmp_path / "got")
    assert str(tmp_path / "got" / "checkpoint-1.pt") in (tmp_path / "got" / "config.yaml").read_text()
    with pytest.raises(BadInput, match="has files already"):
        JobRun.find(str(run), "").fetch(tmp_path / "got")
    with pytest.raises(BadInput, match="--address"):
        JobRun.find(str(tmp_path / "none"), "")


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"submission": "a"')
    with pytest.raises(BadInput, match=r"job\.json is not what a job leaves there"):
        is_here(tmp_path, "a")


def test_a_submission_is_named_after_all_that_it_is_made_of() -> None:
    package = make_package(tiny())
    names = [Submission(tiny(), package, folder).name for folder in ("/a", "/a", "/b")]
    names.append(Submission(tiny(trials=7), make_package(tiny(trials=7)), "/a").name)
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_what_no_cluster_can_do_is_refused_before_it_is_sent() -> None:
    package = make_package(tiny())
    for folder in ("runs/mine", "/shared/../etc"):
        with pytest.raises(BadInput, match="--out is a folder that all nodes see"):
            Submission(tiny(), package, folder)
    with pytest.raises(BadInput, match=r"data\.root is read on the nodes"):
        Submission(tiny(data={"name": "digits", "root": "here"}), package, "/a")
    nodes = [Node("a", {"CPU": 2.0}, {}, True), Node("b", {"CPU": 1.0}, {"trimtab.timing": "true"}, False)]
    plan = Submission(tiny(workers=3), package, "/a").plan("http://a", nodes)
    assert plan["timing"].startswith("on b ")
    with pytest.raises(BadInput, match="workers = 4, and the cluster at http://a has 3 CPUs"):
        Submission(tiny(workers=4), package, "/a").plan("http://a", nodes)


def test_the_example_for_ray_up_is_one_by_its_schema() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    example = yaml.safe_load((Path(__file__).parents[3] / "docs" / "ray-up.yaml").read_text())
    jsonschema.validate(example, schema)
    assert [TIMING in kind.get("labels", {}) for kind in example["available_node_types"].values()] == [True, False]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "config.yaml").write_text(tiny().to_yaml())
    monkeypatch.chdir(tmp_path / "package")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    assert main(tmp_path / "home", "trimtab-0", "trimtab-0-1") == 2
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]
