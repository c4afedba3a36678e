"""Every other operator in every storage, and float32 against PyTorch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.curves import PYTORCH
from tests.kernels.levels import EVERY_LEVEL, LEVELS
from tests.pairwise import pairwise

from trimtab.graph.node import CURVES
from trimtab.kernels import Graph, Node, Quant, Session

SHAPE = (11, 9, 8)
POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0, 1, 1)}
OPERATORS = {
    "quantize": {},
    "activation": {"activation": "relu6"},
    "max_pool2d": POOL,
    "avg_pool2d": POOL,
    "global_avg_pool2d": {},
    "adaptive_avg_pool2d": {"size": (4, 11)},
    "flatten": {},
    "channel_map": {"index": (3, -1, 10, 0, 0, -1)},
    "subsample": {"stride": (2, 3)},
    "prelu": {},
    "channel_affine": {},
    "upsample to the nearest": {"size": (13, 4)},
    "upsample bilinearly": {"size": (4, 13), "mode": "bilinear"},
    "depth_to_space": {"block": (1, 11), "crop": (2, 3), "size": (6, 84)},
    "add": {"activation": "relu"},
    "mul": {},
    "concat": {},
}
NUMBERS = {
    name: np.random.default_rng(3).standard_normal(11).astype(np.float32) for name in ("weight", "bias", "slope")
}
WEIGHTS = {"prelu": ("slope",), "channel_affine": ("weight", "bias")}
#: Operators that sum floats, in an order that depends on the level.
SUMS = ("avg_pool2d", "global_avg_pool2d", "adaptive_avg_pool2d")
STORAGES = [None, IN, OUT, Quant(0.5, 2, 3)]


#: Channels in runs: of zeros, and of an input's channels from any on.
RUNS = st.lists(st.tuples(st.integers(-1, 10), st.integers(1, 11)), min_size=1, max_size=5)


@pytest.mark.parametrize("quant", [None, Quant(0.05, 9)])
@settings(max_examples=150)
@given(runs=RUNS)
@example(runs=[(-1, 1), (0, 11)])  # where zeros end, channel 0 is not the next of them
def test_channels_are_mapped_run_by_run(quant: Quant | None, runs: list[tuple[int, int]]) -> None:
    """Any mixture of zeros and stretches of the input's channels: what copies them takes stretches at a time."""
    index = tuple(
        c for first, count in runs for c in ([-1] * count if first < 0 else range(first, min(first + count, 11)))
    )
    x = np.random.default_rng(len(index)).standard_normal((2, 11, 3, 2)).astype(np.float32)
    stored = {} if quant is None else {"x": quant, "out": quant}
    graph = Graph("x", (11, 3, 2), (Node("channel_map", "out", ("x",), {"index": index}),), "out", stored)
    if quant is not None:
        x = (np.clip(np.rint(x / quant.scale), -quant.zero_point, quant.top - quant.zero_point) * quant.scale).astype(
            np.float32
        )
    wanted = np.stack([np.zeros_like(x[:, 0]) if c < 0 else x[:, c] for c in index], 1)
    np.testing.assert_allclose(Session(graph).run(x), wanted, rtol=1e-6)


@pairwise(op=OPERATORS, source=STORAGES, level=LEVELS)
def test_operator(op: str, source: Quant | None, level: str, rng: np.random.Generator) -> None:
    """Every operator between every two storages at some level, and to every storage at every level."""
    inputs = ("x", "other") if op in ("add", "mul", "concat") else ("x",)
    other = Node("activation", "other", ("x",), {"activation": "relu"})
    weights = {name: NUMBERS[name] for name in WEIGHTS.get(op, ())}
    node = Node(op.split()[0], "out", inputs, OPERATORS[op], weights)
    x = build.images(rng, 3, SHAPE)
    for to, threads in product(STORAGES, (1, 2)):
        stored = (("x", source), ("out", to), ("other", Quant(0.01, 3)))
        graph = build.graph(SHAPE, other, node, quant={name: q for name, q in stored if q is not None})
        got = Session(graph, level=level, batch=2, threads=threads).run(x)
        wanted = reference.output(graph, x)
        assert got.shape == wanted.shape
        if op in SUMS and source is None:
            step = 1e-5 if to is None else to.scale * 1.01  # sums of floats may round either way
            np.testing.assert_allclose(got, wanted, atol=step, err_msg=f"{to}, {threads} threads")
        else:
            np.testing.assert_array_equal(got, wanted, err_msg=f"{to}, {threads} threads")


