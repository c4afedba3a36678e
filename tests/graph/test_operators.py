"""The vocabulary of programs: every word of it can be compiled, and numbers are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.curves import PYTORCH

from trimtab.graph import ACTIVATIONS, LARGEST_BF16, OPERATORS, PRECISIONS
from trimtab.graph.node import CURVES, NOT_ZERO_AT_ZERO
from trimtab.kernels import Node, Quant, Session

SHAPE = (4, 6, 5)
RNG = np.random.default_rng(5)
ONES = np.ones(4, np.float32)

#: One layer of every operator, as short as it may be written.
EXAMPLES = {
    "quantize": Node("quantize", "out", ("x",)),
    "conv2d": build.conv(RNG, "x", 4, 3, name="out", integer=False),
    "linear": build.linear(RNG, "flat", 120, 3, name="out", integer=False),
    "activation": Node("activation", "out", ("x",), {"activation": "hard_swish"}),
    "add": Node("add", "out", ("x", "x")),
    "mul": Node("mul", "out", ("x", "x")),
    "concat": Node("concat", "out", ("x", "x")),
    "max_pool2d": Node("max_pool2d", "out", ("x",), {"kernel": (2, 3)}),
    "avg_pool2d": Node("avg_pool2d", "out", ("x",), {"kernel": (2, 3)}),
    "global_avg_pool2d": Node("global_avg_pool2d", "out", ("x",)),
    "adaptive_avg_pool2d": Node("adaptive_avg_pool2d", "out", ("x",), {"size": (2, 3)}),
    "flatten": Node("flatten", "out", ("x",)),
    "channel_map": Node("channel_map", "out", ("x",), {"index": (2, -1, 2)}),
    "subsample": Node("subsample", "out", ("x",), {"stride": (2, 2)}),
    "layer_norm": Node("layer_norm", "out", ("x",), {}, {"weight": ONES, "bias": ONES}),
    "tokens": Node("tokens", "out", ("x",)),
    "prelu": Node("prelu", "out", ("x",), {}, {"slope": ONES}),
    "channel_affine": Node("channel_affine", "out", ("x",), {}, {"bias": ONES}),
    "group_norm": Node("group_norm", "out", ("x",), {}, {"weight": ONES, "bias": ONES}),
    "upsample": Node("upsample", "out", ("x",), {"size": (7, 4)}),
    "depth_to_space": Node("depth_to_space", "out", ("x",), {"block": (2, 1)}),
    "attention": Node("attention", "out", ("row", "row", "row"), {"heads": 2}),
}


def test_there_is_an_example_of_every_operator() -> None:
    assert set(EXAMPLES) == set(OPERATORS)


@pytest.mark.parametrize("op", EXAMPLES)
def test_every_operator_compiles_without_what_it_has_defaults_for(op: str, rng: np.random.Generator) -> None:
    before = (Node("flatten", "flat", ("x",)), Node("tokens", "row", ("x",)))
    graph = build.graph(SHAPE, *before, EXAMPLES[op], quant={"x": IN})
    x = build.images(rng, 2, SHAPE)
    np.testing.assert_allclose(Session(graph).run(x), reference.output(graph, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_compiles_after_a_layer(activation: str, rng: np.random.Generator) -> None:
    graph = build.graph(SHAPE, build.conv(rng, "x", 4, 3, activation=activation), quant={"x": IN, "conv": OUT})
    x = build.images(rng, 2, SHAPE)
    np.testing.assert_array_equal(Session(graph).run(x), reference.output(graph, x))


def test_pytorch_has_every_curve() -> None:
    assert set(PYTORCH) == set(CURVES)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_activations_make_of_zero(activation: str) -> None:
    graph = build.graph((3,), Node("activation", "out", ("x",), {"activation": activation}))
    made = Session(graph).run(np.zeros((1, 3), np.float32))
    assert made.any() == (activation in NOT_ZERO_AT_ZERO)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_compiles(precision: str, rng: np.random.Generator) -> None:
    node = build.conv(rng, "x", 4, 3, integer=False, precision=precision)
    node.weights["weight"][:] = reference.to_bf16(node.weights["weight"])  # type: ignore[index]
    graph, x = build.graph(SHAPE, node), build.images(rng, 2, SHAPE)
    np.testing.assert_allclose(Session(graph).run(x), reference.output(graph, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_largest_integer_that_is_stored(bits: int) -> None:
    quant = Quant(0.5, 1, bits)
    assert quant.top == 2**bits - 1
    graph = build.graph((2,), Node("quantize", "out", ("x",)), quant={"out": quant})
    stored = Session(graph).run(np.array([[1e9, -1e9]], np.float32))
    np.testing.assert_array_equal(stored, [[(2**bits - 1 - 1) * 0.5, -1 * 0.5]])


def test_the_largest_bf16_number() -> None:
    assert torch.finfo(torch.bfloat16).max == LARGEST_BF16
