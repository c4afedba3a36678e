from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.evaluators.fakes import FakeEngine
from tests.evaluators.nets import space_of

from trimtab import kernels
from trimtab.evaluators import LatencyTable, lower
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines import TimeSlice, make_engine
from trimtab.evaluators.measure import step_timer
from trimtab.evaluators.measure.step_timer import REFERENCE
from trimtab.evaluators.price import table
from trimtab.evaluators.price.plan import STEP, Step, StepPlan, step_graph
from trimtab.kernels import Graph
from trimtab.spaces import Policy

SPACE = space_of("resnet8")


def policies() -> list[Policy]:
    return [SPACE.base(), SPACE.int8()]


def steps() -> list[Step]:
    """Distinct steps of a network, in order."""
    plan = StepPlan(SPACE)
    return list(dict.fromkeys(step for policy in policies() for step in plan.steps(policy)))


def fill(latencies: LatencyTable, *chosen: Policy) -> LatencyTable:
    for policy in chosen or policies():
        latencies.fill(policy, StepPlan(SPACE).calls(policy))
    return latencies


def filled(folder: Path, engine: FakeEngine | None = None) -> tuple[LatencyTable, FakeEngine]:
    engine = engine or FakeEngine()
    return fill(LatencyTable(engine, SPACE, folder)), engine


def test_a_step_costs_its_least_slice(tmp_path: Path) -> None:
    latencies, engine = filled(tmp_path)
    for step in steps():
        assert latencies.seconds(step) == pytest.approx(engine.truth(step))


def test_nothing_is_measured_before_it_is_asked(tmp_path: Path) -> None:
    engine = FakeEngine()
    latencies = LatencyTable(engine, SPACE, tmp_path)
    assert (len(latencies), engine.measured) == (0, [])
    fill(latencies, SPACE.base())
    assert latencies.measured == len(set(StepPlan(SPACE).steps(SPACE.base())))


def test_every_step_is_measured_once(tmp_path: Path) -> None:
    latencies, engine = filled(tmp_path)
    count = len(engine.measured)
    fill(latencies)
    assert len(engine.measured) == count
    assert latencies.measured == len(steps())


def test_another_process_reads_what_was_measured(tmp_path: Path) -> None:
    first, _ = filled(tmp_path)
    second, engine = filled(tmp_path)
    assert engine.measured == []
    assert second.measured == 0
    assert [first.seconds(step) for step in steps()] == [second.seconds(step) for step in steps()]


def test_every_step_has_the_kernel_that_ran_it(tmp_path: Path) -> None:
    engine = FakeEngine()
    expected = [engine.layer_kernel(step_graph(step), STEP) for step in steps()]
    fresh = fill(LatencyTable(engine, SPACE, tmp_path))
    assert [fresh.kernel(step) for step in steps()] == expected
    again, _ = filled(tmp_path)
    assert [again.kernel(step) for step in steps()] == expected
    assert again.measured == 0


def test_tables_lie_in_the_cache(cache: Path) -> None:
    latencies = LatencyTable(FakeEngine(), SPACE)
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
        fill(LatencyTable(FakeEngine(), SPACE, tmp_path, seen.append))
    assert seen == [len(set(StepPlan(SPACE).steps(SPACE.base()))), len(steps())]


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
    monkeypatch.setattr(step_timer, "REFERENCE_LASTS", -1.0)
    engine = FakeEngine()
    latencies = fill(LatencyTable(engine, SPACE, tmp_path), SPACE.base())
    engine.speed = 1.7
    fill(latencies)
    for step in steps():
        assert latencies.seconds(step) == pytest.approx(engine.truth(step))


def test_the_reference_is_measured_again_only_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def references(lasts: float) -> int:
        monkeypatch.setattr(step_timer, "REFERENCE_LASTS", lasts)
        _, engine = filled(tmp_path / str(lasts))
        return sum(graph.nodes[-1].attrs == step_graph(REFERENCE).nodes[-1].attrs for graph in engine.measured)

    same = sum(step_graph(step).nodes[-1].attrs == step_graph(REFERENCE).nodes[-1].attrs for step in steps())
    assert references(1e9) - same == 2  # the table's own, and the first one that steps are measured beside
    assert references(-1.0) - same == 1 + len(steps())


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
    first, engine = LatencyTable(FakeEngine(), SPACE, tmp_path), FakeEngine()
    second = LatencyTable(engine, SPACE, tmp_path)  # opened before the first one has measured anything
    told = [fill(first).seconds(step) for step in steps()]
    fill(second)
    assert [second.seconds(step) for step in steps()] == told
    assert engine.measured == []