@pairwise(include=[True, False], source=[None, IN], level=LEVELS)
def test_average_counts(include: bool, source: Quant | None, level: str, rng: np.random.Generator) -> None:
    attrs = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1), "count_include_pad": include}
    graph = build.graph((5, 7, 7), Node("avg_pool2d", "p", ("x",), attrs), quant={"x": source} if source else {})
    x = build.images(rng, 2, (5, 7, 7))
    seen = torch.from_numpy(reference.real(reference.store(x, source), source))
    wanted = functional.avg_pool2d(seen, 3, 2, 1, count_include_pad=include)
    np.testing.assert_allclose(Session(graph, level=level).run(x), wanted.numpy(), atol=1e-5)


FLOATS = [
    ((7, 9, 8), 11, (3, 3), {"padding": (1, 1, 1, 1)}),
    ((3, 15, 15), 33, (5, 3), {"stride": (2, 1), "padding": (2, 1, 0, 3), "dilation": (1, 2)}),
    ((16, 6, 6), 70, (1, 1), {}),
    ((12, 7, 7), 18, (3, 3), {"groups": 6, "padding": (1, 1, 1, 1)}),
    ((17, 9, 9), 17, (3, 3), {"groups": 17, "stride": (2, 2), "padding": (1, 1, 1, 1)}),
]


@pairwise(case=range(len(FLOATS)), stored=["neither", "inputs", "weights"], level=LEVELS)
def test_float_conv_against_pytorch(case: int, stored: str, level: str, rng: np.random.Generator) -> None:
    """Where not both inputs and weights are integers, a layer computes in floats."""
    weights_integer, source = stored == "weights", IN if stored == "inputs" else None
    shape, out, kernel, attrs = FLOATS[case]
    node = build.conv(rng, "x", shape[0], out, kernel, integer=weights_integer, activation="relu", **attrs)
    graph = build.graph(shape, node, quant={"x": source} if source else {})
    x = build.images(rng, 3, shape)
    got = Session(graph, level=level, batch=2).run(x)
    seen = torch.from_numpy(reference.real(reference.store(x, source), source))
    weight = torch.from_numpy(node.weights["weight"].astype(np.float32))
    if weights_integer:
        weight = weight * torch.from_numpy(node.weights["weight_scale"]).reshape(-1, 1, 1, 1)
    top, left, bottom, right = attrs.get("padding", (0, 0, 0, 0))
    wanted = functional.conv2d(
        functional.pad(seen, (left, right, top, bottom)), weight, torch.from_numpy(node.weights["bias"]),
        attrs.get("stride", 1), 0, attrs.get("dilation", 1), attrs.get("groups", 1),
    ).relu()  # fmt: skip
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_float_resnet(level: str, rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer=False)
    x = build.images(rng, 2, (3, 32, 32))
    wanted = reference.output(graph, x)
    np.testing.assert_allclose(Session(graph, level=level).run(x), wanted, rtol=1e-4, atol=1e-4)


def test_not_a_number_stays_one_in_floats(level: str, rng: np.random.Generator) -> None:
    graph = build.graph((4, 5, 5), build.conv(rng, "x", 4, 9, integer=False, activation="relu"))
    x = np.full((1, 4, 5, 5), np.nan, np.float32)
    assert np.isnan(Session(graph, level=level).run(x)).all()
    stored = Graph("x", (4, 5, 5), (Node("quantize", "q", ("x",)),), "q", {"q": IN})
    np.testing.assert_array_equal(Session(stored, level=level).run(x), np.float32(-119) * np.float32(0.02))


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_is_pytorch_s(curve: str, level: str) -> None:
    x = np.concatenate([np.linspace(-20, 20, 40001), [-1e30, -200, 200, 1e30, 0.0, -1e-20]]).astype(np.float32)
    graph = build.graph((len(x),), Node("activation", "a", ("x",), {"activation": curve}))
    session = Session(graph, level=level)
    assert np.isnan(session.run(np.full((1, len(x)), np.nan, np.float32))).all()
    got = session.run(x[None])[0]
    wanted = PYTORCH[curve](torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=2e-7)
    np.testing.assert_array_equal(got, reference.output(graph, x[None])[0])


