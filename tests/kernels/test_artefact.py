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
from trimtab.kernels import ArtefactError, Graph, Node, Session, load, read_graph, save, stored_bytes

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


def narrow(bits: int, size: tuple[int, ...] = (6, 4, 3, 3)) -> Graph:
    """A layer whose int8 weights take at most 2^bits values, scattered over the whole range."""
    rng = np.random.default_rng(bits)
    values = rng.choice(np.arange(-128, 128), 2**bits, replace=False).astype(np.int8)
    weights = {"weight": rng.choice(values, size), "weight_scale": np.full(size[0], 0.1, np.float32)}
    return build.graph((4, 8, 8), Node("conv2d", "conv", ("x",), {}, weights), quant={"x": build.IN})


def weight_bytes(path: Path) -> int:
    return sum(array.nbytes for array in load_file(path).values())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_few_values_take_few_bits(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "net"
    graph = narrow(bits, (64, 4, 3, 3))
    save(graph, path)
    assert weight_bytes(path) == stored_bytes(graph) == 64 * 36 * bits // 8 + 2**bits + 4 * 64
    assert (read_graph(path).nodes[0].weights["weight"] == graph.nodes[0].weights["weight"]).all()


def test_bf16_weights_take_two_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    node = build.conv(rng, "x", 4, 6, integer=False)
    node.weights["weight"].view(np.uint32)[:] &= 0xFFFF0000  # type: ignore[misc]
    path = tmp_path / "net"
    save(build.graph((4, 8, 8), node), path)
    assert weight_bytes(path) == 6 * 4 * 9 * 2 + 4 * 6
    again = read_graph(path).nodes[0].weights
    assert again["weight"].dtype == np.float32
    assert all((again[name] == w).all() for name, w in node.weights.items())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_weights_come_back_exactly(data: st.DataObject, tmp_path: Path) -> None:
    count = data.draw(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 256]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = (data.draw(st.integers(1, 40)), 4, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    if data.draw(st.booleans()):
        values = rng.choice(np.arange(-128, 128), count, replace=False).astype(np.int8)
        weights = {"weight": rng.choice(values, size), "weight_scale": np.full(size[0], 0.1, np.float32)}
    else:
        mask = data.draw(st.sampled_from([0xFFFFFFFF, 0xFFFF0000, 0xFFFF8000]))
        floats = rng.standard_normal(size).astype(np.float32)
        weights = {"weight": (floats.view(np.uint32) & np.uint32(mask)).view(np.float32)}
    graph = build.graph((4, 8, 8), Node("conv2d", "conv", ("x",), {}, weights))
    save(graph, tmp_path / "net")
    again = read_graph(tmp_path / "net").nodes[0].weights["weight"]
    assert again.dtype == weights["weight"].dtype
    np.testing.assert_array_equal(again, weights["weight"])
    assert weight_bytes(tmp_path / "net") == stored_bytes(graph) <= sum(w.nbytes for w in weights.values())


PACKED: dict[str, Any] = {
    "not an object": [4],
    "no bits": {"shape": [6, 4, 3, 3]},
    "no shape": {"bits": 4},
    "no such width": {"bits": 7, "shape": [6, 4, 3, 3]},
    "huge width": {"bits": 2**40, "shape": [6, 4, 3, 3]},
    "negative width": {"bits": -4, "shape": [6, 4, 3, 3]},
    "another width": {"bits": 3, "shape": [6, 4, 3, 3]},
    "too few": {"bits": 4, "shape": [5, 4, 3, 3]},
    "too many": {"bits": 4, "shape": [7, 4, 3, 3]},
    "huge": {"bits": 4, "shape": [2**31, 4, 3, 3]},
    "negative": {"bits": 4, "shape": [-6, -4, 3, 3]},
    "text": {"bits": 4, "shape": ["6", 4, 3, 3]},
    "another rank": {"bits": 4, "shape": [24, 9]},
}


@pytest.mark.parametrize("case", PACKED)
def test_packed_weights_that_make_no_sense(case: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(narrow(4), path)
    node = program_of(path)["nodes"][0]
    for packed in ({"weight": PACKED[case]}, {"weight_scale": PACKED[case]}, {"other": PACKED[case]}, {}):
        change(path, {"nodes": [{**node, "packed": packed}]})
        with pytest.raises(ArtefactError, match="net"):
            load(path)


def program_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    program: dict[str, Any] = json.loads(header["__metadata__"][KEY])
    return program


def change(path: Path, changes: dict[str, Any]) -> None:
    program = {**program_of(path), **changes}
    save_file(
        {name: array.copy() for name, array in load_file(path).items()}, path, metadata={KEY: json.dumps(program)}
    )


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
