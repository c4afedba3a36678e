"""Artefacts with something wrong in them: strategies for hypothesis, and what may come of loading one."""

from __future__ import annotations

import copy
import json
import struct
import tempfile
import zlib
from functools import cache
from math import inf, nan, prod
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as to_bytes
from tests.kernels import build
from tests.kernels.build import IN, OUT

from trimtab.errors import BadInput
from trimtab.kernels import Graph, Node, Quant, emulated_levels, levels, load, save
from trimtab.kernels.artefact import SCHEMA
from trimtab.sharing import expand

MEMORY = 2**22
KEY = "trimtab.schema"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 16, 255, 256, 2**15, 2**20, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31,
    2**32 + 1, 2**63, 2**64, -(2**31), 10**300, 0.5, -0.0, 1e-45, 1e-31, 1e29, 1e308, nan, inf, -inf,
    "", "x", "conv", "out", "relu", "gelu", "nearest", "\ud800", "\0", "a" * 5000, [], {}, [[]], [1], [2**29, 2**29],
    [1, 1, 1, 1], [2**29, 0, 2**29, 0], [0, 0], {"shape": [2**40]}, [[[[[[[[1]]]]]]]], "plain", "table 1", "table 6",
    "bf16", "coded", "coded bf16", "coded float32", "int8", "uint8", "float32", 4096, 4097,
]  # fmt: skip


def convolutions() -> Graph:
    rng = np.random.default_rng(0)
    pad = {"padding": (1, 1, 1, 1)}
    narrow = build.conv(rng, "x", 12, 16, name="narrow", activation="relu", **pad)
    narrow = Node(narrow.kind, narrow.name, narrow.inputs, narrow.attrs,
                  {**narrow.weights, "weight": np.sign(narrow.weights["weight"])})  # fmt: skip
    grouped = build.conv(rng, "depthwise", 16, 6, (1, 1), name="grouped", groups=2, precision="bf16", integer=False)
    grouped.weights["weight"].view(np.uint32)[:] &= 0xFFFF0000
    nodes = (
        narrow,
        build.conv(rng, "narrow", 16, 16, name="depthwise", groups=16, stride=(2, 2), **pad),
        grouped,
        Node("max_pool2d", "most", ("grouped",), {"kernel": (2, 2), "padding": (1, 0, 0, 0)}),
        Node("avg_pool2d", "mean", ("grouped",), {"kernel": (2, 2), "padding": (1, 0, 0, 0)}),
        Node("add", "sum", ("most", "mean"), {"activation": "relu6"}),
        Node("concat", "both", ("sum", "most")),
        Node("channel_map", "mapped", ("both",), {"index": (3, -1, 0, 5)}),
        Node("subsample", "half", ("mapped",), {"stride": (2, 1)}),
        Node("global_avg_pool2d", "pooled", ("half",)),
        Node("mul", "gated", ("half", "pooled")),
        Node("flatten", "flat", ("pooled",)),
        build.linear(rng, "flat", 4, 5, name="out"),
    )
    quant = {"x": IN, "narrow": Quant(0.1, 3, 4), "depthwise": OUT, "most": OUT, "pooled": IN, "flat": IN}
    return Graph("x", (12, 8, 8), nodes, "out", quant)


def transformer() -> Graph:
    rng = np.random.default_rng(1)
    ones = np.ones(8, np.float32)
    nodes = (
        Node("adaptive_avg_pool2d", "small", ("x",), {"size": (3, 2)}),
        Node("tokens", "tokens", ("small",), {}, {"prefix": ones[None], "position": np.ones((7, 8), np.float32)}),
        Node("layer_norm", "norm", ("tokens",), {"epsilon": 1e-6}, {"weight": ones, "bias": ones}),
        Node("attention", "attend", ("norm", "norm", "tokens"), {"heads": 2, "scale": 0.5}),
        Node("activation", "curve", ("attend",), {"activation": "elu"}),
        build.conv(rng, "curve", 8, 8, (1, 1), name="out", integer=False, residual="tokens", activation="hard_swish"),
    )
    return Graph("x", (8, 5, 5), nodes, "out", {"x": IN, "attend": OUT})


