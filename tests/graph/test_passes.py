"""Fusing and legalising change how a graph is computed, never what it means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT

from trimtab.graph import check_graph
from trimtab.graph.passes import legalise, raise_activations
from trimtab.kernels import Graph, Node, Quant, fuse

SHAPE = (4, 6, 6)
PAD = {"padding": (1, 1, 1, 1)}
RNG = np.random.default_rng(3)

CONV = build.conv(RNG, "x", 4, 4, integer=False, **PAD)
OTHER = build.conv(RNG, "x", 4, 4, integer=False, name="other", **PAD)
RELU = Node("activation", "relu", ("conv",), {"activation": "relu"})
POOL = Node("max_pool2d", "pool", ("x",), {"kernel": (2, 2)})


def fused(*nodes: Node, output: str | None = None, quant: dict[str, Quant] | None = None) -> dict[str, Node]:
    """The nodes that fusion leaves, by name."""
    return {n.name: n for n in fuse(Graph("x", SHAPE, nodes, output or nodes[-1].name, quant or {})).nodes}


def legal(*nodes: Node, quant: dict[str, Quant]) -> Graph:
    graph = check_graph(build.graph(SHAPE, *nodes, quant=quant))
    return legalise(graph)


def renamed(node: Node, **changes: Any) -> Node:
    return Node(node.kind, changes.pop("name", node.name), node.inputs, {**node.attrs, **changes}, node.weights)


@pytest.mark.parametrize("source", [CONV, Node("add", "conv", ("x", "x"))], ids=["conv2d", "add"])
def test_an_activation_joins_what_only_it_reads(source: Node) -> None:
    (left,) = fused(source, RELU).values()
    assert (left.kind, left.name, left.inputs) == (source.kind, "relu", source.inputs)
    assert left.attrs["activation"] == "relu"
    assert left.weights is source.weights


def test_an_activation_joins_a_linear_layer() -> None:
    node = build.linear(RNG, "x", 5, 3, name="conv", integer=False)
    (left,) = fuse(build.graph((5,), node, RELU)).nodes
    assert (left.kind, left.name, left.attrs["activation"]) == ("linear", "relu", "relu")


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ((CONV, RELU), {"quant": {"conv": OUT}}),
        ((CONV, RELU), {"output": "conv"}),
        ((CONV, RELU, Node("add", "sum", ("relu", "conv"), {"activation": "relu"})), {}),
        ((renamed(CONV, activation="relu6"), RELU), {}),
        ((renamed(POOL, name="conv"), RELU), {}),
    ],
    ids=["stored by itself", "the output", "read twice", "with an activation", "no layer"],
)
def test_an_activation_stays_after_what_is(nodes: tuple[Node, ...], options: dict[str, Any]) -> None:
    assert {"conv", "relu"} <= set(fused(*nodes, **options))


def test_an_addition_becomes_the_residual_of_the_later_layer() -> None:
    left = fused(CONV, OTHER, Node("add", "sum", ("other", "conv"), {"activation": "relu6"}))
    assert list(left) == ["conv", "sum"]
    assert (left["sum"].kind, left["sum"].inputs, left["sum"].attrs["activation"]) == ("conv2d", ("x", "conv"), "relu6")
    assert left["sum"].weights is OTHER.weights


@pytest.mark.parametrize("inputs", [("conv", "x"), ("x", "conv")])
def test_the_residual_is_the_other_summand(inputs: tuple[str, str]) -> None:
    assert fused(CONV, Node("add", "sum", inputs))["sum"].inputs == ("x", "x")


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ((CONV, Node("add", "sum", ("conv", "x"))), {"quant": {"conv": OUT}}),
        ((CONV, Node("add", "sum", ("conv", "conv"))), {}),
        ((renamed(CONV, activation="relu"), Node("add", "sum", ("conv", "x"))), {}),
        ((CONV, Node("add", "sum", ("conv", "x"))), {"output": "conv"}),
    ],
    ids=["stored by itself", "both summands", "with an activation", "the output"],
)
def test_an_addition_stays_after_what_is(nodes: tuple[Node, ...], options: dict[str, Any]) -> None:
    assert fused(*nodes, **options)["sum"].kind == "add"


def test_a_layer_has_one_residual() -> None:
    left = fused(CONV, Node("add", "first", ("conv", "x")), Node("add", "second", ("first", "x")))
    assert [(n.kind, n.inputs) for n in left.values()] == [("conv2d", ("x", "x")), ("add", ("first", "x"))]


def test_fusing_twice_changes_nothing(rng: np.random.Generator) -> None:
    once = fuse(build.resnet20(rng, integer=True))
    assert [n.name for n in fuse(once).nodes] == [n.name for n in once.nodes]
    assert len(once.nodes) == 20 + 2 + 4  # layers; pool and flatten; two shortcuts of two steps


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """Draw convolutions, activations and additions that read anything before them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names, nodes = ["x"], []
    for i in range(draw(st.integers(1, 9))):
        name, op = f"n{i}", draw(st.sampled_from(["conv2d", "activation", "add", "add"]))
        read = [draw(st.sampled_from(names[-3:])) for _ in range(2)]
        activation = draw(st.sampled_from(["none", "none", "relu", "silu"]))
        if op == "conv2d":
            nodes.append(build.conv(rng, read[0], 3, 3, name=name, integer=False, activation=activation, **PAD))
        else:
            attrs = {"activation": activation if op == "add" else "relu6"}
            nodes.append(Node(op, name, tuple(read[: 1 + (op == "add")]), attrs))
        names.append(name)
    quant = dict.fromkeys(draw(st.lists(st.sampled_from(names), max_size=2)), OUT)
    return Graph("x", (3, 4, 4), tuple(nodes), draw(st.sampled_from(names[-2:])), quant)