@pytest.mark.parametrize("curve", ["tanh", "elu"])
def test_a_curve_keeps_the_digits_of_small_numbers(curve: str, level: str) -> None:
    x = np.concatenate([-np.geomspace(1e-30, 80, 20001), np.geomspace(1e-30, 80, 20001)]).astype(np.float32)
    graph = build.graph((len(x),), Node("activation", "a", ("x",), {"activation": curve}))
    wanted = PYTORCH[curve](torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(Session(graph, level=level).run(x[None])[0], wanted, rtol=1e-6, atol=0)


@pairwise(curve=CURVES, to=[None, OUT], groups=[1, 18], integer=[True, False], level=LEVELS)
def test_layers_end_in_a_curve(
    curve: str, to: Quant | None, groups: int, integer: bool, level: str, rng: np.random.Generator
) -> None:
    shape, pad = (18, 6, 5), {"padding": (1, 1, 1, 1)}
    conv = build.conv(rng, "x", 18, 18, name="conv", groups=groups, integer=integer, **pad)
    curved = Node("activation", "out", ("conv",), {"activation": curve})
    summed = (Node("add", "sum", ("conv", "x")), Node("activation", "out", ("sum",), curved.attrs))
    quant = {**({"x": IN} if integer else {}), **({"out": to} if to else {})}
    x = build.images(rng, 2, shape)
    for nodes in ((conv, curved), (conv, *summed)):
        graph = build.graph(shape, *nodes, quant=quant)
        session = Session(graph, level=level, batch=2)
        assert session.steps == ["out"]
        got, wanted = session.run(x), reference.output(graph, x)
        if integer:
            np.testing.assert_array_equal(got, wanted)
        else:
            assert_near(got, wanted, to)


@pairwise(source=STORAGES, to=STORAGES, level=LEVELS)
def test_a_gate_multiplies_every_pixel(
    source: Quant | None, to: Quant | None, level: str, rng: np.random.Generator
) -> None:
    gate = Node("activation", "gate", ("pool",), {"activation": "hard_sigmoid"})
    nodes = (Node("global_avg_pool2d", "pool", ("x",)), gate, Node("mul", "out", ("x", "gate")))
    stored = (("x", source or OUT), ("pool", IN), ("gate", Quant(1 / 255, 0)), ("out", to))
    graph = build.graph(SHAPE, *nodes, quant={name: q for name, q in stored if q is not None})
    x = build.images(rng, 3, SHAPE)
    np.testing.assert_array_equal(Session(graph, level=level, batch=2, threads=2).run(x), reference.output(graph, x))


def norm_of(rng: np.random.Generator, channels: int) -> Node:
    weights = {name: rng.standard_normal(channels).astype(np.float32) for name in ("weight", "bias")}
    return Node("layer_norm", "out", ("x",), {"epsilon": 1e-6}, weights)


@pairwise(channels=[1, 5, 16, 37], source=[None, IN], to=[None, OUT], level=LEVELS)
def test_layer_norm(
    channels: int, source: Quant | None, to: Quant | None, level: str, rng: np.random.Generator
) -> None:
    shape = (channels, 4, 3)
    stored = (("x", source), ("out", to))
    graph = build.graph(shape, norm_of(rng, channels), quant={name: q for name, q in stored if q is not None})
    x = build.images(rng, 3, shape)
    got = Session(graph, level=level, batch=2, threads=2).run(x)
    assert_near(got, reference.output(graph, x), to)
    if source is None and to is None:
        (node,) = graph.nodes
        weight, bias = (torch.from_numpy(node.weights[name]) for name in ("weight", "bias"))
        pixels = torch.from_numpy(x).permute(0, 2, 3, 1)
        wanted = functional.layer_norm(pixels, (channels,), weight, bias, 1e-6).permute(0, 3, 1, 2)
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4)


