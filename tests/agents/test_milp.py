from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tests.agents.toys import ToyEstimates, ToyLimits, toy_space

from trimtab.agents.additive import AdditiveModel, Solver
from trimtab.agents.milp import Milp, optimise
from trimtab.errors import InfeasibleBudget
from trimtab.spaces import Options

TINY = toy_space(Options(channels=3, bits=((4, 8), (8, 8)), ranks=(), fixed=("conv1", "linear")))
EVERY = np.array(list(product(*(range(len(knob.choices)) for knob in TINY.knobs))))


def model(size: float, macs: float) -> AdditiveModel:
    return AdditiveModel(TINY, ToyLimits(TINY, size, macs), ToyEstimates(TINY))


def test_the_tiny_space_can_be_enumerated() -> None:
    assert 1000 < len(EVERY) < 100_000


@pytest.mark.parametrize(("size", "macs"), [(0.3, 0.6), (0.2, 0.5), (0.25, 1.0), (1.0, 0.4)])
def test_the_optimum_is_that_of_all_policies(size: float, macs: float) -> None:
    solver = Solver(model(size, macs))
    totals = solver.model.totals(EVERY)
    least = totals[(totals[:, 1:] <= 1).all(axis=1), 0].min()
    found = optimise(solver)
    assert found.violation == 0
    assert found.error == pytest.approx(least, rel=1e-4)
    assert found.bound == pytest.approx(least, rel=1e-3)
    np.testing.assert_allclose(solver.model.totals([found.vector])[0, 0], found.error)


@pytest.mark.parametrize(("size", "macs"), [(0.02, 0.6), (0.15, 0.05), (0.01, 0.01)])
def test_the_least_violation_is_that_of_all_policies(size: float, macs: float) -> None:
    solver = Solver(model(size, macs))
    least = (solver.model.totals(EVERY)[:, 1:] - 1).max(axis=1).min()
    assert least > 0
    found = optimise(solver)
    assert found.violation == pytest.approx(least, rel=1e-4)
    assert found.bound == pytest.approx(least, rel=1e-3)


def test_impossible_budgets_are_named_with_the_least_violation() -> None:
    agent = Milp(TINY, ToyLimits(TINY, 0.02, 0.6), 0, ToyEstimates(TINY))
    with pytest.raises(InfeasibleBudget, match="size"):
        agent.ask(1)
