"""Integer layers equal the reference bit for bit at every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.levels import EVERY_LEVEL, LEVELS
from tests.pairwise import pairwise

from trimtab.errors import BadInput
from trimtab.kernels import Graph, Node, Quant, Session, methods

PAD = {"padding": (1, 1, 1, 1)}
FROM_ZERO = Quant(0.05, 0)  # what packing with saturation bounds already

BOUNDED = ["none", "relu", "relu6"]

CASES = {
    "odd channels": ((7, 9, 8), 11, (3, 3), PAD),
    "one channel": ((1, 6, 6), 1, (3, 3), PAD),
    "three channels": ((3, 12, 12), 17, (3, 3), PAD),
    "more than a panel": ((5, 6, 7), 33, (3, 3), PAD),
    "several panels": ((16, 6, 6), 70, (3, 3), PAD),
    "strides": ((8, 11, 13), 16, (3, 3), {"stride": (2, 3), "padding": (1, 0, 2, 1)}),
    "asymmetric padding": ((5, 7, 6), 9, (3, 2), {"padding": (0, 2, 1, 3)}),
    "dilation": ((4, 11, 12), 6, (3, 3), {"dilation": (2, 3), "padding": (2, 3, 2, 3)}),
    "pointwise": ((13, 7, 5), 19, (1, 1), {}),
    "pointwise wide": ((64, 8, 8), 40, (1, 1), {}),
    "pointwise strided": ((9, 8, 8), 5, (1, 1), {"stride": (2, 2)}),
    "groups": ((12, 6, 6), 20, (3, 3), {"groups": 4, **PAD}),
    "depthwise": ((11, 9, 9), 11, (3, 3), {"groups": 11, **PAD}),
    "depthwise wide": ((33, 8, 7), 33, (5, 5), {"groups": 33, "stride": (2, 2), "padding": (2, 2, 2, 2)}),
    "depthwise dilated": ((8, 9, 9), 8, (3, 3), {"groups": 8, "dilation": (2, 2)}),
    "multiplier": ((6, 7, 7), 18, (3, 3), {"groups": 6, **PAD}),
    "even width": ((32, 4, 32), 32, (3, 3), PAD),
    "kernel as large as the image": ((20, 5, 5), 6, (5, 5), {}),
    "seven by seven": ((3, 20, 20), 8, (7, 7), {"stride": (2, 2), "padding": (3, 3, 3, 3)}),
    "only padding on one side": ((4, 3, 3), 4, (1, 1), {"padding": (2, 0, 0, 0)}),
}


def agree(graph: Graph, x: np.ndarray, level: str | None, **options: Any) -> None:
    got = Session(graph, level=level, **options).run_tensors(x)
    for name, values in reference.interpret(graph, x).items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pairwise(case=CASES, activation=BOUNDED, to=[OUT, FROM_ZERO, None], bias=[True, False], threads=[1, 2], level=LEVELS)
def test_conv(
    case: str, activation: str, to: Quant | None, bias: bool, threads: int, level: str, rng: np.random.Generator
) -> None:
    shape, out, kernel, attrs = CASES[case]
    node = build.conv(rng, "x", shape[0], out, kernel, bias=bias, activation=activation, **attrs)
    graph = build.graph(shape, node, quant={"x": IN, "conv": to} if to else {"x": IN})
    x = build.images(rng, 3, shape)
    agree(graph, x, level, batch=2, threads=threads)
    assert len(np.unique(Session(graph, level=level).run(x))) > 5


@pairwise(stored=[None, Quant(0.03, 200)], to=[None, OUT, FROM_ZERO], explicit=[True, False], level=LEVELS)
def test_residual(stored: Quant | None, to: Quant | None, explicit: bool, level: str, rng: np.random.Generator) -> None:
    quant = {name: q for name, q in (("x", IN), ("short", stored), ("out", to)) if q is not None}
    short = build.conv(rng, "x", 5, 11, (1, 1), name="short", activation="relu")
    if explicit:
        last = (build.conv(rng, "x", 5, 11, name="out", residual="short", activation="relu", **PAD),)
    else:
        last = (
            build.conv(rng, "x", 5, 11, name="b", **PAD),
            Node("add", "sum", ("short", "b")),
            Node("activation", "out", ("sum",), {"activation": "relu6"}),
        )
    graph = build.graph((5, 7, 6), short, *last, quant=quant)
    assert Session(graph).steps == ["short", "out"]
    agree(graph, build.images(rng, 3, (5, 7, 6)), level, batch=2)


@pairwise(method=methods(), case=CASES, to=[OUT, None], threads=[1, 2], level=LEVELS)
def test_every_method_gives_the_same_integers(
    method: str, case: str, to: Quant | None, threads: int, level: str, rng: np.random.Generator
) -> None:
    shape, out, kernel, attrs = CASES[case]
    node = build.conv(rng, "x", shape[0], out, kernel, activation="relu", **attrs)
    node.weights["weight"][:] //= 5  # two products fit 16 bits
    node.weights["weight"][:, :2] = 0
    graph = build.graph(shape, node, quant={"x": IN, "conv": to} if to else {"x": IN})
    agree(graph, build.images(rng, 3, shape), level, batch=2, threads=threads, method=method)


@pytest.mark.parametrize("out", [5, 20, 33, 40, 70, 97])
def test_rows_have_panels_of_every_width(out: int, level: str, rng: np.random.Generator) -> None:
    node = build.conv(rng, "x", 6, out, (3, 3), activation="relu", **PAD)
    agree(build.graph((6, 5, 6), node, quant={"x": IN}), build.images(rng, 2, (6, 5, 6)), level, batch=2, method="rows")


def test_sessions_are_held_to_methods(rng: np.random.Generator) -> None:
    node = build.conv(rng, "x", 16, 24, (3, 3), **PAD)
    node.weights["weight"][:] //= 5
    graph = build.graph((16, 8, 8), node, quant={"x": IN, "conv": OUT})
    ran = {method: Session(graph, level="portable", method=method).kernels["conv"] for method in methods()}
    assert ran["winograd"] == "w8a8 winograd"
    assert ran["winograd4"] == "w8a8 winograd 4x4"
    assert ran["rows"] == "w8a8"
    assert ran["sparse"] == "w8a8 blocks"
    with pytest.raises(BadInput, match=r"unknown method 'row'; did you mean 'rows'"):
        Session(graph, method="row")


@pairwise(
    bits=[(7, 7), (7, 6), (6, 7), (6, 8), (5, 8), (4, 8), (4, 5), (8, 8)],
    inputs=[8, 9, 24, 30, 33, 100, 400],
    side=[1, 3],
    value=[1e9, -1e9, None],
    level=LEVELS,
)
def test_largest_sums_of_few_bits(
    bits: tuple[int, int], inputs: int, side: int, value: float | None, level: str, rng: np.random.Generator
) -> None:
    """What kernels add up in 16 bits, as many products as fit: the largest weights, of one sign and of both."""
    most, top = 2 ** (bits[0] - 1) - 1, 2 ** bits[1] - 1
    node = build.conv(rng, "x", inputs, 21, (side, side), padding=(side // 2,) * 4)
    weight = node.weights["weight"]
    weight[:] = rng.integers(-most, most + 1, weight.shape)
    weight[0], weight[1] = most, -most
    weight[2], weight[3] = most, rng.choice([-most, most], weight.shape[1:])
    weight[2, ::4] = -most
    graph = build.graph((inputs, 5, 6), node, quant={"x": Quant(4.0 / top, top // 2, bits[1]), "conv": OUT})
    x = build.images(rng, 2, (inputs, 5, 6))
    agree(graph, x if value is None else np.full_like(x, value), level, batch=2)


@pairwise(bits=[1, 2, 3, 4, 6, 7], activation=BOUNDED, level=LEVELS)
def test_narrow_activations(bits: int, activation: str, level: str, rng: np.random.Generator) -> None:
    """Every store of a few bits stops at 2^bits - 1: the input, a layer, a layer with residual, a conversion."""
    top = 2**bits - 1
    quant = {
        "x": Quant(4.0 / top, top // 2, bits),
        "a": Quant(8.0 / top, top // 3, bits),
        "b": Quant(8.0 / top, 0, bits),
        "c": Quant(3.0 / top, top, bits),
        "depthwise": Quant(5.0 / top, top // 2, bits),
    }
    graph = build.graph(
        (9, 7, 6),
        build.conv(rng, "x", 9, 11, name="a", activation=activation, **PAD),
        build.conv(rng, "a", 11, 11, name="b", residual="a", activation=activation, **PAD),
        build.conv(rng, "b", 11, 11, name="depthwise", groups=11, activation=activation, **PAD),
        Node("activation", "c", ("depthwise",), {"activation": activation}),
        quant=quant,
    )
    x = build.images(rng, 3, (9, 7, 6))
    agree(graph, x, level, batch=2)
    for name, values in Session(graph, level=level).run_tensors(x).items():
        q = np.rint(values / np.float32(quant[name].scale)) + quant[name].zero_point
        assert set(np.unique(q)) <= set(range(top + 1))


@pairwise(features=[1, 10, 64, 333], to=[None, OUT], level=LEVELS)
def test_linear(features: int, to: Quant | None, level: str, rng: np.random.Generator) -> None:
    node = build.linear(rng, "x", features, 27)
    quant = {"x": IN} if to is None else {"x": IN, "linear": to}
    for batch, threads in ((1, 1), (20, 1), (1, 2)):
        graph = build.graph((features,), node, quant=quant)
        agree(graph, build.images(rng, 21, (features,)), level, batch=batch, threads=threads)


@pairwise(weight=[-128, 127], zero=[0, 255], groups=[1, 64], level=LEVELS)
def test_extremes_do_not_saturate(weight: int, zero: int, groups: int, level: str, rng: np.random.Generator) -> None:
    weights = {
        "weight": np.full((64, 64 // groups, 3, 3), weight, np.int8),
        "weight_scale": np.full(64, 1e-3, np.float32),
        "bias": np.full(64, 3e9, np.float32),
    }
    node = Node("conv2d", "conv", ("x",), {"padding": (1, 1, 1, 1), "groups": groups}, weights)
    graph = build.graph((64, 5, 5), node, quant={"x": Quant(1.0, zero)})
    for value in (-1e9, 1e9):
        agree(graph, np.full((1, 64, 5, 5), value, np.float32), level)


@pairwise(largest=[1, 7, 31], bits=[1, 4, 8], kernel=[(1, 1), (5, 5)], level=LEVELS)
def test_sums_of_small_operands_at_their_limits(
    largest: int, bits: int, kernel: tuple[int, int], level: str, rng: np.random.Generator
) -> None:
    node = build.conv(rng, "x", 70, 6, kernel)
    node.weights["weight"][:] = largest * np.array([-1, 1, 1, -1, 1, -1]).reshape(-1, 1, 1, 1)
    for zero in (0, 2**bits - 1):
        graph = build.graph((70, 6, 5), node, quant={"x": Quant(1.0, zero, bits)})
        for value in (-1e9, 1e9):
            agree(graph, np.full((1, 70, 6, 5), value, np.float32), level)


def test_weights_that_overflow_the_cache(level: str, rng: np.random.Generator) -> None:
    linear = build.graph((515,), build.linear(rng, "x", 515, 301), quant={"x": IN, "linear": OUT})
    for batch in (1, 7):
        agree(linear, build.images(rng, 7, (515,)), level, batch=batch)
    conv = build.graph((123, 3, 3), build.conv(rng, "x", 123, 131, **PAD), quant={"x": IN, "conv": OUT})
    agree(conv, build.images(rng, 1, (123, 3, 3)), level)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_resnet(level: str, rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer=True)
    x = build.images(rng, 3, (3, 32, 32))
    agree(graph, x, level, batch=2)
    logits = Session(graph, level=level).run(x)
    assert logits.shape == (3, 10)
    assert logits.std() > 0.1


@pairwise(batch=[1, 3], integer=[True, False], level=LEVELS)
def test_threads_change_nothing(batch: int, integer: bool, level: str, rng: np.random.Generator) -> None:
    x, graph = build.images(rng, 4, (3, 32, 32)), build.resnet20(rng, integer)
    one = Session(graph, level=level, batch=batch).run(x)
    for _ in range(3):
        np.testing.assert_array_equal(Session(graph, level=level, batch=batch, threads=2).run(x), one)


@st.composite
def quants(draw: st.DrawFn) -> Quant:
    bits = draw(st.sampled_from([8, 8, 8, 5, 4, 2, 1]))
    return Quant(draw(st.floats(0.005, 0.1)) * 2 ** (8 - bits), draw(st.integers(0, 2**bits - 1)), bits)


@st.composite
def random_case(draw: st.DrawFn) -> tuple[Graph, int, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, out = (groups * draw(st.integers(1, 12)) for _ in range(2))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    attrs = {
        "groups": groups,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "dilation": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "padding": tuple(draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))),
        "activation": draw(st.sampled_from(BOUNDED)),
    }
    shape = (channels, draw(st.integers(7, 12)), draw(st.integers(7, 12)))
    first = build.conv(rng, "x", channels, out, kernel, name="first", **attrs)
    second = build.conv(rng, "first", out, out, name="second", padding=(1, 1, 1, 1))
    join = Node(draw(st.sampled_from(["add", "concat"])), "join", ("second", "first"))
    quant = {"x": draw(quants()), "first": draw(quants())}
    if draw(st.booleans()):
        quant["join"] = draw(quants())
    return build.graph(shape, first, second, join, quant=quant), draw(st.integers(1, 3)), draw(st.integers(1, 2))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=random_case())
def test_random_graphs(case: tuple[Graph, int, int], level: str) -> None:
    graph, batch, threads = case
    x = build.images(np.random.default_rng(1), 3, graph.input_shape)
    agree(graph, x, level, batch=batch, threads=threads)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    largest=st.sampled_from([1, 2, 7, 8, 15, 31, 63, 127]),
    bits=st.sampled_from([1, 2, 4, 7, 8]),
    channels=st.integers(1, 40),
    out=st.integers(1, 40),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 5)]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 1, 2]),
    extreme=st.booleans(),
    seed=st.integers(0, 99),
)
def test_small_operands(
    largest: int,
    bits: int,
    channels: int,
    out: int,
    kernel: tuple[int, int],
    stride: int,
    groups: int,
    extreme: bool,
    seed: int,
    level: str,
) -> None:
    """Weights or inputs of few bits may be summed in narrower accumulators: at the limits, too, nothing saturates."""
    rng = np.random.default_rng(seed)
    channels, out = channels * groups, out * groups
    node = build.conv(rng, "x", channels, out, kernel, stride=(stride, stride), padding=(1, 1, 1, 1), groups=groups)
    weight = node.weights["weight"]
    signs = rng.choice([-1, 1], (out, 1, 1, 1))  # of whole channels: their sums are as far from zero as any can be
    weight[:] = largest * signs if extreme else rng.integers(-largest, largest + 1, weight.shape)
    top = 2**bits - 1
    quant = {"x": Quant(1 / top, rng.integers(0, top + 1).item(), bits)}
    x = rng.uniform(-1, 1, (2, channels, 7, 6)).astype(np.float32)
    if extreme:
        x[:] = 9
    agree(build.graph((channels, 7, 6), node, quant=quant), x, level, batch=2)