def decoder() -> Graph:
    rng = np.random.default_rng(4)
    numbers = {name: rng.standard_normal(8).astype(np.float32) for name in ("weight", "bias")}
    nodes = (
        Node("group_norm", "grouped", ("x",), {"groups": 4}, numbers),
        Node("prelu", "bent", ("grouped",), {}, {"slope": numbers["bias"]}),
        Node("upsample", "twice", ("bent",), {"size": (10, 9), "mode": "bilinear", "align_corners": True}),
        Node("upsample", "nearest", ("twice",), {"size": (7, 11)}),
        Node("depth_to_space", "spread", ("nearest",), {"block": (2, 2), "crop": (1, 3), "size": (12, 19)}),
        Node("channel_affine", "shifted", ("spread",), {}, {"bias": numbers["bias"][:2]}),
        Node("activation", "out", ("shifted",), {"activation": "tanh"}),
    )
    return Graph("x", (8, 5, 5), nodes, "out", {"x": IN, "bent": OUT, "nearest": IN, "spread": IN, "out": OUT})


def coded() -> Graph:
    """A network whose weights are worth entropy coding: integers, float32 and bf16; and some that share values."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((3, 72, 72)).astype(np.float32)
    integers = np.rint(3 * values[0]).astype(np.int8)
    book = integers.reshape(-1, 3, 3)[:12]
    pairs = rng.integers(0, 8, (72, 2), np.uint8)
    shared = {
        "kernels 12": book[rng.integers(0, 12, (16, 8))],
        "hashed 0.09375": expand("hashed", {"values": integers[0]}, (8, 16, 3, 2)),
        "circulant 4": expand("circulant", {"values": integers[:18].reshape(18, 18, 4)}, (72, 72)),
        "product 8": expand("product", {"codebook": integers[0, :64].reshape(2, 8, 4), "index": pairs}, (72, 8)),
    }
    upper = (values[2].view(np.uint32) & 0xFFFF0000).view(np.float32)
    nodes = (
        _layer("conv2d", "shared kernels", "x", shared["kernels 12"], "kernels 12", padding=(1, 1, 1, 1)),
        _layer("conv2d", "hashed", "shared kernels", shared["hashed 0.09375"], "hashed 0.09375", padding=(1, 1, 1, 0)),
        Node("flatten", "flat", ("hashed",)),
        _layer("linear", "circulant", "flat", shared["circulant 4"], "circulant 4"),
        _layer("linear", "integers", "circulant", integers),
        Node("linear", "floats", ("integers",), {}, {"weight": values[1]}),
        Node("linear", "upper", ("floats",), {}, {"weight": upper}),
        _layer("linear", "small", "upper", integers[:8]),
        _layer("linear", "out", "small", shared["product 8"], "product 8"),
    )
    return Graph("x", (8, 3, 3), nodes, "out", {"x": IN})


def _layer(op: str, name: str, source: str, weight: Any, sharing: str | None = None, **attrs: Any) -> Node:
    weights = {"weight": weight, "weight_scale": np.full(len(weight), 0.1, np.float32)}
    return Node(op, name, (source,), attrs, weights, sharing)


@cache
def valid() -> tuple[bytes, ...]:
    """The files that all damage starts from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        files = []
        for graph in (convolutions(), transformer(), coded(), decoder()):
            save(graph, path)
            files.append(path.read_bytes())
        return tuple(files)


def program_of(data: bytes) -> dict[str, Any]:
    """The program of an artefact."""
    program: dict[str, Any] = json.loads(zlib.decompress(tensors_of(data)["program"].tobytes()))
    return program


