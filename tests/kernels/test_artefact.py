"""Artefacts come back as they were, and broken ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.kernels import build

from trimtab.errors import BadInput
from trimtab.kernels import ArtefactError, Node, Session, load, read_graph, save

KEY = "trimtab.graph"


@pytest.fixture
def written(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "net.safetensors"
    save(build.resnet20(rng, integer=True), path)
    return path


@pytest.mark.parametrize("integer", [True, False])
def test_roundtrip(integer: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer)
    path = tmp_path / "net.safetensors"
    save(graph, path)
    save(graph, path)  # over an existing file
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    again = read_graph(path)
    assert again.quant == graph.quant
    assert [n.name for n in again.nodes] == [n.name for n in graph.nodes]
    x = build.images(rng, 2, (3, 32, 32))
    np.testing.assert_array_equal(load(path, threads=2, batch=2).run(x), Session(graph).run(x))


def test_a_graph_that_cannot_be_compiled_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        save(build.graph((3,), Node("gelu", "g", ("x",))), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_one(tmp_path: Path) -> None:
    for data in (b"", b"\xff" * 100, b"{}"):
        path = tmp_path / "broken"
        path.write_bytes(data)
        with pytest.raises(ArtefactError, match="broken"):
            load(path)
    with pytest.raises(ArtefactError):
        load(tmp_path / "absent")
    save_file({"a": np.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ArtefactError, match="no trimtab graph"):
        load(tmp_path / "foreign")


CHANGES: dict[str, dict[str, Any]] = {
    "old schema": {"schema": 1},
    "schema": {"schema": 9},
    "no nodes": {"nodes": []},
    "nodes": {"nodes": {"a": 1}},
    "node": {"nodes": [3]},
    "shape": {"input_shape": [3, "a", 1]},
    "huge shape": {"input_shape": [3, 2**40, 2**40]},
    "quant": {"quant": {"x": [1]}},
    "quant type": {"quant": {"x": ["a", "b", "c"]}},
    "quant name": {"quant": {"y": [1.0, 3, 8]}},
    "bits": {"quant": {"x": [1.0, 3, 64]}},
    "zero point": {"quant": {"x": [1.0, 3.5, 8]}},
    "output": {"output": "nothing"},
    "input": {"input": None},
}


@pytest.mark.parametrize("case", CHANGES)
def test_programs_that_make_no_sense(case: str, written: Path) -> None:
    change(written, CHANGES[case])
    with pytest.raises(ArtefactError, match="net"):
        load(written)


def test_nodes_that_make_no_sense(written: Path) -> None:
    node = program_of(written)["nodes"][0]
    for bad in ({"op": "exec"}, {"attrs": {"stride": "a"}}, {"attrs": []}, {"inputs": [1]}, {"weights": ["w"]}):
        change(written, {"nodes": [{**node, **bad}]})
        with pytest.raises(ArtefactError, match="net"):
            load(written)


def program_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    program: dict[str, Any] = json.loads(header["__metadata__"][KEY])
    return program


def change(path: Path, changes: dict[str, Any]) -> None:
    program = {**program_of(path), **changes}
    save_file(load_file(path), path, metadata={KEY: json.dumps(program)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 5000), flips=st.lists(st.tuples(st.integers(0, 12000), st.integers(0, 255)), max_size=4))
def test_damage_is_refused_or_harmless(cut: int, flips: list[tuple[int, int]], written: Path) -> None:
    data = bytearray(written.read_bytes())
    for at, value in flips:
        data[at] = value
    if cut % 2:
        del data[-cut:]
    damaged = written.with_name("damaged")
    damaged.write_bytes(data)
    try:
        session = load(damaged)
    except BadInput:
        return
    assert cut % 2 == 0
    shape = session._graph.input_shape
    session.run(np.zeros((1, *shape), np.float32))
