from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.torch import TorchEngine
from trimtab.graph import Graph, Node, Quant
from trimtab.graph.node import CURVES


def conv(name: str, inputs: tuple[str, ...], channels: int, **attrs: object) -> Node:
    weights = {
        "weight": np.random.default_rng(channels).integers(-60, 61, (channels, channels, 3, 3), dtype=np.int8),
        "weight_scale": np.full(channels, 0.003, np.float32),
        "bias": np.linspace(-0.5, 0.5, channels, dtype=np.float32),
    }
    return Node("conv2d", name, inputs, {"padding": (1, 1, 1, 1), **attrs}, weights)


def agrees_with_native(graph: Graph, images: np.ndarray) -> None:
    expected = make_engine("native").compile(graph).run(images)
    found = TorchEngine().compile(graph).run(images)
    assert np.ptp(expected) > 0
    step = max((quant.scale for name, quant in graph.quant.items() if name != graph.input), default=1e-3)
    np.testing.assert_allclose(found, expected, atol=1.01 * step, rtol=1e-5)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 8, 12, 12)).astype(np.float32)


def test_a_residual_that_is_read_again_keeps_its_value(images: np.ndarray) -> None:
    nodes = (
        conv("a", ("x",), 8),
        conv("b", ("a", "a"), 8, activation="relu"),
        Node("concat", "y", ("a", "b")),
    )
    agrees_with_native(Graph("x", (8, 12, 12), nodes, "y", {"x": Quant(0.02, 128), "a": Quant(0.05, 128)}), images)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("stored", [False, True])
def test_sums_of_every_storage(images: np.ndarray, activation: str, stored: bool) -> None:
    nodes = (conv("y", ("x", "x"), 8, activation=activation),)
    quant = {"x": Quant(0.02, 128), **({"y": Quant(0.05, 100)} if stored else {})}
    agrees_with_native(Graph("x", (8, 12, 12), nodes, "y", quant), images)


def test_pads_unevenly_and_pools_integers(images: np.ndarray) -> None:
    nodes = (
        conv("a", ("x",), 8, padding=(0, 1, 2, 0), stride=(2, 1)),
        Node("max_pool2d", "y", ("a",), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}),
    )
    quant = {"x": Quant(0.02, 128), "a": Quant(0.05, 128), "y": Quant(0.05, 128)}
    agrees_with_native(Graph("x", (8, 12, 12), nodes, "y", quant), images)


WINDOW = {"kernel": (3, 3), "stride": (2, 1), "padding": (1, 1, 1, 1)}
OPERATORS: dict[str, dict[str, Any]] = {
    "activation": {"activation": "hard_swish"},
    "add": {"activation": "relu6"},
    "mul": {},
    "concat": {},
    "max_pool2d": WINDOW,
    "avg_pool2d": {**WINDOW, "count_include_pad": False},
    "global_avg_pool2d": {},
    "adaptive_avg_pool2d": {"size": (5, 7)},
    "flatten": {},
    "channel_map": {"index": (3, -1, 7, 0, 0, -1)},
    "subsample": {"stride": (2, 3)},
    "layer_norm": {"epsilon": 1e-5},
    "tokens": {},
    "prelu": {},
    "channel_affine": {},
    "group_norm": {"groups": 2},
    "upsample": {"size": (24, 48)},
    "upsample, any size": {"size": (20, 5)},
    "upsample bilinearly": {"size": (24, 5), "mode": "bilinear"},
    "depth_to_space": {"block": (1, 4), "crop": (1, 2), "size": (10, 40)},
}


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("stored", [False, True])
def test_every_operator(images: np.ndarray, op: str, stored: bool) -> None:
    rng = np.random.default_rng(2)
    weights = {
        "layer_norm": {"weight": rng.normal(size=8), "bias": rng.normal(size=8)},
        "group_norm": {"weight": rng.normal(size=8), "bias": rng.normal(size=8)},
        "prelu": {"slope": rng.normal(size=8)},
        "channel_affine": {"weight": rng.normal(size=8), "bias": rng.normal(size=8)},
        "tokens": {"prefix": rng.normal(size=(2, 8)), "position": rng.normal(size=(146, 8))},
    }.get(op, {})
    inputs = ("x", "other") if op in ("add", "mul", "concat") else ("x",)
    other = Node("activation", "other", ("x",), {"activation": "relu"})
    kind = op.replace(",", " ").split()[0]
    node = Node(kind, "y", inputs, OPERATORS[op], {name: w.astype(np.float32) for name, w in weights.items()})
    quant = {"x": Quant(0.03, 100), "y": Quant(0.03, 90)} if stored else {}
    agrees_with_native(Graph("x", (8, 12, 12), (other, node), "y", quant), images)


def test_attention() -> None:
    x = np.random.default_rng(3).normal(size=(2, 12, 9, 1)).astype(np.float32)
    node = Node("attention", "y", ("x", "x", "x"), {"heads": 3, "scale": 0.5})
    agrees_with_native(Graph("x", (12, 9, 1), (node,), "y"), x)


@pytest.mark.parametrize("activation", CURVES)
@pytest.mark.parametrize("residual", [False, True])
def test_integer_layers_with_every_curve(images: np.ndarray, activation: str, residual: bool) -> None:
    nodes = (conv("y", ("x", "x") if residual else ("x",), 8, activation=activation),)
    agrees_with_native(Graph("x", (8, 12, 12), nodes, "y", {"x": Quant(0.02, 128), "y": Quant(0.05, 60)}), images)


def test_narrow_results_stop_at_their_top(images: np.ndarray) -> None:
    quant = {"x": Quant(0.02, 128), "y": Quant(0.2, 3, bits=3)}
    agrees_with_native(Graph("x", (8, 12, 12), (conv("y", ("x",), 8, activation="relu"),), "y", quant), images)


def test_leaves_the_number_of_threads_alone(images: np.ndarray) -> None:
    before = torch.get_num_threads()
    session = TorchEngine(2).compile(Graph("x", (8, 12, 12), (conv("y", ("x",), 8),), "y"))
    session.run(images)
    session.time(images[:, None], 0.0)
    assert torch.get_num_threads() == before


def test_bf16_layers_read_rounded_inputs(images: np.ndarray) -> None:
    weight = np.random.default_rng(4).integers(-8, 9, (5, 8, 3, 3)).astype(np.float32)
    node = Node("conv2d", "y", ("x",), {"precision": "bf16"}, {"weight": weight})
    agrees_with_native(Graph("x", (8, 12, 12), (node,), "y"), images)
    agrees_with_native(Graph("x", (8, 12, 12), (node,), "y", {"x": Quant(0.03, 100)}), images)


def test_threads_have_to_be_positive() -> None:
    with pytest.raises(BadInput, match="at least one thread"):
        TorchEngine(0)
