"""Layers of bf16 numbers: rounded as specified, exact where every sum is a float32 number, within a bound elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.levels import LEVELS
from tests.pairwise import pairwise

from trimtab.errors import BadInput
from trimtab.kernels import Graph, Node, Quant, Session, UnsupportedOperator, has_bf16, read_graph, save, stored_bytes

PAIRS, TILES = "emulated-avx512_vnni", "emulated-amx"

#: Those that multiply bf16 numbers, and one of those that compute with them in float32.
BF16_LEVELS = [*filter(has_bf16, LEVELS), "portable"]


@pytest.fixture(params=BF16_LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def halved(node: Node) -> Node:
    """Return the node with bf16 weights and arithmetic."""
    weight = reference.to_bf16(node.weights["weight"])
    return Node(
        node.kind, node.name, node.inputs, {**node.attrs, "precision": "bf16"}, {**node.weights, "weight": weight}
    )


def whole(node: Node, rng: np.random.Generator) -> Node:
    """Return the node with small integers as weights and bias: no sum of theirs is rounded."""
    weights = {name: rng.integers(-8, 9, w.shape).astype(np.float32) for name, w in node.weights.items()}
    return Node(node.kind, node.name, node.inputs, {**node.attrs, "precision": "bf16"}, weights)


def whole_images(rng: np.random.Generator, count: int, shape: Sequence[int]) -> np.ndarray:
    return rng.integers(-8, 9, (count, *shape)).astype(np.float32)


CASES: dict[str, tuple[tuple[int, int, int], int, tuple[int, int], dict[str, Any]]] = {
    "3x3": ((32, 9, 8), 40, (3, 3), {"padding": (1, 1, 1, 1)}),
    "odd channels": ((3, 15, 15), 33, (3, 3), {"padding": (0, 1, 2, 1), "stride": (2, 1)}),
    "odd segments": ((5, 7, 6), 17, (3, 5), {"padding": (1, 2, 1, 2)}),
    "pointwise": ((70, 6, 7), 70, (1, 1), {}),
    "pointwise, odd": ((67, 4, 3), 5, (1, 1), {"activation": "relu"}),
    "strided": ((34, 9, 9), 66, (1, 1), {"stride": (2, 2)}),
    "dilated": ((20, 12, 11), 18, (3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}),
    "grouped": ((21, 8, 8), 9, (3, 3), {"groups": 3, "padding": (1, 1, 1, 1)}),
    "wide groups": ((68, 8, 8), 40, (3, 3), {"groups": 2, "padding": (1, 1, 1, 1), "activation": "relu6"}),
    "one pixel": ((40, 3, 3), 130, (3, 3), {}),
}


@pairwise(case=CASES, batch=[1, 2, 3], threads=[1, 2, 3], level=BF16_LEVELS)
def test_sums_of_integers_are_exact(case: str, batch: int, threads: int, level: str, rng: np.random.Generator) -> None:
    shape, out, kernel, attrs = CASES[case]
    node = whole(build.conv(rng, "x", shape[0], out, kernel, integer=False, **attrs), rng)
    graph, x = build.graph(shape, node), whole_images(rng, 4, shape)
    session = Session(graph, level=level, batch=batch, threads=threads)
    np.testing.assert_array_equal(session.run(x), reference.output(graph, x))


@pairwise(features=[(1, 1), (3, 5), (64, 10), (301, 515)], batch=[1, 5, 33], threads=[1, 2], level=BF16_LEVELS)
def test_linear(features: tuple[int, int], batch: int, threads: int, level: str, rng: np.random.Generator) -> None:
    node = whole(build.linear(rng, "x", *features, integer=False), rng)
    graph, x = build.graph(features[:1], node), whole_images(rng, 35, features[:1])
    session = Session(graph, level=level, batch=batch, threads=threads)
    np.testing.assert_array_equal(session.run(x), reference.output(graph, x))


@st.composite
def any_convolution(draw: st.DrawFn) -> tuple[Graph, int, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, out = (groups * draw(st.integers(2, 40)) for _ in range(2))
    attrs = {
        "groups": groups,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "dilation": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "padding": tuple(draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))),
        "activation": draw(st.sampled_from(["none", "relu", "relu6"])),
    }
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    node = whole(build.conv(rng, "x", channels, out, kernel, integer=False, **attrs), rng)
    shape = (channels, draw(st.integers(7, 12)), draw(st.integers(7, 12)))
    return build.graph(shape, node), draw(st.integers(1, 3)), draw(st.integers(1, 2))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=any_convolution())
def test_any_shape(case: tuple[Graph, int, int], level: str) -> None:
    graph, batch, threads = case
    x = whole_images(np.random.default_rng(1), 3, graph.input_shape)
    session = Session(graph, level=level, batch=batch, threads=threads)
    np.testing.assert_array_equal(session.run(x), reference.output(graph, x))


@pairwise(residual=[None, Quant(0.5, 20)], to=[None, Quant(1.0, 87)], activation=["relu", "gelu"], level=BF16_LEVELS)
def test_epilogues(
    residual: Quant | None, to: Quant | None, activation: str, level: str, rng: np.random.Generator
) -> None:
    first = whole(build.conv(rng, "x", 33, 40, (1, 1), name="first", integer=False), rng)
    second = whole(build.conv(rng, "x", 33, 40, (1, 1), integer=False, residual="first", activation=activation), rng)
    quant = {name: q for name, q in (("first", residual), ("conv", to)) if q is not None}
    graph, x = build.graph((33, 5, 4), first, second, quant=quant), whole_images(rng, 3, (33, 5, 4))
    np.testing.assert_array_equal(Session(graph, level=level, batch=2).run(x), reference.output(graph, x))


def test_inputs_stored_as_integers(level: str, rng: np.random.Generator) -> None:
    node = whole(build.conv(rng, "x", 12, 20, integer=False), rng)
    graph = build.graph((12, 6, 6), node, quant={"x": Quant(0.5, 100)})
    x = whole_images(rng, 2, (12, 6, 6))
    np.testing.assert_array_equal(Session(graph, level=level).run(x), reference.output(graph, x))


def identity(size: int) -> Graph:
    """A linear layer that hands on its inputs, as it reads them."""
    eye = np.eye(size, dtype=np.float32)
    return build.graph((size,), Node("linear", "y", ("x",), {"precision": "bf16"}, {"weight": eye}))


def test_inputs_are_rounded_to_nearest_even(level: str, rng: np.random.Generator) -> None:
    ties = 1 + np.arange(-8, 9) * 2.0**-8
    any_size = np.ldexp(rng.uniform(-1, 1, 60), rng.integers(-90, 90, 60))
    x = np.concatenate([ties, -ties, ties + 2.0**-20, any_size, [0.0]]).astype(np.float32)[None]
    y = Session(identity(x.size), level=level).run(x)
    np.testing.assert_array_equal(y, torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy())
    np.testing.assert_array_equal(y, reference.output(identity(x.size), x))


def test_what_is_too_large_becomes_the_largest(level: str) -> None:
    x = np.array([[np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 3.389e38, 1.0]], np.float32)
    y = Session(identity(7), level=level).run(x)
    largest = torch.finfo(torch.bfloat16).max
    np.testing.assert_array_equal(y, np.array([[1, -1, -1, 1, -1, 1, 1]], np.float32) * [*[largest] * 6, 1])


def test_what_is_not_finite_stays_in_its_pixel(level: str, rng: np.random.Generator) -> None:
    for shape, kernel in (((35, 2, 3), (1, 1)), ((3, 4, 4), (2, 3)), ((7, 1, 1), (1, 1))):
        graph = build.graph(shape, whole(build.conv(rng, "x", shape[0], 20, kernel, integer=False), rng))
        x = whole_images(rng, 3, shape)
        wanted = Session(graph, level=level).run(x)
        x[1] = np.nan
        got = Session(graph, level=level, batch=3).run(x)
        np.testing.assert_array_equal(got[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("case", CASES)
def test_sums_of_reals_are_within_the_bound(case: str, rng: np.random.Generator) -> None:
    shape, out, kernel, attrs = CASES[case]
    attrs = {name: value for name, value in attrs.items() if name != "activation"}
    node = halved(build.conv(rng, "x", shape[0], out, kernel, integer=False, **attrs))
    x = build.images(rng, 2, shape)
    bias = node.weights["bias"].astype(np.float64).reshape(-1, 1, 1)
    top, left, bottom, right = node_padding(attrs)
    padded = functional.pad(torch.from_numpy(x).to(torch.bfloat16).double(), (left, right, top, bottom))
    weight = torch.from_numpy(node.weights["weight"]).double()
    others = (attrs.get("stride", 1), 0, attrs.get("dilation", 1), attrs.get("groups", 1))
    exact = functional.conv2d(padded, weight, None, *others).numpy() + bias
    magnitude = functional.conv2d(padded.abs(), weight.abs(), None, *others).numpy() + np.abs(bias)
    terms = prod(weight.shape[1:]) + 1
    assert np.ptp(exact) > 1
    for level in LEVELS:
        got = Session(build.graph(shape, node), level=level, batch=2).run(x)
        assert (np.abs(got - exact) <= terms * 2.0**-23 * magnitude).all(), level


def node_padding(attrs: dict[str, Any]) -> tuple[int, int, int, int]:
    return tuple(attrs.get("padding", (0, 0, 0, 0)))  # type: ignore[return-value]


def test_threads_and_batches_change_nothing(level: str, rng: np.random.Generator) -> None:
    node = halved(build.conv(rng, "x", 37, 45, integer=False, padding=(1, 1, 1, 1)))
    graph, x = build.graph((37, 9, 9), node), build.images(rng, 4, (37, 9, 9))
    wanted = Session(graph, level=level).run(x)
    for batch, threads in ((1, 3), (4, 1), (4, 3), (3, 2)):
        np.testing.assert_array_equal(Session(graph, level=level, batch=batch, threads=threads).run(x), wanted)


def test_sessions_say_which_arithmetic_they_have(level: str, rng: np.random.Generator) -> None:
    wide = halved(build.conv(rng, "x", 64, 64, name="wide", integer=False, padding=(1, 1, 1, 1)))
    narrow = halved(build.conv(rng, "wide", 64, 8, (1, 1), name="narrow", integer=False, groups=8))
    session = Session(build.graph((64, 8, 8), wide, narrow), level=level)
    tiles = (
        "tiles"
        in Session(build.graph((64, 8, 8), build.conv(rng, "x", 64, 64), quant={"x": IN}), level=level).kernels["conv"]
    )
    if not has_bf16(level):
        assert session.kernels == {"wide": "fp32 of bf16", "narrow": "fp32 of bf16"}
    else:
        assert session.kernels == {"wide": "bf16 tiles" if tiles else "bf16", "narrow": "bf16"}
        weights = (wide.weights["weight"].size, narrow.weights["weight"].size)
        assert session.weight_bytes < 2.5 * weights[0] + 40 * weights[1]


def test_emulated_levels_have_bf16() -> None:
    assert has_bf16(PAIRS)
    assert has_bf16(TILES)
    assert not has_bf16("emulated-avx_vnni")
    assert not has_bf16("portable")


def test_the_file_holds_at_most_two_bytes_a_weight(tmp_path: Path, rng: np.random.Generator) -> None:
    graph = build.graph((16, 6, 6), halved(build.conv(rng, "x", 16, 24, integer=False)))
    save(graph, tmp_path / "net")
    found = read_graph(tmp_path / "net")
    assert found.nodes[0].attrs["precision"] == "bf16"
    assert stored_bytes(found) <= 2 * 16 * 24 * 9 + 4 * 24
    x = build.images(rng, 2, (16, 6, 6))
    np.testing.assert_array_equal(Session(found).run(x), Session(graph).run(x))


def test_what_cannot_be_is_refused(rng: np.random.Generator) -> None:
    node = halved(build.conv(rng, "x", 8, 8, integer=False))
    rough = {**node.weights, "weight": node.weights["weight"] + np.float32(2.0**-20)}
    integer = build.conv(rng, "x", 8, 8, precision="bf16")
    for wrong, text in (
        (Node("conv2d", "conv", ("x",), node.attrs, rough), "rounded to bf16"),
        (integer, "rounded to bf16"),
        (Node("conv2d", "conv", ("x",), {"precision": "fp16"}, node.weights), "precision"),
        (Node("add", "conv", ("x", "x"), {"precision": "bf16"}), "precision"),
    ):
        with pytest.raises(BadInput, match=text):
            Session(build.graph((8, 6, 6), wrong))
    with pytest.raises(UnsupportedOperator, match="depthwise"):
        Session(build.graph((8, 6, 6), halved(build.conv(rng, "x", 8, 8, groups=8, integer=False))))


def test_chains(level: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pad = {"padding": (1, 1, 1, 1), "activation": "relu"}
    first = whole(build.conv(rng, "x", 5, 12, name="a", integer=False, **pad), rng)
    second = whole(build.conv(rng, "a", 12, 9, name="b", integer=False, stride=(2, 2), **pad), rng)
    graph, x = build.graph((5, 20, 9), first, second), whole_images(rng, 3, (5, 20, 9))
    apart = Session(graph, level=level, batch=2, threads=2).run(x)
    monkeypatch.setattr("trimtab.graph.bands.CHAINED_BYTES", 1)
    together = Session(graph, level=level, batch=2, threads=2)
    assert together.steps == ["b"]
    np.testing.assert_array_equal(together.run(x), apart)


def test_stored_outputs_of_one_layer_are_the_inputs_of_the_next(level: str, rng: np.random.Generator) -> None:
    first = whole(build.conv(rng, "x", 6, 10, (1, 1), name="a", integer=False), rng)
    second = build.conv(rng, "a", 10, 7, name="b")
    graph = build.graph((6, 8, 8), first, second, quant={"a": OUT, "b": OUT})
    x = whole_images(rng, 2, (6, 8, 8))
    np.testing.assert_array_equal(Session(graph, level=level).run(x), reference.output(graph, x))
