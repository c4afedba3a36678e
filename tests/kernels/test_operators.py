"""Every other operator in every storage, and float32 against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT

from trimtab.kernels import Graph, Node, Quant, Session

SHAPE = (11, 9, 8)
POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0, 1, 1)}
OPERATORS = {
    "quantize": {},
    "activation": {"activation": "relu6"},
    "max_pool2d": POOL,
    "avg_pool2d": POOL,
    "global_avg_pool2d": {},
    "flatten": {},
    "channel_map": {"index": (3, -1, 10, 0, 0, -1)},
    "subsample": {"stride": (2, 3)},
    "add": {"activation": "relu"},
    "concat": {},
}
STORAGES = [None, IN, OUT, Quant(0.5, 2, 3)]


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("source", STORAGES)
@pytest.mark.parametrize("to", STORAGES)
def test_operator(op: str, source: Quant | None, to: Quant | None, level: str, rng: np.random.Generator) -> None:
    inputs = ("x", "other") if op in ("add", "concat") else ("x",)
    other = Node("activation", "other", ("x",), {"activation": "relu"})
    node = Node(op, "out", inputs, OPERATORS[op])
    stored = (("x", source), ("out", to), ("other", Quant(0.01, 3)))
    graph = build.graph(SHAPE, other, node, quant={name: q for name, q in stored if q is not None})
    x = build.images(rng, 3, SHAPE)
    for threads in (1, 2):
        got = Session(graph, level=level, batch=2, threads=threads).run(x)
        wanted = reference.output(graph, x)
        assert got.shape == wanted.shape
        if op.endswith("avg_pool2d") and source is None:
            step = 1e-5 if to is None else to.scale * 1.01  # sums of floats may round either way
            np.testing.assert_allclose(got, wanted, atol=step)
        else:
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("source", [None, IN])
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


@pytest.mark.parametrize("case", range(len(FLOATS)))
@pytest.mark.parametrize(("weights_integer", "source"), [(False, None), (False, IN), (True, None)])
def test_float_conv_against_pytorch(
    case: int, weights_integer: bool, source: Quant | None, level: str, rng: np.random.Generator
) -> None:
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
