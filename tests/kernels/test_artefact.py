"""Artefacts come back as they were, and broken ones are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.kernels import build, hostile

from trimtab.errors import BadInput
from trimtab.kernels import ArtefactError, Graph, Node, Session, load, read_graph, save, stored_bytes


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


def test_files_of_other_versions(written: Path) -> None:
    for metadata in ({"trimtab.graph": "{}"}, {hostile.KEY: "9"}):
        save_file(load_file(written), written, metadata=metadata)
        with pytest.raises(ArtefactError, match="is not the one that this version reads"):
            load(written)


CHANGES: dict[str, dict[str, Any]] = {
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
    "no vectors": {"vectors": {}},
    "vectors": {"vectors": []},
    "vectors of weights": {"vectors": {"weight": {"form": "plain", "dtype": "int8", "shape": [1], "bytes": 0}}},
}


@pytest.mark.parametrize("case", CHANGES)
def test_programs_that_make_no_sense(case: str, written: Path) -> None:
    change(written, CHANGES[case])
    with pytest.raises(ArtefactError, match="net"):
        load(written)


def test_nodes_that_make_no_sense(written: Path) -> None:
    node = hostile.program_of(written.read_bytes())["nodes"][0]
    for bad in (
        {"op": "exec"},
        {"attrs": {"stride": "a"}},
        {"attrs": []},
        {"inputs": [1]},
        {"weights": ["w"]},
        {"weights": {"bias": 1}},
    ):
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
    return int(load_file(path)["weights"].nbytes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_few_values_take_few_bits(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "net"
    graph = narrow(bits, (64, 4, 3, 3))
    save(graph, path)
    assert weight_bytes(path) == stored_bytes(graph)
    # The scales are all 0.1: they take 1.25 bytes less each, for a table of one exponent.
    scales = weight_bytes(path) - (64 * 36 * bits // 8 + 2**bits)
    assert 3 * 64 <= scales < 4 * 64
    assert (read_graph(path).nodes[0].weights["weight"] == graph.nodes[0].weights["weight"]).all()


def test_bf16_weights_take_at_most_two_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    node = build.conv(rng, "x", 4, 6, integer=False)
    node.weights["weight"].view(np.uint32)[:] &= 0xFFFF0000  # type: ignore[misc]
    path = tmp_path / "net"
    save(build.graph((4, 8, 8), node), path)
    assert weight_bytes(path) <= 6 * 4 * 9 * 2 + 4 * 6
    again = read_graph(path).nodes[0].weights
    assert again["weight"].dtype == np.float32
    assert all((again[name] == w).all() for name, w in node.weights.items())


def test_a_file_is_hardly_larger_than_its_weights(written: Path) -> None:
    assert written.stat().st_size < weight_bytes(written) + 1500


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from tests.kernels import hostile; from trimtab.kernels import save; "
        "[save(graph(), sys.argv[1] + str(i)) for i, graph in enumerate((hostile.coded, hostile.convolutions))]"
    )
    for run in ("a", "b"):
        environment = {**os.environ, "PYTHONHASHSEED": run.encode().hex(), "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", script, tmp_path / run], check=True, env=environment)
    for i in range(2):
        assert (tmp_path / f"a{i}").read_bytes() == (tmp_path / f"b{i}").read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


STORED: dict[str, Any] = {
    "no form": {"form": None},
    "no shape": {"shape": None},
    "no such form": {"form": "table 7"},
    "a form of floats": {"form": "bf16"},
    "coded": {"form": "coded"},
    "no such type": {"dtype": "float64"},
    "another type": {"dtype": "uint8"},
    "another width": {"form": "table 3"},
    "too few": {"shape": [5, 4, 3, 3]},
    "too many": {"shape": [7, 4, 3, 3]},
    "huge": {"shape": [2**30, 2**30, 3, 3]},
    "negative": {"shape": [-6, -4, 3, 3]},
    "text": {"shape": ["6", 4, 3, 3]},
    "another rank": {"shape": [24, 9]},
    "fewer bytes": {"bytes": 100},
    "more bytes": {"bytes": 2**40},
    "negative bytes": {"bytes": -1},
}


@pytest.mark.parametrize("case", STORED)
def test_weights_that_are_not_stored_so(case: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(narrow(4), path)
    node = hostile.program_of(path.read_bytes())["nodes"][0]
    weight, scale = node["weights"]["weight"], node["weights"]["weight_scale"]
    assert weight["parts"]["dense"]["form"] == "table 4"
    wrong = [{"weight_scale": changed(scale, STORED[case])}] if "shape" in STORED[case] else []
    wrong += [{"weight": changed(weight, STORED[case])}] if "shape" in STORED[case] else []
    wrong += [{"weight": {**weight, "parts": {"dense": changed(weight["parts"]["dense"], STORED[case])}}}]
    for what in wrong:
        change(path, {"nodes": [{**node, "weights": {**node["weights"], **what}}]})
        with pytest.raises(ArtefactError, match="net"):
            load(path)


def changed(item: dict[str, Any], how: Any) -> Any:
    return {**item, **how} if isinstance(how, dict) else how


def test_shared_weights_are_stored_shared(tmp_path: Path) -> None:
    graph = hostile.coded()
    plain = replace(graph, nodes=tuple(replace(node, sharing=None) for node in graph.nodes))
    save(graph, tmp_path / "shared")
    save(plain, tmp_path / "plain")
    stored = {
        n["name"]: n["weights"].get("weight", {})
        for n in hostile.program_of((tmp_path / "shared").read_bytes())["nodes"]
    }
    parts = {part for weight in stored.values() for part in weight.get("parts", {})}
    assert {part.split()[0] for part in parts} == {"dense", "kernels", "hashed", "circulant", "product"}
    assert weight_bytes(tmp_path / "shared") == stored_bytes(graph) < stored_bytes(plain) - 2000
    for a, b in zip(read_graph(tmp_path / "shared").nodes, read_graph(tmp_path / "plain").nodes, strict=True):
        assert a.weights.keys() == b.weights.keys()
        assert all((a.weights[name] == b.weights[name]).all() for name in a.weights)


def test_weights_that_turn_out_not_to_be_shared_are_stored_as_they_are(tmp_path: Path) -> None:
    graph = narrow(4)
    for how in ("circulant 2", "hashed 0.1", "kernels 4", "product 4"):
        node = replace(graph.nodes[0], sharing=how)
        save(replace(graph, nodes=(node,)), tmp_path / "net")
        np.testing.assert_array_equal(read_graph(tmp_path / "net").nodes[0].weights["weight"], node.weights["weight"])


def change(path: Path, changes: dict[str, Any]) -> None:
    data = path.read_bytes()
    path.write_bytes(hostile.with_program(data, {**hostile.program_of(data), **changes}))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
