"""Graphs are refused with the name of the layer and the rule, and shapes are those of PyTorch and NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels import build
from tests.kernels.build import IN

from trimtab.errors import BadInput
from trimtab.graph import check_graph, is_integer
from trimtab.graph.program import with_defaults
from trimtab.kernels import Graph, Node, Quant, UnsupportedOperator

SHAPE = (4, 6, 6)
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


def shape_of(node: Node, *, source: tuple[int, ...] = SHAPE) -> tuple[int, ...]:
    return check_graph(Graph("x", source, (node,), node.name)).shapes[node.name]


@settings(max_examples=200)
@given(
    channels=st.integers(1, 6),
    out=st.integers(1, 6),
    per_group=st.integers(1, 6),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=PAIR,
    dilation=PAIR,
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fits=st.booleans(),
)
def test_convolutions_are_those_that_pytorch_takes(
    channels: int, out: int, per_group: int, groups: int, kernel: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int], padding: tuple[int, int, int, int], size: tuple[int, int], fits: bool,
) -> None:  # fmt: skip
    if fits:
        channels, out = per_group * groups, out * groups
    weight = np.zeros((out, per_group, *kernel), np.float32)
    attrs = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    node = Node("conv2d", "out", ("x",), attrs, {"weight": weight})
    top, left, bottom, right = padding
    # Not on the meta device, which takes convolutions that the others refuse.
    x = torch.zeros(1, channels, size[0] + top + bottom, size[1] + left + right)
    try:
        wanted = functional.conv2d(x, torch.from_numpy(weight), None, stride, 0, dilation, groups).shape
    except RuntimeError:
        with pytest.raises(BadInput, match=r"do not fit|would be empty"):
            shape_of(node, source=(channels, *size))
    else:
        assert shape_of(node, source=(channels, *size)) == tuple(wanted[1:])


@settings(max_examples=100)
@given(
    op=st.sampled_from(["max_pool2d", "avg_pool2d"]),
    kernel=PAIR,
    stride=st.one_of(st.none(), PAIR),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_pools_are_those_that_pytorch_takes(
    op: str, kernel: tuple[int, int], stride: tuple[int, int] | None, padding: tuple[int, int, int, int],
    size: tuple[int, int],
) -> None:  # fmt: skip
    node = Node(op, "out", ("x",), {"kernel": kernel, "padding": padding} | ({"stride": stride} if stride else {}))
    top, left, bottom, right = padding
    x = torch.empty(1, 5, size[0] + top + bottom, size[1] + left + right, device="meta")
    if max(top, bottom) >= kernel[0] or max(left, right) >= kernel[1]:
        with pytest.raises(BadInput, match="padding must be smaller"):
            shape_of(node, source=(5, *size))
    elif x.shape[2] < kernel[0] or x.shape[3] < kernel[1]:
        with pytest.raises(BadInput, match="would be empty"):
            shape_of(node, source=(5, *size))
    else:
        assert shape_of(node, source=(5, *size)) == tuple(functional.avg_pool2d(x, kernel, stride).shape[1:])


def vectors(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


X = np.zeros(SHAPE)
SHAPES: dict[str, tuple[Node, tuple[int, ...]]] = {
    "linear": (Node("linear", "out", ("flat",), {}, {"weight": np.zeros((5, 144), np.float32)}), (5,)),
    "activation": (Node("activation", "out", ("x",), {"activation": "gelu"}), SHAPE),
    "add": (Node("add", "out", ("x", "x")), SHAPE),
    "mul": (Node("mul", "out", ("x", "x")), SHAPE),
    "gate": (Node("mul", "out", ("x", "gate")), SHAPE),
    "concat": (Node("concat", "out", ("x", "x", "x")), np.concatenate([X, X, X]).shape),
    "global_avg_pool2d": (Node("global_avg_pool2d", "out", ("x",)), X.mean((1, 2), keepdims=True).shape),
    "adaptive_avg_pool2d": (Node("adaptive_avg_pool2d", "out", ("x",), {"size": (9, 2)}), (4, 9, 2)),
    "flatten": (Node("flatten", "out", ("x",)), X.ravel().shape),
    "channel_map": (Node("channel_map", "out", ("x",), {"index": (3, -1, 0, 0, 1)}), X[[3, -1, 0, 0, 1]].shape),
    "subsample": (Node("subsample", "out", ("x",), {"stride": (4, 3)}), X[:, ::4, ::3].shape),
    "layer_norm": (Node("layer_norm", "out", ("x",), {}, vectors(weight=(4,), bias=(4,))), SHAPE),
    "tokens": (Node("tokens", "out", ("x",), {}, vectors(prefix=(2, 4), position=(38, 4))), (4, 38, 1)),
    "prelu": (Node("prelu", "out", ("flat",), {}, vectors(slope=(144,))), (144,)),
    "channel_affine": (Node("channel_affine", "out", ("x",), {}, vectors(weight=(4,))), SHAPE),
    "group_norm": (Node("group_norm", "out", ("x",), {"groups": 2}, vectors(weight=(4,), bias=(4,))), SHAPE),
    "upsample": (Node("upsample", "out", ("x",), {"size": (1, 13)}), (4, 1, 13)),
    "depth_to_space": (Node("depth_to_space", "out", ("x",), {"block": (1, 2), "crop": (2, 3)}), (2, 4, 9)),
    "attention": (Node("attention", "out", ("row", "row", "wide"), {"heads": 2}), (8, 36, 1)),
}
BEFORE = (
    Node("flatten", "flat", ("x",)),
    Node("global_avg_pool2d", "gate", ("x",)),
    Node("tokens", "row", ("x",)),
    Node("concat", "wide", ("row", "row")),
)


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case: str) -> None:
    node, wanted = SHAPES[case]
    assert check_graph(Graph("x", SHAPE, (*BEFORE, node), "out")).shapes["out"] == wanted


def test_every_attribute_is_there_and_canonical() -> None:
    conv = with_defaults(_conv(attrs={"stride": [2, np.int64(1)], "padding": np.array([1, 0, 1, 0])}))
    assert conv.attrs == {
        "stride": (2, 1), "padding": (1, 0, 1, 0), "dilation": (1, 1), "groups": 1, "activation": "none",
        "precision": "fp32",
    }  # fmt: skip
    assert {type(n) for n in (*conv.attrs["stride"], *conv.attrs["padding"])} == {int}
    pool = with_defaults(Node("avg_pool2d", "p", ("x",), {"kernel": (3, 2)}))
    assert pool.attrs == {"kernel": (3, 2), "stride": (3, 2), "padding": (0, 0, 0, 0), "count_include_pad": True}


def test_a_layer_is_integer_where_weights_and_inputs_are() -> None:
    floats = _conv(weights={"weight": np.zeros((8, 4, 3, 3), np.float32)})
    found = [is_integer(Graph("x", SHAPE, (n,), "conv", q), n) for n in (_conv(), floats) for q in ({"x": IN}, {})]
    assert found == [True, False, False, False]
    assert not is_integer(Graph("x", SHAPE, BEFORE, "flat", {"x": IN}), BEFORE[0])


def _conv(**changes: Any) -> Node:
    return replace(build.conv(np.random.default_rng(0), "x", 4, 8), **changes)


def _weights(**changes: Any) -> dict[str, Any]:
    return {**build.conv(np.random.default_rng(0), "x", 4, 8).weights, **changes}


WRONG: dict[str, tuple[Node, str]] = {
    "unknown attribute": (_conv(attrs={"strides": (1, 1)}), "attribute of conv2d layer 'conv'"),
    "zero stride": (_conv(attrs={"stride": (0, 1)}), "stride must be 2 integers of at least 1"),
    "stride that is no number": (_conv(attrs={"stride": (True, 1)}), "stride must be 2 integers"),
    "negative padding": (_conv(attrs={"padding": (0, -1, 0, 0)}), "padding must be 4 integers of at least 0"),
    "huge padding": (_conv(attrs={"padding": (2**29, 0, 0, 0)}), "too large"),
    "short padding": (_conv(attrs={"padding": (1, 1)}), "padding must be 4 integers"),
    "huge dilation": (_conv(attrs={"dilation": (2**29, 1)}), "would be empty"),
    "groups": (_conv(attrs={"groups": 3}), "3 groups do not fit 4 channels"),
    "activation": (_conv(attrs={"activation": "swish"}), "activation of layer 'conv'.*swish"),
    "precision": (_conv(attrs={"precision": "fp16"}), "precision of layer 'conv'.*fp16"),
    "dangling input": (_conv(inputs=("y",)), "input 'y' is not produced before it"),
    "no input": (_conv(inputs=()), "takes 1 to 2 inputs, got 0"),
    "residual shape": (_conv(inputs=("x", "x")), "residual of shape"),
    "no weight": (_conv(weights={}), "needs weights"),
    "weight type": (_conv(weights={"weight": np.zeros((8, 4, 3, 3))}), "must be float32 or int8, got float64"),
    "weight rank": (_conv(weights={"weight": np.zeros((8, 36), np.float32)}), "of 4 dimensions"),
    "scale missing": (_conv(weights={"weight": np.zeros((8, 4, 3, 3), np.int8)}), "only they, need"),
    "scale zero": (_conv(weights=_weights(weight_scale=np.zeros(8, np.float32))), "greater than 1e-30"),
    "bias length": (_conv(weights=_weights(bias=np.zeros(7, np.float32))), "bias must be 8 finite"),
    "bias infinite": (_conv(weights=_weights(bias=np.full(8, np.inf, np.float32))), "bias must be 8 finite"),
    "extra weight": (_conv(weights=_weights(gamma=np.zeros(8, np.float32))), "has no weight 'gamma'"),
    "linear on an image": (
        Node("linear", "conv", ("x",), {}, {"weight": np.zeros((2, 144), np.float32)}),
        "takes 144 features",
    ),
    "sum of other shapes": (Node("add", "conv", ("x", "gate")), "adds tensors of shapes"),
    "gate of other shape": (Node("mul", "conv", ("gate", "x")), "multiplies tensors of shapes"),
    "join of other shapes": (Node("concat", "conv", ("x", "gate")), "joins tensors of shapes"),
    "map out of range": (Node("channel_map", "conv", ("x",), {"index": (4,)}), "index 4 of 4 channels"),
    "empty map": (Node("channel_map", "conv", ("x",), {"index": ()}), "index must be some integers of at least -1"),
    "pool padding": (
        Node("max_pool2d", "conv", ("x",), {"kernel": (2, 2), "padding": (2, 0, 0, 0)}),
        "padding must be smaller than the kernel",
    ),
    "pool larger than the image": (Node("avg_pool2d", "conv", ("x",), {"kernel": (7, 7)}), "would be empty"),
    "norm of other channels": (Node("layer_norm", "conv", ("x",), {}, vectors(weight=(5,), bias=(4,))), "'weight'"),
    "no epsilon": (
        Node("layer_norm", "conv", ("x",), {"epsilon": 0.0}, vectors(weight=(4,), bias=(4,))),
        "epsilon must be a number above 0",
    ),
    "slopes of other channels": (Node("prelu", "conv", ("x",), {}, vectors(slope=(1,))), "'slope'"),
    "slopes in float64": (Node("prelu", "conv", ("x",), {}, {"slope": np.ones(4)}), "'slope'.*finite float32"),
    "neither weight nor bias": (Node("channel_affine", "conv", ("x",)), "'weight'.*'bias'.*or both"),
    "integers for every channel": (
        Node("channel_affine", "conv", ("x",), {}, {"weight": np.ones(4, np.int8)}),
        "'weight'.*finite float32",
    ),
    "groups of channels": (
        Node("group_norm", "conv", ("x",), {"groups": 3}, vectors(weight=(4,), bias=(4,))),
        "3 groups do not fit 4 channels",
    ),
    "groups of features": (
        Node("group_norm", "conv", ("flat",), {}, vectors(weight=(144,), bias=(144,))),
        "needs an input of shape",
    ),
    "no size": (Node("upsample", "conv", ("x",)), "size must be 2 integers of at least 1"),
    "mode": (Node("upsample", "conv", ("x",), {"size": (2, 2), "mode": "cubic"}), "mode of layer 'conv'.*cubic"),
    "corners of the nearest": (
        Node("upsample", "conv", ("x",), {"size": (2, 2), "align_corners": True}),
        "only bilinear upsampling may align corners",
    ),
    "huge side": (Node("upsample", "conv", ("x",), {"size": (1, 2**20 + 1)}), "sides of up to"),
    "blocks of other channels": (
        Node("depth_to_space", "conv", ("x",), {"block": (2, 3)}),
        "blocks of .2, 3. do not fit 4 channels",
    ),
    "crop beyond the edge": (
        Node("depth_to_space", "conv", ("x",), {"block": (2, 2), "crop": (3, 0), "size": (10, 1)}),
        "10, 1. pixels from .3, 0. are not all inside of .12, 12",
    ),
    "nothing left of the crop": (
        Node("depth_to_space", "conv", ("x",), {"block": (2, 2), "crop": (0, 12)}),
        "are not all inside",
    ),
    "position of other tokens": (Node("tokens", "conv", ("x",), {}, vectors(position=(35, 4))), "'position'"),
    "heads": (Node("attention", "conv", ("row", "row", "row"), {"heads": 3}), "attention of 3 heads"),
    "attention over an image": (Node("attention", "conv", ("x", "x", "x"), {"heads": 2}), "attention of 2 heads"),
    "the input's own name": (_conv(name="x"), "the name is used twice"),
    "no name": (_conv(name=""), "a conv2d layer has no name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layers(case: str) -> None:
    node, text = WRONG[case]
    with pytest.raises(BadInput, match=text):
        check_graph(Graph("x", SHAPE, (*BEFORE, node), node.name, {"x": IN}))


def test_an_unsupported_operator_is_named_with_its_layer() -> None:
    with pytest.raises(UnsupportedOperator, match=r"block\.3.*gelu.*conv2d"):
        shape_of(Node("gelu", "block.3", ("x",)))


@pytest.mark.parametrize(
    "quant",
    [
        Quant(0.0, 0),
        Quant(float("nan"), 0),
        Quant(1e30, 0),
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
        check_graph(Graph("x", SHAPE, (_conv(),), "conv", {"x": quant}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"input_shape": (4, 6)}, "input shape must be"),
        ({"input_shape": (4, 0, 6)}, "input shape must be"),
        ({"input_shape": (4, 2**20, 2**20)}, "too large"),
        ({"output": "nothing"}, "output 'nothing' is not produced"),
        ({"nodes": ()}, "at least one node"),
        ({"nodes": (_conv(), _conv())}, "the name is used twice"),
        ({"quant": {"nothing": IN}}, "quantisation of 'nothing': no such tensor"),
    ],
)
def test_wrong_graphs(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        check_graph(replace(Graph("x", SHAPE, (_conv(),), "conv"), **changes))


def wide(features: int) -> Graph:
    weights = {"weight": np.ones((1, features), np.int8), "weight_scale": np.ones(1, np.float32)}
    return Graph("x", (features,), (Node("linear", "big", ("x",), {}, weights),), "big", {"x": IN})


def flat(*shape: int, layers: int = 1) -> Graph:
    return Graph("x", shape, tuple(Node("flatten", f"n{i}", ("x",)) for i in range(layers)), "n0")


def mean(rows: int) -> Graph:
    return Graph("x", (1, rows, 2**12), (Node("global_avg_pool2d", "big", ("x",)),), "big", {"x": IN})


@pytest.mark.parametrize(
    ("largest", "too_large", "text"),
    [
        (wide(2**15), wide(2**15 + 1), "'big'.*overflow"),
        (mean(2**11), mean(2**11 + 1), "'big'.*overflow"),
        (flat(2**30), flat(2**30 + 1), "too large"),
        (flat(1, layers=2**13), flat(1, layers=2**13 + 1), "8193 layers"),
    ],
    ids=["inputs of integers", "average of integers", "elements", "layers"],
)
def test_limits_are_reached_and_not_passed(largest: Graph, too_large: Graph, text: str) -> None:
    check_graph(largest)
    with pytest.raises(BadInput, match=text):
        check_graph(too_large)
