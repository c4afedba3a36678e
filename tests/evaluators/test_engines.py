"""What every engine owes: `TestContract` runs on each of `ENGINES`."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from tests.evaluators.nets import pictures, space_of

from trimtab.errors import BadInput
from trimtab.evaluators import lower
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines import ENGINES, Engine, cpu_name, make_engine
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.price.plan import STEP, StepPlan, step_graph
from trimtab.graph import Graph
from trimtab.kernels import levels
from trimtab.spaces.numbers.formats import LayerFormat
from trimtab.testing.engines import EngineContract

NAME = "residual-b"


def program(integer: bool = False) -> Graph:
    space = space_of(NAME)
    return lower(timing_candidate(space, space.int8() if integer else space.base()))


INSTALLED = [name for name in ENGINES if name != "openvino" or find_spec("openvino")]


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed")
    return make_engine(str(request.param))


class TestContract(EngineContract):
    def test_prices_every_kind_of_step(self, engine: Engine) -> None:
        kinds = {}
        for name in ("concat-flatten", "inverted", "pre-activation", "residual-a", "linear"):
            space = space_of(name)
            for policy in (space.base(), space.int8(), space.uniform(0.5, LayerFormat.of(8, 32), "svd 0.25")):
                kinds.update(
                    {(step.kind, step.out_int8, step.residual): step for step in StepPlan(space).steps(policy)}
                )
        assert len(kinds) > 10
        for step in kinds.values():
            times = engine.layer_seconds(step_graph(step), STEP, 0.0002)
            assert len(times) > 2
            assert min(times) > 0

    def test_signature_tells_threads_apart(self, engine: Engine) -> None:
        other = make_engine(engine.name, 2)
        assert (engine.threads, other.threads) == (1, 2)
        assert "threads=1" in engine.signature
        assert "threads=2" in other.signature
        assert engine.signature.startswith(engine.name)
        assert make_engine(engine.name).signature == engine.signature

    def test_results_do_not_depend_on_threads(self, engine: Engine) -> None:
        x = pictures(4)
        one, two = (make_engine(engine.name, threads).compile(program(True)).run(x) for threads in (1, 2))
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_engines_have_their_registered_names() -> None:
    for name in INSTALLED:
        assert make_engine(name).name == name
    assert len({make_engine(name).signature for name in INSTALLED}) == len(INSTALLED)


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BadInput, match=r"trimtab\[openvino\]"):
        make_engine("openvino")


def small_products() -> Graph:
    """Integer layers of every kind, with weights so small that no kernel saturates two products in 16 bits."""
    graph = program(integer=True)
    nodes = [
        replace(node, weights={**node.weights, "weight": node.weights["weight"] // 2}) if node.weights else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


@pytest.mark.parametrize("name", INSTALLED)
def test_engines_agree_on_integers(name: str) -> None:
    x, graph = pictures(4), small_products()
    expected = make_engine("native").compile(graph).run(x)
    ranges = timing_candidate(space_of(NAME), space_of(NAME).int8()).ranges
    found = make_engine(name).compile(graph, 1, ranges).run(x)
    # Residual operands and results may each be one rounding apart.
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_an_unknown_engine_lists_the_known() -> None:
    with pytest.raises(BadInput, match=r"unknown engine 'onnx-runtime'; did you mean 'onnxruntime'\? .*native"):
        make_engine("onnx-runtime")


def test_the_native_signature_names_the_kernel_level() -> None:
    signatures = {NativeEngine(level=level).signature for level in levels()}
    assert len(signatures) == len(levels())
    assert all(level in NativeEngine(level=level).signature for level in levels())


def test_the_processor_has_a_name() -> None:
    assert cpu_name()
