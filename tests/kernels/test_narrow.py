"""Layers whose weights have few distinct values run on narrower kernels, and give the same integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build
from tests.kernels.build import IN, OUT
from tests.kernels.levels import LEVELS
from tests.kernels.test_integers import agree
from tests.pairwise import pairwise

from trimtab.kernels import Graph, Node, Quant, Session

CODEBOOKS = {
    "one value": [3],
    "zero": [0],
    "binary": [-1, 1],
    "binary from zero": [0, 1],
    "binary, largest": [-128, 127],
    "ternary": [-1, 0, 1],
    "ternary, wide": [-100, 0, 100],
    "2 bits": [-2, -1, 0, 1],
    "4 bits": list(range(-8, 8)),
    "4 bits, scaled": list(range(-128, 128, 17)),
    "largest that fits a chunk": [-16, -3, 5, 16],
    "just too large": [-17, 3, 5, 17],
    "any four": [-128, -77, 31, 127],
    "any sixteen": [-128, -111, -93, -60, -41, -17, -9, -1, 2, 8, 15, 30, 62, 88, 101, 127],
}


def coded(node: Node, values: Sequence[int], rng: np.random.Generator) -> Node:
    """Return the node with weights drawn from `values`."""
    weight = rng.choice(np.array(values, np.int8), node.weights["weight"].shape)
    return Node(node.kind, node.name, node.inputs, node.attrs, {**node.weights, "weight": weight})


def linear(rng: np.random.Generator, inputs: int, outputs: int, values: Sequence[int]) -> Graph:
    node = coded(build.linear(rng, "x", inputs, outputs), values, rng)
    return build.graph((inputs,), node, quant={"x": IN, "linear": OUT})


@pairwise(book=CODEBOOKS, batch=[1, 2, 7], level=LEVELS)
def test_codebooks(book: str, batch: int, level: str, rng: np.random.Generator) -> None:
    agree(linear(rng, 515, 301, CODEBOOKS[book]), build.images(rng, 7, (515,)), level, batch=batch)


@pairwise(book=["binary, largest", "4 bits", "any four", "any sixteen"], value=[-1e9, 1e9], level=LEVELS)
def test_largest_sums(book: str, value: float, level: str, rng: np.random.Generator) -> None:
    values = CODEBOOKS[book]
    graph = linear(rng, 9000, 40, values)
    graph.nodes[0].weights["weight"][:20] = values[0]
    graph.nodes[0].weights["weight"][20:] = values[-1]
    graph.nodes[0].weights["weight"][:, -len(values) :] = values
    agree(graph, np.full((1, 9000), value, np.float32), level)


CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], int, tuple[int, int], dict[str, Any]]] = {
    "3x3": ((123, 3, 3), 131, (3, 3), {"padding": (1, 1, 1, 1)}),
    "grouped": ((120, 4, 5), 240, (3, 3), {"padding": (1, 1, 1, 1), "groups": 2}),
    "strided": ((70, 7, 7), 260, (3, 3), {"padding": (1, 0, 2, 1), "stride": (2, 3)}),
    "dilated": ((65, 7, 8), 230, (3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}),
    "pointwise": ((300, 3, 3), 450, (1, 1), {}),
    "without padding": ((90, 6, 6), 170, (3, 3), {}),
}


@pairwise(case=CONVOLUTIONS, book=["binary", "ternary", "any sixteen"], threads=[1, 2], level=LEVELS)
def test_convolutions(case: str, book: str, threads: int, level: str, rng: np.random.Generator) -> None:
    shape, out, kernel, attrs = CONVOLUTIONS[case]
    node = coded(build.conv(rng, "x", shape[0], out, kernel, activation="relu", **attrs), CODEBOOKS[book], rng)
    agree(build.graph(shape, node, quant={"x": IN, "conv": OUT}), build.images(rng, 3, shape), level, threads=threads)


def test_residual(level: str, rng: np.random.Generator) -> None:
    first = coded(build.linear(rng, "x", 520, 520, name="first"), [-1, 1], rng)
    node = build.linear(rng, "first", 520, 520, name="second")
    second = coded(node, CODEBOOKS["4 bits"], rng)
    add = Node("add", "out", ("second", "first"))
    quant = {"x": IN, "first": OUT, "out": OUT}
    agree(build.graph((520,), first, second, add, quant=quant), build.images(rng, 2, (520,)), level, batch=2)


@st.composite
def binary_case(draw: st.DrawFn) -> tuple[Graph, int, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, out = (groups * draw(st.integers(1, 40)) for _ in range(2))
    attrs = {
        "groups": groups,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "dilation": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "padding": tuple(draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))),
    }
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    values = draw(st.lists(st.integers(-128, 127), min_size=1, max_size=2, unique=True))
    node = coded(build.conv(rng, "x", channels, out, kernel, **attrs), values, rng)
    shape = (channels, draw(st.integers(7, 12)), draw(st.integers(7, 12)))
    bits = draw(st.integers(1, 4))
    quant = {"x": Quant(draw(st.floats(0.1, 1.0)), draw(st.integers(0, 2**bits - 1)), bits)}
    if draw(st.booleans()):
        quant["conv"] = Quant(draw(st.floats(0.005, 0.1)), draw(st.integers(0, 255)))
    return build.graph(shape, node, quant=quant), draw(st.integers(1, 3)), draw(st.integers(1, 2))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=binary_case())
def test_binary_weights_and_narrow_inputs(case: tuple[Graph, int, int], level: str) -> None:
    graph, batch, threads = case
    x = build.images(np.random.default_rng(1), 3, graph.input_shape)
    agree(graph, x, level, batch=batch, threads=threads)


def test_bf16_weights_give_what_float32_weights_do(level: str, rng: np.random.Generator) -> None:
    node = build.linear(rng, "x", 2050, 2051, integer=False)
    bits = node.weights["weight"].view(np.uint32)
    bits &= 0xFFFF0000
    graph = build.graph((2050,), node)
    x = build.images(rng, 9, (2050,))
    narrow, wide = Session(graph, level=level, batch=1), Session(graph, level=level, batch=9)
    assert narrow.weight_bytes < 0.6 * wide.weight_bytes
    np.testing.assert_array_equal(narrow.run(x), wide.run(x))
    np.testing.assert_allclose(narrow.run(x), x @ node.weights["weight"].T + node.weights["bias"], atol=1e-4)


def test_codes_are_stored_packed(rng: np.random.Generator) -> None:
    dense = Session(linear(rng, 512, 512, range(-128, 128)), level="emulated-avx512_vnni").weight_bytes
    for book, share in (("binary", 8), ("ternary", 4), ("any sixteen", 2)):
        graph = linear(rng, 512, 512, CODEBOOKS[book])
        assert Session(graph, level="emulated-avx512_vnni").weight_bytes == dense / share