def with_program(data: bytes, program: Any) -> bytes:
    """An artefact with another program."""
    text = np.frombuffer(zlib.compress(json.dumps(program).encode()), np.uint8)
    changed: bytes = to_bytes({**tensors_of(data), "program": text}, metadata={KEY: str(SCHEMA)})
    return changed


def with_weights(data: bytes, weights: bytes) -> bytes:
    """An artefact with other bytes for weights."""
    changed: bytes = to_bytes(
        {**tensors_of(data), "weights": np.frombuffer(weights, np.uint8)}, metadata={KEY: str(SCHEMA)}
    )
    return changed


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values below `tree`."""
    found = [path] if path else []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found += places(value, (*path, key))
    return found


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def damaged_tree(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """A JSON tree with one to three values replaced, moved by a little, removed, or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        paths = places(tree)
        path = draw(st.sampled_from(paths))
        parent, key = at(tree, path[:-1]), path[-1]
        old = parent[key]
        alike = [value for value in VALUES if type(value) is type(old)]
        how = draw(st.sampled_from(["alike", "alike", "other", "other", "near", "any", "remove", "double"]))
        if how == "alike" and alike:
            parent[key] = copy.deepcopy(draw(st.sampled_from(alike)))
        elif how == "other":
            others = [at(tree, p) for p in paths if type(at(tree, p)) is type(old)]
            parent[key] = copy.deepcopy(draw(st.sampled_from(others)))
        elif how == "near" and type(old) in (int, float):
            parent[key] += draw(st.integers(-3, 3))
        elif how == "any":
            parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(old))
        if not tree:
            break
    return tree


@st.composite
def restored(draw: st.DrawFn, program: dict[str, Any]) -> dict[str, Any]:
    """A program whose tensors are stored otherwise: quantisation added, changed or taken away."""
    for node in draw(st.lists(st.sampled_from(program["nodes"]), max_size=4)):
        program["quant"].pop(node["name"], None)
        if draw(st.booleans()):
            bits = draw(st.integers(1, 8))
            scale = draw(st.sampled_from([1e-29, 0.01, 0.3, 1e29]))
            program["quant"][node["name"]] = [scale, draw(st.integers(0, 2**bits - 1)), bits]
    return program


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of which some are changed, and whose end may be cut off."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del damaged[draw(st.integers(0, len(damaged))) :]
    return bytes(damaged)


@st.composite
def artefacts(draw: st.DrawFn) -> bytes:
    """Files that are a valid artefact but for the program, the weights, the table of tensors, or some bytes."""
    data = draw(st.sampled_from(valid()))
    what = draw(st.sampled_from(["program"] * 5 + ["storage", "weights", "weights", "header", "bytes"]))
    if what == "program":
        return with_program(data, draw(damaged_tree(program_of(data))))
    if what == "storage":
        return with_program(data, draw(restored(program_of(data))))
    if what == "weights":
        return with_weights(data, draw(damaged_bytes(tensors_of(data)["weights"].tobytes())))
    if what == "bytes":
        return draw(damaged_bytes(data))
    size = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(draw(damaged_tree(json.loads(data[8 : 8 + size])))).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def loads_or_is_refused(data: bytes, path: Path, level: str, batch: int = 1, threads: int = 1) -> bool:
    """Write `data` to `path` and load it: return False where it is refused as it should be, True if it could be run.

    Any exception but BadInput goes through.
    """
    path.write_bytes(data)
    try:
        session = load(path, level=level, batch=batch, threads=threads, memory_limit=MEMORY)
    except BadInput:
        return False
    shape = session._graph.input_shape
    if prod(shape) <= 2**12:
        for fill in (0.0, 1e30, nan):
            y = session.run(np.full((batch + 1, *shape), fill, np.float32))
            assert len(y) == batch + 1
    return True


CASES = st.tuples(artefacts(), st.sampled_from([*levels(), *emulated_levels()]), st.integers(1, 2), st.integers(1, 2))
