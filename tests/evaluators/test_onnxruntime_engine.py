from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.loop import LAYER_SLICES
from trimtab.evaluators.engines.onnxruntime import RUN_BATCH, OnnxRuntimeEngine
from trimtab.graph import Graph, Node, Quant

SHAPE = (4, 8, 8)


def program(integer: bool = False) -> Graph:
    rng = np.random.default_rng(0)
    weights = {"weight": rng.normal(size=(4, 4, 3, 3)).astype(np.float32)}
    if integer:
        weights = {
            "weight": rng.integers(-127, 128, (4, 4, 3, 3), dtype=np.int8),
            "weight_scale": np.full(4, 0.002, np.float32),
        }
    nodes = (
        Node("conv2d", "conv", ("x",), {"padding": (1, 1, 1, 1)}, weights),
        Node("add", "sum", ("conv", "x"), {"activation": "relu"}),
    )
    return Graph("x", SHAPE, nodes, "sum", {"x": Quant(0.02, 128)} if integer else {})


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2 * RUN_BATCH + 3, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_any_number_of_images(threads, images):
    session = OnnxRuntimeEngine(threads).compile(program())
    whole = session.run(images)
    assert whole.shape == images.shape
    assert whole.dtype == np.float32
    np.testing.assert_allclose(session.run(images[70:71]), whole[70:71], rtol=1e-5, atol=1e-5)
    assert session.run(images[:0]).shape == (0, *SHAPE)


@pytest.mark.parametrize("batch", [1, 3])
def test_times_for_about_the_given_seconds(batch, images):
    session = OnnxRuntimeEngine().compile(program(), batch)
    inputs = images[: 4 * batch].reshape(4, batch, *SHAPE)
    piece = session.time(inputs, 0.02)
    assert piece.runs > 1
    assert piece.seconds >= 0.02
    assert piece.involuntary_switches >= 0
    assert session.time(inputs, 0.0).runs == 1


def test_timing_leaves_results_alone(images):
    session = OnnxRuntimeEngine().compile(program())
    before = session.run(images[:4])
    kept = before.copy()
    session.time(images[:4, None], 0.005)
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(session.run(images[:4]), kept)


def test_ranges_round_the_operand_of_an_addition(images):
    plain = OnnxRuntimeEngine().compile(program(True)).run(images)
    rounded = OnnxRuntimeEngine().compile(program(True), 1, {"conv": (-4.0, 4.0)}).run(images)
    step = 8 / 255
    assert 0 < np.abs(plain - rounded).max() < step


def test_exact_by_default():
    # The largest products there are, in pairs: kernels that add two of them in 16 bits saturate.
    weights = {"weight": np.full((16, 16), 127, np.int8), "weight_scale": np.ones(16, np.float32)}
    graph = Graph("x", (16,), (Node("linear", "y", ("x",), {}, weights),), "y", {"x": Quant(1.0, 0)})
    x = np.full((1, 16), 255, np.float32)
    assert (OnnxRuntimeEngine().compile(graph).run(x) == 16 * 127 * 255).all()


def test_prices_a_layer_of_a_small_program():
    times = OnnxRuntimeEngine().layer_seconds(program(), "conv", 0.002)
    assert len(times) == LAYER_SLICES
    assert min(times) > 0
    with pytest.raises(BadInput, match="no layer 'other'"):
        OnnxRuntimeEngine().layer_seconds(program(), "other", 0.002)


def test_signature_says_what_latency_depends_on():
    engine = make_engine("onnxruntime", 2)
    assert engine.signature == f"onnxruntime {onnxruntime.__version__} threads=2"
    assert (engine.name, engine.threads) == ("onnxruntime", 2)
    assert OnnxRuntimeEngine(2, exact=False).signature != engine.signature


def test_threads_have_to_be_positive():
    with pytest.raises(BadInput, match="at least one thread"):
        OnnxRuntimeEngine(0)
