"""The contract of engines, on a small residual network.

An engine of one's own keeps it where this passes:

    from trimtab.testing.engines import EngineContract

    class TestMine(EngineContract):
        @pytest.fixture
        def engine(self):
            return MyEngine(threads=1)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.evaluators import lower
from trimtab.evaluators.accuracy import timing_candidate, torch_logits
from trimtab.evaluators.engines import Engine, FileEngine
from trimtab.evaluators.engines.base import Images
from trimtab.evaluators.price.plan import STEP, StepPlan, step_graph
from trimtab.graph import Graph
from trimtab.spaces import Space, build_space
from trimtab.spaces.zoo import CifarResNet

__all__ = ["EngineContract", "network", "pictures", "program", "space"]


@cache
def network() -> CifarResNet:
    """Return the network, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CifarResNet(8, width=8).eval()


@cache
def space() -> Space:
    """Return its space."""
    return build_space(network(), torch.zeros(1, 3, 16, 16))


@cache
def program(integer: bool = False) -> Graph:
    """Return its program, in float32 or with every layer at 8/8 bits."""
    return lower(timing_candidate(space(), space().int8() if integer else space().base()))


def pictures(count: int) -> Images:
    """Return random images, (count, 3, 16, 16)."""
    return np.random.default_rng(5).normal(size=(count, 3, 16, 16)).astype(np.float32)


class EngineContract:
    """The promises of the engine that the fixture `engine` returns."""

    def test_computes_the_network(self, engine: Engine) -> None:
        x = pictures(3)
        with torch.no_grad():
            expected = network()(torch.from_numpy(x)).numpy()
        found = engine.compile(program()).run(x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    def test_computes_integers_as_pytorch_simulates_them(self, engine: Engine) -> None:
        x = pictures(8)
        candidate = timing_candidate(space(), space().int8())
        expected = torch_logits(candidate, x)
        found = engine.compile(program(True), 1, candidate.ranges).run(x)
        assert np.abs(found - expected).mean() < 0.1 * np.abs(expected).mean()

    @pytest.mark.parametrize("integer", [False, True])
    def test_runs_any_number_of_images(self, engine: Engine, integer: bool) -> None:
        session, x = engine.compile(program(integer), 4), pictures(9)
        whole = session.run(x)
        assert whole.shape == (9, 10)
        assert whole.dtype == np.float32
        for count in (1, 3, 4, 5):
            np.testing.assert_allclose(session.run(x[:count]), whole[:count], rtol=1e-4, atol=1e-4)

    def test_runs_images_in_any_memory_order(self, engine: Engine) -> None:
        session, x = engine.compile(program()), pictures(2)
        strided = np.asfortranarray(x)
        np.testing.assert_array_equal(session.run(strided), session.run(x))

    def test_does_not_change_its_input(self, engine: Engine) -> None:
        x = pictures(2)
        kept = x.copy()
        x.flags.writeable = False
        engine.compile(program(True)).run(x)
        np.testing.assert_array_equal(x, kept)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_times_runs(self, engine: Engine, batch: int) -> None:
        session = engine.compile(program(), batch)
        inputs = pictures(2 * batch).reshape(2, batch, 3, 16, 16)
        piece = session.time(inputs, 0.01)
        assert piece.runs > 0
        assert piece.seconds >= 0.01
        assert piece.involuntary_switches >= 0
        assert session.time(inputs, 0.0).runs > 0

    def test_prices_every_step(self, engine: Engine) -> None:
        for policy in (space().base(), space().int8()):
            for step in StepPlan(space()).steps(policy):
                times = engine.layer_seconds(step_graph(step), STEP, 0.0002)
                assert len(times) > 2
                assert all(seconds > 0 for seconds in times)
                assert isinstance(engine.layer_kernel(step_graph(step), STEP), str)

    def test_is_told_from_others_by_its_signature(self, engine: Engine) -> None:
        assert str(engine.threads) in engine.signature

    @pytest.mark.parametrize("integer", [False, True])
    def test_runs_what_it_saved(self, engine: Engine, integer: bool, tmp_path: Path) -> None:
        if not isinstance(engine, FileEngine):
            pytest.skip(f"{engine.name} runs no files")
        path, x = tmp_path / f"model{engine.suffix}", pictures(4)
        engine.save(program(integer), path)
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
        np.testing.assert_array_equal(engine.open(path).run(x), engine.compile(program(integer)).run(x))
