from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.evaluators.fakes import FakeEngine
from tests.evaluators.nets import space_of

from trimtab.evaluators import LatencyTable, table
from trimtab.evaluators.steps import STEP, Step, StepPlan, step_graph
from trimtab.evaluators.table import REFERENCE


def steps() -> list[Step]:
    """Distinct steps of a network, in order."""
    space = space_of("resnet8")
    plan = StepPlan(space)
    return list(dict.fromkeys([*plan.steps(space.base()), *plan.steps(space.int8())]))


def filled(folder: Path, engine: FakeEngine | None = None) -> tuple[LatencyTable, FakeEngine]:
    engine = engine or FakeEngine()
    latencies = LatencyTable(engine, folder)
    latencies.total(steps())
    return latencies, engine


def test_a_step_costs_its_least_slice(tmp_path: Path) -> None:
    latencies, engine = filled(tmp_path)
    for step in steps():
        assert latencies.seconds(step) == pytest.approx(engine.truth(step))


def test_nothing_is_measured_before_it_is_asked(tmp_path: Path) -> None:
    engine = FakeEngine()
    latencies = LatencyTable(engine, tmp_path)
    assert (len(latencies), engine.measured) == (0, [])
    latencies.seconds(steps()[0])
    assert latencies.measured == 1


def test_every_step_is_measured_once(tmp_path: Path) -> None:
    latencies, engine = filled(tmp_path)
    count = len(engine.measured)
    total = latencies.total(steps() * 3)
    assert len(engine.measured) == count
    assert latencies.measured == len(steps())
    assert total == pytest.approx(3 * sum(engine.truth(step) for step in steps()))


def test_another_process_reads_what_was_measured(tmp_path: Path) -> None:
    first, _ = filled(tmp_path)
    second, engine = filled(tmp_path)
    assert engine.measured == []
    assert second.measured == 0
    assert [first.seconds(step) for step in steps()] == [second.seconds(step) for step in steps()]


def test_every_step_has_the_kernel_that_ran_it(tmp_path: Path) -> None:
    engine = FakeEngine()
    expected = [engine.layer_kernel(step_graph(step), STEP) for step in steps()]
    fresh = LatencyTable(engine, tmp_path)
    assert [fresh.kernel(step) for step in steps()] == expected
    again, _ = filled(tmp_path)
    assert [again.kernel(step) for step in steps()] == expected
    assert again.measured == 0


def test_tables_lie_in_the_cache(cache: Path) -> None:
    latencies = LatencyTable(FakeEngine())
    assert latencies.path.is_relative_to(cache)
    assert latencies.path.is_file()


@pytest.mark.parametrize("signature", ["fake 2", "fake 1 threads=2"])
def test_another_engine_is_another_table(tmp_path: Path, signature: str) -> None:
    filled(tmp_path)
    latencies, engine = filled(tmp_path, FakeEngine(signature))
    assert latencies.measured == len(steps())
    assert engine.measured
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_another_processor_is_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(table, "cpu_name", lambda: "another processor")
    assert filled(tmp_path)[0].measured == len(steps())


def test_progress_counts_new_entries(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(2):
        LatencyTable(FakeEngine(), tmp_path, seen.append).total(steps())
    assert seen == list(range(1, len(steps()) + 1))


def test_the_file_begins_with_what_it_is_for(tmp_path: Path) -> None:
    latencies, _ = filled(tmp_path)
    header, *entries = map(json.loads, latencies.path.read_text().splitlines())
    assert header["engine"] == "fake 1"
    assert {entry["key"] for entry in entries} == {"reference", *(step.key for step in steps())}


def test_entries_are_multiples_of_the_reference(tmp_path: Path) -> None:
    latencies, engine = filled(tmp_path)
    for line in latencies.path.read_text().splitlines()[1:]:
        entry = json.loads(line)
        if entry["key"] == steps()[0].key:
            assert entry["value"] == pytest.approx(engine.truth(steps()[0]) / engine.truth(REFERENCE))


def test_a_machine_that_slows_down_leaves_the_table_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "REFERENCE_LASTS", -1.0)
    engine = FakeEngine()
    latencies = LatencyTable(engine, tmp_path)
    latencies.seconds(steps()[0])
    engine.speed = 1.7
    for step in steps():
        assert latencies.seconds(step) == pytest.approx(engine.truth(step))


def test_the_reference_is_measured_again_only_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(table.time, "monotonic", lambda: now)
    engine = FakeEngine()
    latencies = LatencyTable(engine, tmp_path)

    def references() -> int:
        return sum(graph.nodes[-1].attrs == step_graph(REFERENCE).nodes[-1].attrs for graph in engine.measured)

    wanted = [step for step in steps() if step.kind != "conv2d"]
    latencies.seconds(wanted[0])
    before = references()
    latencies.seconds(wanted[1])
    assert references() == before
    now = 10 * table.REFERENCE_LASTS
    latencies.seconds(wanted[2])
    assert references() == before + 1


def broken(content: bytes, kind: str) -> bytes:
    lines = content.splitlines(keepends=True)
    last = lines[-1]
    return {
        "torn": content[: -len(last) // 2],
        "torn in the middle": b"".join([*lines[:-1], last[:20] + b"\n"]),
        "not text": b"".join([*lines[:-1], b"\xff\xfe\x00\n"]),
        "negative": b"".join([*lines[:-1], last.split(b'"value"')[0] + b'"value": -1.0}\n']),
        "infinite": b"".join([*lines[:-1], last.split(b'"value"')[0] + b'"value": Infinity}\n']),
        "text": b"".join([*lines[:-1], last.split(b'"value"')[0] + b'"value": "fast"}\n']),
        "another value": b"".join([*lines[:-1], b"[1, 2]\n"]),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["torn", "torn in the middle", "not text", "negative", "infinite", "text", "another value"]
)
def test_a_broken_line_is_measured_again_once(tmp_path: Path, kind: str) -> None:
    latencies, _ = filled(tmp_path)
    latencies.path.write_bytes(broken(latencies.path.read_bytes(), kind))
    again, engine = filled(tmp_path)
    assert again.measured == 1
    for step in steps():
        assert again.seconds(step) == pytest.approx(engine.truth(step))
    assert filled(tmp_path)[0].measured == 0


def test_an_empty_file_is_filled(tmp_path: Path) -> None:
    latencies, _ = filled(tmp_path)
    latencies.path.write_bytes(b"")
    assert filled(tmp_path)[0].measured == len(steps())
    assert filled(tmp_path)[0].measured == 0


def test_searches_beside_each_other_price_alike(tmp_path: Path) -> None:
    first, engine = LatencyTable(FakeEngine(), tmp_path), FakeEngine()
    second = LatencyTable(engine, tmp_path)  # opened before the first one has measured anything
    told = [first.seconds(step) for step in steps()]
    assert [second.seconds(step) for step in steps()] == told
    assert engine.measured == []


def test_entries_of_another_machine_are_taken_where_there_are_none(tmp_path: Path) -> None:
    first, _ = filled(tmp_path / "a")
    engine = FakeEngine()
    second = LatencyTable(engine, tmp_path / "b")
    second.adopt(first.entries)
    assert [second.seconds(step) for step in steps()] == [first.seconds(step) for step in steps()]
    assert engine.measured == []
