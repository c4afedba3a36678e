"""The session's contract: what it fuses, measures, and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.kernels import build
from tests.kernels.build import IN, OUT

from trimtab.errors import BadInput
from trimtab.kernels import (
    Graph,
    Node,
    Quant,
    Session,
    UnsupportedOperator,
    active_level,
    cpu,
    emulated_levels,
    fuse,
    levels,
)

SHAPE = (4, 6, 6)


def small(rng: np.random.Generator, **attrs: Any) -> Graph:
    return build.graph(SHAPE, build.conv(rng, "x", 4, 8, integer=False, **attrs))


def test_levels() -> None:
    assert levels()[-1] == "portable"
    assert set(levels()) <= {"amx", "avx512_vnni", "avx2", "portable"}
    assert not set(levels()) & set(emulated_levels())
    assert cpu()["logical_cpus"] >= 1
    assert set(cpu()) == {"vendor", "model", "features", "logical_cpus"}


def test_isa_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", "portable")
    assert active_level() == "portable"
    monkeypatch.setenv("TRIMTAB_ISA", "sse9")
    with pytest.raises(BadInput, match=r"sse9.*portable"):
        active_level()
    monkeypatch.delenv("TRIMTAB_ISA")
    assert active_level() == levels()[0]


def test_import_is_cheap_and_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import trimtab.kernels as k\n"
        "assert not {'onnx', 'torchvision', 'scipy', 'ray'} & set(sys.modules)\n"
        "print(k.active_level())"
    )
    environment = {**os.environ, "TRIMTAB_ISA": "emulated-amx"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "emulated-amx", done.stderr
    assert not done.stderr


def test_fusion_stops_at_tensors_that_are_stored_or_read_twice(rng: np.random.Generator) -> None:
    conv = build.conv(rng, "x", 4, 4, padding=(1, 1, 1, 1))
    relu = Node("activation", "relu", ("conv",), {"activation": "relu"})
    both = Node("add", "sum", ("relu", "conv"))
    joined = Node("add", "sum", ("relu", "x"))

    def steps(nodes: tuple[Node, ...], quant: dict[str, Quant]) -> list[str]:
        return Session(Graph("x", SHAPE, nodes, nodes[-1].name, quant)).steps

    assert steps((conv, relu), {"x": IN}) == ["relu"]
    assert steps((conv, relu), {"x": IN, "conv": OUT}) == ["conv", "relu"]
    assert steps((conv, relu, both), {"x": IN}) == ["conv", "relu", "sum"]
    assert steps((conv, relu, joined), {"x": IN}) == ["relu", "sum"]
    assert Session(Graph("x", SHAPE, (conv, relu), "conv", {"x": IN})).steps == ["conv", "relu"]


def test_fusing_twice_changes_nothing(rng: np.random.Generator) -> None:
    once = fuse(build.resnet20(rng, integer=True))
    assert [n.name for n in fuse(once).nodes] == [n.name for n in once.nodes]


def test_time_and_profile(rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer=True)
    session = Session(graph, batch=2)
    x = build.images(rng, 6, (3, 32, 32)).reshape(3, 2, 3, 32, 32)
    piece = session.time(x, 0.05)
    assert piece.seconds >= 0.05
    assert piece.runs >= 1
    assert piece.involuntary_switches >= 0
    entries = session.profile(x, 5)
    assert [name for name, _ in entries] == ["<input>", *session.steps, "<output>"]
    assert all(seconds >= 0 for _, seconds in entries)
    assert 0.2 < sum(seconds for _, seconds in entries) / (piece.seconds / piece.runs) < 5
    assert session.weight_bytes > 200_000
    assert session.arena_bytes > 16 * 32 * 32


def test_kernels_of_the_layers(rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer=True)
    session = Session(graph)
    layers = [name for name in session.steps if name in session.kernels]
    assert len(layers) == len(session.kernels) == 20
    assert all(kernel.startswith("w8a8") for kernel in session.kernels.values())
    plain = Session(build.resnet20(rng, integer=False)).kernels
    assert all(kernel.startswith("fp32") for kernel in plain.values())
    node = build.conv(rng, "x", 4, 4, name="deep", groups=4, integer=False)
    assert Session(build.graph(SHAPE, node)).kernels == {"deep": "fp32 depthwise"}


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_a_kernel_reads_at_least_the_bits_that_the_values_need(bits: int, level: str, rng: np.random.Generator) -> None:
    node = build.linear(rng, "x", 1024, 1024)
    node.weights["weight"][:] = rng.choice(np.arange(-128, 128), 2**bits, replace=False)[  # type: ignore[index]
        rng.integers(2**bits, size=(1024, 1024))
    ]
    (kernel,) = Session(build.graph((1024,), node, quant={"x": IN}), level=level).kernels.values()
    reads, _, activations = kernel.split()[0].removeprefix("w").partition("a")
    assert bits <= int(reads) <= 8
    assert activations == "8"


def test_a_single_layer_that_starts_from_integers(rng: np.random.Generator) -> None:
    graph = build.graph((16, 8, 8), build.conv(rng, "x", 16, 16), quant={"x": IN, "conv": OUT})
    entries = Session(graph).profile(build.images(rng, 2, (16, 8, 8))[:, None], 3)
    assert [name for name, _ in entries] == ["<input>", "conv", "<output>"]


def test_memory_is_shared_by_tensors_that_do_not_meet(rng: np.random.Generator) -> None:
    nodes = [build.conv(rng, "x", 4, 4, name="c0", integer=False, padding=(1, 1, 1, 1))]
    for i in range(1, 12):
        nodes.append(build.conv(rng, f"c{i - 1}", 4, 4, name=f"c{i}", integer=False, padding=(1, 1, 1, 1)))
    deep = Session(build.graph((4, 32, 32), *nodes)).arena_bytes
    assert deep < 2 * Session(build.graph((4, 32, 32), *nodes[:2])).arena_bytes


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, *SHAPE)),
        np.zeros(SHAPE, np.float32),
        np.zeros((1, 5, 6, 6), np.float32),
        np.zeros((0, *SHAPE), np.float32),
        np.zeros((1, 6, 6, 4), np.float32).transpose(0, 3, 1, 2),
        [[1.0]],
    ],
    ids=["float64", "no batch", "channels", "empty", "strided", "list"],
)
def test_wrong_inputs(x: Any, rng: np.random.Generator) -> None:
    session = Session(small(rng))
    with pytest.raises(BadInput, match="input must"):
        session.run(x)
    with pytest.raises(BadInput, match="input must"):
        session.time(x, 0.01)


def test_an_unsupported_operator_is_named_with_its_layer() -> None:
    graph = build.graph(SHAPE, Node("gelu", "block.3", ("x",)))
    with pytest.raises(UnsupportedOperator, match=r"block\.3.*gelu.*conv2d"):
        Session(graph)


def _conv(**changes: Any) -> Node:
    return replace(build.conv(np.random.default_rng(0), "x", 4, 8), **changes)


def _weights(**changes: Any) -> dict[str, Any]:
    return {**build.conv(np.random.default_rng(0), "x", 4, 8).weights, **changes}


WRONG = {
    "unknown attribute": _conv(attrs={"strides": (1, 1)}),
    "zero stride": _conv(attrs={"stride": (0, 1)}),
    "negative padding": _conv(attrs={"padding": (0, -1, 0, 0)}),
    "huge padding": _conv(attrs={"padding": (2**29, 0, 0, 0)}),
    "short padding": _conv(attrs={"padding": (1, 1)}),
    "huge dilation": _conv(attrs={"dilation": (2**29, 1)}),
    "groups": _conv(attrs={"groups": 3}),
    "activation": _conv(attrs={"activation": "swish"}),
    "dangling input": _conv(inputs=("y",)),
    "no input": _conv(inputs=()),
    "residual shape": _conv(inputs=("x", "x")),
    "no weight": _conv(weights={}),
    "weight type": _conv(weights={"weight": np.zeros((8, 4, 3, 3))}),
    "weight rank": _conv(weights={"weight": np.zeros((8, 36), np.float32)}),
    "scale missing": _conv(weights={"weight": np.zeros((8, 4, 3, 3), np.int8)}),
    "scale zero": _conv(weights=_weights(weight_scale=np.zeros(8, np.float32))),
    "bias length": _conv(weights=_weights(bias=np.zeros(7, np.float32))),
    "bias infinite": _conv(weights=_weights(bias=np.full(8, np.inf, np.float32))),
    "extra weight": _conv(weights=_weights(gamma=np.zeros(8, np.float32))),
    "linear on an image": Node("linear", "conv", ("x",), {}, {"weight": np.zeros((2, 144), np.float32)}),
    "map out of range": Node("channel_map", "conv", ("x",), {"index": (4,)}),
    "empty map": Node("channel_map", "conv", ("x",), {"index": ()}),
    "pool padding": Node("max_pool2d", "conv", ("x",), {"kernel": (2, 2), "padding": (2, 0, 0, 0)}),
    "pool larger than the image": Node("avg_pool2d", "conv", ("x",), {"kernel": (7, 7)}),
    "the input's own name": _conv(name="x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layers(case: str) -> None:
    node = WRONG[case]
    with pytest.raises(BadInput, match=f"layer {node.name!r}|attribute of .*'conv'|layer 'conv'"):
        Session(Graph("x", SHAPE, (node,), node.name, {"x": IN}))


@pytest.mark.parametrize(
    "quant",
    [
        Quant(0.0, 0),
        Quant(float("nan"), 0),
        Quant(1.0, 256),
        Quant(1.0, -1),
        Quant(1.0, 16, 4),
        Quant(1.0, 0, 0),
        Quant(1.0, 0, 9),
        Quant(1.0, 0, 2.0),  # type: ignore[arg-type]
    ],
)
def test_wrong_quantisation(quant: Quant) -> None:
    with pytest.raises(BadInput, match="quantisation of 'x'"):
        Session(Graph("x", SHAPE, (_conv(),), "conv", {"x": quant}))


def test_wrong_graphs(rng: np.random.Generator) -> None:
    graph = small(rng)
    for broken in (
        replace(graph, input_shape=(4, 6)),
        replace(graph, input_shape=(4, 0, 6)),
        replace(graph, input_shape=(4, 2**20, 2**20)),
        replace(graph, output="nothing"),
        replace(graph, nodes=()),
        replace(graph, quant={"nothing": IN}),
        replace(graph, nodes=graph.nodes * 2),
    ):
        with pytest.raises(BadInput):
            Session(broken)
    for options in ({"batch": 0}, {"threads": 0}, {"batch": 2**30}):
        with pytest.raises(BadInput):
            Session(graph, **options)
    with pytest.raises(BadInput, match="portable"):
        Session(graph, level="neon")


def test_integer_layers_that_could_overflow_are_refused() -> None:
    weights = {"weight": np.ones((1, 32769), np.int8), "weight_scale": np.ones(1, np.float32)}
    with pytest.raises(UnsupportedOperator, match=r"'big'.*overflow"):
        Session(Graph("x", (32769,), (Node("linear", "big", ("x",), {}, weights),), "big", {"x": IN}))
