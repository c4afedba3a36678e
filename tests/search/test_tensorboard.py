from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.search.loop.journal import read_journal
from trimtab.search.loop.loop import Memory
from trimtab.search.loop.tensorboard import Scalars
from trimtab.search.progress import Progress
from trimtab.search.setup.baseline import Baseline

#: Tag -> its (step, value) in the order of the file.
Read = dict[str, list[tuple[int, float]]]


def by_records(folder: Path) -> Read:
    """Read an event file as TensorFlow writes records: a length, its checksum, so many bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    content, at, found = path.read_bytes(), 0, Read()
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def by_tensorboard(folder: Path) -> Read:
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module, reason="tensorboard is not installed").EventAccumulator(str(folder)).Reload()
    return {tag: [(each.step, each.value) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.mark.parametrize("read", [by_records, by_tensorboard])
def test_every_evaluation_of_a_search_is_there_as_the_journal_has_it(
    small_run: Path, read: Callable[[Path], Read]
) -> None:
    records = read_journal(small_run / "journal")
    base = next(r.data for r in records if r.kind == "setting")["baseline"]["base"]
    for agent in ("random", "milp"):
        found, judged = read(small_run / "tensorboard" / agent), Memory(records).run(agent).evaluations
        assert [step for step, _ in found["accuracy"]] == [1, 2, 3, 4]
        for tag, expected in {
            "accuracy": [e.accuracy for e in judged],
            "loss": [e.loss for e in judged],
            "latency": [e.cost.latency / base["latency"] for e in judged],
            "size": [e.cost.size / base["size"] for e in judged],
            "macs": [e.cost.macs / base["macs"] for e in judged],
        }.items():
            assert [value for _, value in found[tag]] == pytest.approx(expected, rel=1e-6)


def test_what_is_told_again_is_written_anew_and_a_full_disk_ends_no_run(small_run: Path, tmp_path: Path) -> None:
    records = read_journal(small_run / "journal")
    baseline = Baseline.from_json(next(r.data for r in records if r.kind == "setting")["baseline"])
    run = Memory(records).run("random")
    half = replace(run, evaluations=run.evaluations[:2], moments=run.moments[:2])
    first, again = Scalars(tmp_path / "t", baseline), Scalars(tmp_path / "t", baseline)
    for scalars, runs in ((first, [half, run]), (again, [run])):
        for each in runs:
            scalars.follow(each, Progress())
        scalars.close()
        assert [step for step, _ in by_records(tmp_path / "t" / "random")["loss"]] == [1, 2, 3, 4]

    lines: list[str] = []
    said = Progress()
    said.line = lines.append  # type: ignore[method-assign]
    shutil.rmtree(tmp_path / "t")
    (tmp_path / "t").write_text("in the way")
    broken = Scalars(tmp_path / "t", baseline)
    for _ in range(2):
        broken.follow(run, said)
    broken.close()
    assert len(lines) == 1
    assert "the run goes on" in lines[0]
