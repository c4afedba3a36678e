from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.torch import TorchEngine
from trimtab.kernels.graph import Graph, Node, Quant


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


def test_leaves_the_number_of_threads_alone(images: np.ndarray) -> None:
    before = torch.get_num_threads()
    session = TorchEngine(2).compile(Graph("x", (8, 12, 12), (conv("y", ("x",), 8),), "y"))
    session.run(images)
    session.time(images[:, None], 0.0)
    assert torch.get_num_threads() == before


def test_threads_have_to_be_positive() -> None:
    with pytest.raises(BadInput, match="at least one thread"):
        TorchEngine(0)