@settings(max_examples=150)
@given(graph=networks())
def test_fusion_keeps_every_tensor_that_somebody_sees(graph: Graph) -> None:
    x = build.images(np.random.default_rng(1), 2, graph.input_shape)
    one_by_one, left = each(graph, x), each(fuse(graph), x)
    assert {graph.output, *graph.quant} <= set(left)
    for name, values in left.items():
        step = graph.quant[name].scale if name in graph.quant else 0
        np.testing.assert_allclose(values, one_by_one[name], rtol=1e-4, atol=1e-4 + step, err_msg=name)


def each(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """The real value of every tensor, node by node as they stand."""
    graph = check_graph(graph)
    stored = {graph.input: reference.store(x, graph.quant.get(graph.input))}
    for node in graph.nodes:
        inputs, quants = [stored[n] for n in node.inputs], [graph.quant.get(n) for n in node.inputs]
        stored[node.name] = reference.evaluate(node, inputs, quants, graph.quant.get(node.name))
    return {name: reference.real(values, graph.quant.get(name)) for name, values in stored.items()}


@pytest.mark.parametrize("source", [None, IN, OUT])
@pytest.mark.parametrize("to", [None, IN, OUT])
def test_what_only_moves_values_reads_them_as_it_stores_them(source: Quant | None, to: Quant | None) -> None:
    quant = {name: q for name, q in (("x", source), ("pool", to)) if q is not None}
    graph = legal(POOL, quant=quant)
    if source == to:
        assert [node.name for node in graph.nodes] == ["pool"]
        return
    convert, pool = graph.nodes
    assert (convert.kind, convert.inputs, pool.inputs) == ("quantize", ("x",), (convert.name,))
    assert graph.quant.get(convert.name) == to


@pytest.mark.parametrize("op", ["quantize", "global_avg_pool2d"])
def test_what_computes_reads_any_storage(op: str) -> None:
    assert len(legal(Node(op, "out", ("x",)), quant={"x": IN}).nodes) == 1


def test_a_layer_of_integers_stays_as_it_is(rng: np.random.Generator) -> None:
    node = build.conv(rng, "x", 4, 5)
    (left,) = legal(node, quant={"x": IN, "conv": OUT}).nodes
    assert left.weights is node.weights


@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_integers_that_meet_floats_become_floats(op: str, rng: np.random.Generator) -> None:
    shape, node = (SHAPE, build.conv(rng, "x", 4, 5)) if op == "conv2d" else ((7,), build.linear(rng, "x", 7, 5))
    graph = check_graph(build.graph(shape, node))
    (left,) = legalise(graph).nodes
    assert set(left.weights) == {"weight", "bias"}
    for channel, scale in enumerate(node.weights["weight_scale"]):
        np.testing.assert_array_equal(left.weights["weight"][channel], node.weights["weight"][channel] * scale)


def test_a_layer_of_floats_reads_floats(rng: np.random.Generator) -> None:
    graph = legal(build.conv(rng, "x", 4, 5, integer=False), quant={"x": IN})
    convert, conv = graph.nodes
    assert (convert.kind, convert.inputs, conv.inputs) == ("quantize", ("x",), (convert.name,))
    assert convert.name not in graph.quant


def test_a_residual_is_read_as_it_is(rng: np.random.Generator) -> None:
    graph = legal(build.conv(rng, "x", 4, 4, integer=False, residual="x", **PAD), quant={"x": IN})
    assert graph.nodes[1].inputs == (graph.nodes[0].name, "x")


def test_names_of_what_is_inserted_are_new() -> None:
    taken = Node("activation", "pool.input", ("x",), {"activation": "relu"})
    graph = legal(taken, POOL, quant={"x": IN})
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names) == 3


SPREAD = Node("depth_to_space", "spread", ("conv",), {"block": (2, 2)})
AFTER = Node("activation", "after", ("spread",), {"activation": "relu"})


def test_an_activation_is_raised_before_the_pixels_that_only_it_reads(rng: np.random.Generator) -> None:
    graph = Graph("x", SHAPE, (CONV, SPREAD, AFTER), "after")
    raised = raise_activations(graph)
    assert [(n.kind, n.name) for n in raised.nodes] == [
        ("conv2d", "conv"),
        ("activation", "spread"),
        ("depth_to_space", "after"),
    ]
    assert [n.kind for n in fuse(raised).nodes] == ["conv2d", "depth_to_space"]
    x = build.images(rng, 2, SHAPE)
    np.testing.assert_array_equal(each(raised, x)["after"], each(graph, x)["after"])


@pytest.mark.parametrize("nodes", [(CONV, SPREAD, AFTER, Node("add", "sum", ("spread", "after"))), (CONV, RELU)])
def test_an_activation_stays_where_it_stands_otherwise(nodes: tuple[Node, ...]) -> None:
    graph = Graph("x", SHAPE, nodes, nodes[-1].name)
    assert [n.kind for n in raise_activations(graph).nodes] == [n.kind for n in nodes]
