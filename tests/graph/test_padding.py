"""Padding: which tensors get more channels, and that none of them shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT

from trimtab.graph import Graph, Node, Quant
from trimtab.graph.padding import Channels, isolate, pad_channels

PAD = {"padding": (1, 1, 1, 1)}
CODES = Quant(0.02, 5)


def mixed(rng: np.random.Generator, integer: bool) -> Graph:
    """Return a graph of every operator around which channels can be padded, and some around which they cannot."""

    def conv(source: str, channels: int, out: int, name: str, **attrs: object) -> Node:
        return build.conv(rng, source, channels, out, name=name, integer=integer, **PAD, **attrs)  # type: ignore[arg-type]

    few = conv("normed", 7, 4, "few")
    few.weights["weight"][:] = np.where(few.weight > 0, 3, -2)
    nodes = (
        conv("x", 5, 7, "stem", activation="relu"),
        conv("stem", 7, 7, "own", groups=7, activation="relu6"),
        build.conv(rng, "own", 7, 7, (1, 1), name="mixed", integer=integer, residual="stem", activation="gelu"),
        Node("global_avg_pool2d", "pooled", ("mixed",)),
        build.conv(rng, "pooled", 7, 3, (1, 1), name="squeeze", integer=integer, activation="relu"),
        build.conv(rng, "squeeze", 3, 7, (1, 1), name="gate", integer=integer, activation="hard_sigmoid"),
        Node("mul", "gated", ("mixed", "gate")),
        Node("prelu", "bent", ("gated",), {}, {"slope": rng.standard_normal(7).astype(np.float32)}),
        Node("channel_affine", "moved", ("bent",), {}, {"bias": rng.standard_normal(7).astype(np.float32)}),
        Node("max_pool2d", "most", ("moved",), {"kernel": (2, 2)}),
        Node("channel_map", "spread", ("most",), {"index": (-1, 3, 0, -1, 6, 2, -1, 5, 4)}),
        conv("spread", 9, 9, "dense", activation="relu"),
        Node("add", "sum", ("dense", "spread"), {"activation": "relu"}),
        conv("sum", 9, 12, "grouped", groups=3),
        Node("concat", "joined", ("grouped", "sum")),
        conv("joined", 21, 7, "narrow"),
        Node("group_norm", "normed", ("narrow",), {"groups": 7, "epsilon": 1e-5},
             {"weight": np.ones(7, np.float32), "bias": np.zeros(7, np.float32)}),
        few,
        conv("few", 4, 6, "wide", activation="relu"),
        Node("adaptive_avg_pool2d", "means", ("wide",), {"size": (1, 1)}),
        Node("flatten", "flat", ("means",)),
        build.linear(rng, "flat", 6, 3, name="out", integer=integer),
    )  # fmt: skip
    names = (
        "x",
        "stem",
        "own",
        "mixed",
        "pooled",
        "squeeze",
        "gated",
        "most",
        "spread",
        "dense",
        "sum",
        "joined",
        "wide",
    )
    quant = {name: IN if name == "x" else OUT for name in names} if integer else {}
    return Graph("x", (5, 8, 7), nodes, "out", quant)


@pytest.mark.parametrize("integer", [True, False])
@given(seed=st.integers(0, 999))
def test_values_stay_what_they_are(integer: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = mixed(rng, integer)
    padded = pad_channels(graph, lambda channels: channels.width + int(rng.integers(0, 9)))
    x = build.images(rng, 2, graph.input_shape)
    wanted, got = reference.interpret(graph, x), reference.interpret(padded, x)
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name][:, : values.shape[1]], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("integer", [True, False])
def test_what_shares_channels_is_padded_alike(integer: bool, rng: np.random.Generator) -> None:
    """What concatenation, groups, norms of groups and weights of few values meet is not, nor are the ends."""
    graph = mixed(rng, integer)
    asked = []

    def stored(channels: Channels) -> int:
        asked.append(channels)
        return 16

    padded = pad_channels(graph, stored)
    widths = {name: shape[0] for name, shape in padded.shapes.items() if shape[0] != graph.shapes[name][0]}
    images = ["stem", "own", "mixed", "pooled", "gate", "gated", "bent", "moved", "most", "wide", "means", "flat"]
    assert widths == dict.fromkeys(images, 16)
    # From `stem` to `most` a depthwise layer and two 1x1 ones read them, from `wide` on a linear layer.
    assert sorted(asked) == [Channels(6, False, False, (1,)), Channels(7, False, True, (1, 1))]


def test_a_layer_alone_is_padded_as_inside_of_a_network(rng: np.random.Generator) -> None:
    layer = build.conv(rng, "x", 15, 15, name="layer", activation="relu", **PAD)
    graph = build.graph((15, 6, 5), layer, quant={"x": IN, "layer": OUT})
    x = build.images(rng, 2, (15, 6, 5))
    alone = isolate(graph)
    np.testing.assert_array_equal(reference.output(alone, x), reference.output(graph, x))
    assert pad_channels(graph, lambda channels: 16).shapes == graph.shapes
    assert pad_channels(alone, lambda channels: 16).node("layer").weight.shape == (16, 16, 3, 3)
