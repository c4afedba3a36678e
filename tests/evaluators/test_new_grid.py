"""A grid that no file knows of: one class, from the configuration to the judged candidate and its price."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.evaluators.fakes import FakeEngine
from tests.evaluators.nets import images, model_of
from tests.kernels import reference

from trimtab.evaluators import CostModel, LatencyTable, lower
from trimtab.evaluators.accuracy import graded, judging_session, timing_candidate
from trimtab.evaluators.price.plan import STEP, StepPlan, step_graph
from trimtab.kernels import Session, stored_bytes
from trimtab.kernels.packing import bytes_of
from trimtab.search.setup.config import make_config
from trimtab.spaces import (
    Calibration,
    LayerDecision,
    LayerFormat,
    Options,
    Policy,
    Space,
    WeightFormat,
    build_space,
    compress,
)
from trimtab.spaces.numbers.formats import FLOAT, INT8
from trimtab.spaces.numbers.grids import GRIDS, FixedGrid
from trimtab.spaces.repairs.database import LayerDatabase

MAGNITUDES = {3: [2, 3, 4, 6], 4: [0, 1, 2, 3, 4, 6, 8]}


class FloatingPoint(FixedGrid):
    """Floating-point numbers of one bit of fraction: 3 bits with one of exponent, 4 bits with two and subnormals."""

    name = "float"
    offered = (3, 4)

    def levels(self, bits: int) -> np.ndarray:
        return np.unique([sign * size for sign in (-1, 1) for size in MAGNITUDES[bits]]).astype(np.int8)


NARROW, WIDE = LayerFormat.of(3, 8, "float"), LayerFormat.of(4, 8, "float")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, FloatingPoint.name, FloatingPoint())
        yield


@pytest.fixture
def space() -> Space:
    bits = (NARROW, WIDE, LayerFormat.of(3, 8), LayerFormat.of(4, 8), INT8, FLOAT)
    return build_space(model_of("resnet8"), images(1), Options(channels=2, bits=bits, patterns=("2:4",)))


def everywhere(space: Space, decision: LayerDecision) -> Policy:
    return replace(space.base(), layers=dict.fromkeys(space.base().layers, decision))


def test_it_is_configured_offered_and_written() -> None:
    config = make_config({"network": "resnet8-tiny", "budgets": {"size": "0.5x"}, "space": {"bits": [[4, 8, "float"]]}})
    assert config.space.bits == (WIDE,)
    assert "- float" in config.to_yaml()


def test_it_is_decided_on(space: Space) -> None:
    knob = next(knob for knob in space.knobs if knob.kind == "bits")
    assert [str(choice) for choice in knob.choices] == ["3/8 float", "3/8", "4/8 float", "4/8", "8/8", "32/32"]
    policy = space.uniform(0.5, WIDE)
    assert space.decode(space.encode(policy)) == Policy.from_json(policy.to_json()) == policy
    assert all(layer["grid"] == "float" for layer in policy.to_json()["layers"].values())
    # Only the wider one has a zero to be sparse by.
    sparse = space.uniform(1.0, WIDE, "2:4").layers.values(), space.uniform(1.0, NARROW, "2:4").layers.values()
    assert [sum(layer.pattern is not None for layer in layers) > 0 for layers in sparse] == [True, False]


@pytest.mark.parametrize("bits", [NARROW, WIDE], ids=str)
def test_candidates_are_on_it_and_run(space: Space, bits: LayerFormat) -> None:
    policy, x = everywhere(space, LayerDecision(bits)), images(64, seed=1).numpy()
    candidate = compress(space, policy, Calibration.of(space, x))
    levels = {sign * size for sign in (-1, 1) for size in MAGNITUDES[bits.weight.bits]}
    assert set(candidate.int8) == {op.name for op in candidate.network.layers}
    for values, _ in candidate.int8.values():
        assert set(np.unique(values).tolist()) <= levels
    graph = lower(candidate)
    few = x[:3]
    np.testing.assert_array_equal(judging_session(candidate).run(few), reference.output(graph, few))
    labels = judging_session(compress(space, space.base(), Calibration.of(space, x))).run(x).argmax(1)
    assert graded(judging_session(candidate).run(x), labels).accuracy > 0.5


def test_its_scale_is_nearly_the_best() -> None:
    row = np.random.default_rng(5).normal(size=200).astype(np.float32)
    levels, scale = WIDE.weight.fit(row[None])

    def error(scale: float) -> float:
        return float(np.square(np.abs(row[:, None] - levels * np.float32(scale)).min(axis=1)).sum())

    assert error(float(scale[0])) <= 1.05 * min(error(s) for s in np.linspace(0.02, 1, 500) * np.abs(row).max() / 8)


@pytest.mark.parametrize("bits", [NARROW, WIDE], ids=str)
def test_its_price_is_its_own(space: Space, bits: LayerFormat, tmp_path: Path) -> None:
    even = LayerFormat.of(bits.weight.bits, 8)
    policy, plain = everywhere(space, LayerDecision(bits)), everywhere(space, LayerDecision(even))
    plan = StepPlan(space)
    layers = {call.tensor: call.step for call in plan.calls(policy) if call.step.kind in ("conv2d", "linear")}
    assert not {step.key for step in layers.values()} & {step.key for step in plan.steps(plain)}
    graphs = {tensor: step_graph(step) for tensor, step in layers.items()}
    for graph in graphs.values():
        timed = next(node for node in graph.nodes if node.name == STEP).weights["weight"]
        assert set(np.unique(np.abs(timed)).tolist()) <= set(MAGNITUDES[bits.weight.bits])
    run = Session(lower(timing_candidate(space, policy))).kernels
    assert {tensor: Session(graph).kernels[STEP] for tensor, graph in graphs.items()} == run

    model = CostModel(space, LatencyTable(FakeEngine(), space, tmp_path))
    stored = stored_bytes(lower(timing_candidate(space, policy)))
    assert stored <= model.coded_size(policy) <= 1.04 * stored
    assert model.coded_size(policy) != model.coded_size(plain)
    rest = sum(4 * 2 * len(op.weight) for op in space.network.layers)  # scales and biases
    weights = sum(bytes_of(op.weight.size, bits.weight.bits) for op in space.network.layers)
    assert model.size(policy) == weights + rest


def test_more_levels_than_the_bits_name_are_paid_for() -> None:
    class Wider(FloatingPoint):
        def levels(self, bits: int) -> np.ndarray:
            return super().levels(4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, FloatingPoint.name, Wider())
        assert WeightFormat(3, "float").stored_bits == 4


def test_its_layers_are_in_the_database(space: Space, tmp_path: Path) -> None:
    database = LayerDatabase(space, images(16, seed=2).numpy(), tmp_path)
    fine, coarse = (sum(database.errors(everywhere(space, LayerDecision(bits))).values()) for bits in (WIDE, NARROW))
    assert 0 < fine < coarse