@pairwise(
    sizes=[(1, 5), (5, 5), (2, 16), (3, 39)], pixels=[(1, 1), (4, 3), (23, 25)], source=[None, IN], to=[None, OUT],
    level=LEVELS,
)  # fmt: skip
def test_group_norm(
    sizes: tuple[int, int], pixels: tuple[int, int], source: Quant | None, to: Quant | None, level: str,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    groups, channels = sizes
    node = Node("group_norm", "out", ("x",), {"groups": groups}, norm_of(rng, channels).weights)
    stored = (("x", source), ("out", to))
    graph = build.graph((channels, *pixels), node, quant={name: q for name, q in stored if q is not None})
    x = build.images(rng, 3, (channels, *pixels))
    single = Session(graph, level=level).run(x)
    assert_near(single, reference.output(graph, x), to)
    np.testing.assert_array_equal(Session(graph, level=level, batch=2, threads=3).run(x), single)


def test_group_norm_of_small_deviations_from_large_means(level: str, rng: np.random.Generator) -> None:
    shape = (12, 40, 33)
    node = Node("group_norm", "out", ("x",), {"groups": 3, "epsilon": 1e-6}, norm_of(rng, 12).weights)
    x = build.images(rng, 2, shape) + np.array([1e4, -3e5, 0], np.float32).repeat(4).reshape(12, 1, 1)
    weight, bias = (torch.from_numpy(node.weights[name]).double() for name in ("weight", "bias"))
    wanted = functional.group_norm(torch.from_numpy(x).double(), 3, weight, bias, 1e-6)
    np.testing.assert_allclose(Session(build.graph(shape, node), level=level).run(x), wanted.numpy(), atol=2e-5)


@pairwise(given=[("weight",), ("bias",), ("weight", "bias")], shape=[(37, 3, 2), (5,)], source=[None, IN], level=LEVELS)
def test_numbers_per_channel_are_pytorch_s(
    given: tuple[str, ...], shape: tuple[int, ...], source: Quant | None, level: str, rng: np.random.Generator
) -> None:
    weights = {name: rng.standard_normal(shape[0]).astype(np.float32) for name in ("slope", *given)}
    nodes = (
        Node("channel_affine", "affine", ("x",), {}, {name: weights[name] for name in given}),
        Node("prelu", "out", ("affine",), {}, {"slope": weights["slope"]}),
    )
    graph = build.graph(shape, *nodes, quant={"x": source} if source else {})
    x = build.images(rng, 3, shape)
    seen = torch.from_numpy(reference.real(reference.store(x, source), source))
    numbers = {name: torch.from_numpy(array).reshape(-1, *[1] * (len(shape) - 1)) for name, array in weights.items()}
    affine = seen * numbers.get("weight", 1) + numbers.get("bias", 0)
    wanted = functional.prelu(affine, numbers["slope"].flatten())
    np.testing.assert_allclose(Session(graph, level=level, batch=2, threads=2).run(x), wanted.numpy(), atol=1e-6)


HOW = [{"mode": "nearest"}, {"mode": "bilinear"}, {"mode": "bilinear", "align_corners": True}]


@pairwise(
    how=range(3), size=[(10, 28), (5, 7), (1, 3), (13, 16)], channels=[1, 16, 21], source=[None, IN], level=LEVELS
)
def test_upsampling_is_pytorch_s(
    how: int, size: tuple[int, int], channels: int, source: Quant | None, level: str, rng: np.random.Generator
) -> None:
    shape = (channels, 5, 7)
    node = Node("upsample", "out", ("x",), {"size": size, **HOW[how]})
    graph = build.graph(shape, node, quant={"x": source} if source else {})
    x = build.images(rng, 3, shape)
    got = Session(graph, level=level, batch=2, threads=2).run(x)
    np.testing.assert_array_equal(got, reference.output(graph, x))
    seen = torch.from_numpy(reference.real(reference.store(x, source), source))
    np.testing.assert_allclose(got, functional.interpolate(seen, size, **HOW[how]).numpy(), atol=2e-6)


@pairwise(
    block=[(2, 2), (3, 1), (1, 4)], crop=[((0, 0), None), ((1, 1), (9, 10)), ((5, 3), (4, 1))], channels=[1, 3, 16, 37],
    source=[None, IN], level=LEVELS,
)  # fmt: skip
def test_depth_to_space(
    block: tuple[int, int], crop: tuple[tuple[int, int], Any], channels: int, source: Quant | None, level: str,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    shape = (channels * block[0] * block[1], 12 // block[0], 12 // block[1])
    node = Node("depth_to_space", "out", ("x",), {"block": block, "crop": crop[0], "size": crop[1]})
    graph = build.graph(shape, node, quant={"x": source, "out": source} if source else {})
    x = build.images(rng, 3, shape)
    got = Session(graph, level=level, batch=2, threads=3).run(x)
    np.testing.assert_array_equal(got, reference.output(graph, x))
    if source is None and block == (2, 2) and crop[1] is None:
        np.testing.assert_array_equal(got, functional.pixel_shuffle(torch.from_numpy(x), 2).numpy())


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((4, 4), (2, 2), (1, 1)), ((3, 5), (2, 3), (0, 2))])
def test_a_transposed_convolution_is_a_convolution_and_depth_to_space(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], rng: np.random.Generator
) -> None:
    """Output y is the sum over inputs i of x[i] * w[y + padding - stride * i]."""
    weight = rng.standard_normal((5, 7, *kernel)).astype(np.float32)
    taps = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]
    wide = np.zeros((5, 7, taps[0] * stride[0], taps[1] * stride[1]), np.float32)
    wide[:, :, : kernel[0], : kernel[1]] = weight
    parts = wide.reshape(5, 7, taps[0], stride[0], taps[1], stride[1])[:, :, ::-1, :, ::-1]
    turned = parts.transpose(1, 3, 5, 0, 2, 4).reshape(-1, 5, *taps)
    margin = (taps[0] - 1, taps[1] - 1) * 2
    size = tuple((n - 1) * s - 2 * p + k for n, s, p, k in zip((6, 4), stride, padding, kernel, strict=True))
    nodes = (
        Node("conv2d", "conv", ("x",), {"padding": margin}, {"weight": np.ascontiguousarray(turned)}),
        Node("depth_to_space", "out", ("conv",), {"block": stride, "crop": padding, "size": size}),
    )
    x = build.images(rng, 2, (5, 6, 4))
    wanted = functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), None, stride, padding)
    np.testing.assert_allclose(Session(build.graph((5, 6, 4), *nodes)).run(x), wanted.numpy(), atol=1e-4)