def test_entries_of_another_machine_are_taken_where_there_are_none(tmp_path: Path) -> None:
    first, _ = filled(tmp_path / "a")
    engine = FakeEngine()
    second = LatencyTable(engine, SPACE, tmp_path / "b")
    second.adopt(first.entries)
    fill(second)
    assert [second.seconds(step) for step in steps()] == [first.seconds(step) for step in steps()]
    assert engine.measured == []


def test_another_network_is_another_table(tmp_path: Path) -> None:
    filled(tmp_path)
    LatencyTable(FakeEngine(), space_of("resnet8-b"), tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


# in place


class StepSessions:
    """Sessions of a made-up machine: every step takes its multiply-accumulates, and the first one a unit more."""

    name, threads, has_bf16, signature, tells_steps = "steps", 1, False, "steps 1", True

    def __init__(self) -> None:
        self.compiled, self.speed = 0, 1.0

    def compile(self, graph: Graph, batch: int = 1, ranges: object = None) -> MacsSession:
        self.compiled += 1
        return MacsSession(self, graph)

    def layer_kernel(self, graph: Graph, layer: str) -> str:
        raise NotImplementedError

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> list[float]:
        raise NotImplementedError


class MacsSession:
    def __init__(self, machine: StepSessions, graph: Graph) -> None:
        self.machine = machine
        self.session = kernels.Session(graph)
        self.kernels = self.session.kernels

    def run(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def profile(self, inputs: np.ndarray, seconds: float) -> dict[str, float]:
        names = self.session.steps
        return {name: self.machine.speed * 1e-6 * (1 + i) for i, name in enumerate(names)}

    def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
        return TimeSlice(1, sum(self.profile(inputs, seconds).values()), 0)


def test_steps_are_read_off_the_network_that_runs_them(tmp_path: Path) -> None:
    engine = StepSessions()
    latencies = LatencyTable(engine, SPACE, tmp_path)
    base = SPACE.base()
    fill(latencies, base)
    assert engine.compiled == 2  # the network, and the reference that it is in turn with
    found = [latencies.seconds(step) for step in StepPlan(SPACE).steps(base)]
    assert len(set(found)) == len(found)
    expected = kernels.Session(lower(timing_candidate(SPACE, base))).kernels
    for call in StepPlan(SPACE).calls(base):
        assert latencies.kernel(call.step) == expected.get(call.tensor, "")


def test_steps_in_place_are_multiples_of_the_reference(tmp_path: Path) -> None:
    engine = StepSessions()
    latencies = LatencyTable(engine, SPACE, tmp_path)
    fill(latencies, SPACE.int8())
    engine.speed = 1.6  # the machine slows down between two measurements: nothing is to be seen of it
    fill(latencies, SPACE.base())
    for number, call in enumerate(StepPlan(SPACE).calls(SPACE.base())):
        if call.step not in StepPlan(SPACE).steps(SPACE.int8()):
            assert latencies.seconds(call.step) == pytest.approx(1e-6 * (1 + number))


def test_on_the_native_engine_the_table_adds_up_to_the_network(tmp_path: Path) -> None:
    engine = make_engine("native", 1)
    latencies = LatencyTable(engine, SPACE, tmp_path)
    fill(latencies)
    for policy in policies():
        total = sum(latencies.seconds(step) for step in StepPlan(SPACE).steps(policy))
        candidate = timing_candidate(SPACE, policy)
        session = engine.compile(lower(candidate), 1, candidate.ranges)
        x = np.zeros((1, 1, *SPACE.network.input_shape), np.float32)
        slices = [session.time(x, 0.002) for _ in range(30)]
        assert total == pytest.approx(min(piece.seconds / piece.runs for piece in slices), rel=0.5)