GIVEN = [(), ("prefix",), ("position",), ("prefix", "position")]


@pairwise(given=GIVEN, source=[None, IN], to=[None, OUT], level=LEVELS)
def test_tokens(
    given: tuple[str, ...], source: Quant | None, to: Quant | None, level: str, rng: np.random.Generator
) -> None:
    shape, first = (6, 3, 4), 2 if "prefix" in given else 0
    sizes = {"prefix": (2, 6), "position": (first + 12, 6)}
    weights = {name: rng.standard_normal(sizes[name]).astype(np.float32) for name in given}
    stored = (("x", source), ("out", to))
    graph = build.graph(shape, Node("tokens", "out", ("x",), {}, weights), quant={n: q for n, q in stored if q})
    x = build.images(rng, 3, shape)
    got = Session(graph, level=level, batch=2, threads=2).run(x)
    assert got.shape == (3, 6, first + 12, 1)
    np.testing.assert_array_equal(got, reference.output(graph, x))


SIZES = [(2, 8, 8, 16), (3, 5, 7, 13), (1, 33, 20, 7), (4, 1, 1, 1)]


@pairwise(size=SIZES, source=[None, IN], to=[None, OUT], level=LEVELS)
def test_attention(
    size: tuple[int, int, int, int], source: Quant | None, to: Quant | None, level: str, rng: np.random.Generator
) -> None:
    heads, depth, width, length = size
    shape = (heads * (2 * depth + width), length, 1)
    parts = np.split(np.arange(shape[0]), [heads * depth, 2 * heads * depth])
    maps = [
        Node("channel_map", name, ("x",), {"index": tuple(part.tolist())})
        for name, part in zip("qkv", parts, strict=True)
    ]
    node = Node("attention", "out", ("q", "k", "v"), {"heads": heads, "scale": depth**-0.5})
    stored = (*((name, source) for name in "xqkv"), ("out", to))
    graph = build.graph(shape, *maps, node, quant={name: q for name, q in stored if q is not None})
    x = build.images(rng, 3, shape)
    single = Session(graph, level=level).run(x)
    assert_near(single, reference.output(graph, x), to)
    np.testing.assert_array_equal(Session(graph, level=level, batch=2, threads=2).run(x), single)


def assert_near(got: np.ndarray, wanted: np.ndarray, to: Quant | None) -> None:
    """Sums of floats may round either way."""
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5 if to is None else to.scale * 1.01)


def test_attention_does_not_overflow(level: str) -> None:
    x = np.full((1, 12, 9, 1), 1e4, np.float32)
    x[:, :4] *= np.arange(9, dtype=np.float32).reshape(1, 1, 9, 1) - 4
    maps = [Node("channel_map", n, ("x",), {"index": tuple(range(4 * i, 4 * i + 4))}) for i, n in enumerate("qkv")]
    graph = build.graph((12, 9, 1), *maps, Node("attention", "out", ("q", "k", "v"), {"heads": 2, "scale": 1.0}))
    np.testing.assert_allclose(Session(graph, level=level).run(x), 1e4, rtol=1e-6)
