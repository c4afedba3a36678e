from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from trimtab.agents import Random
from trimtab.agents.additive import AdditiveModel, Solver
from trimtab.agents.milp import Milp, optimise
from trimtab.errors import InfeasibleBudget
from trimtab.spaces import LayerDecision, Options, Policy
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.testing.agents import ToyEstimates, ToyLimits, ToyScore, damage, toy_space

TINY = toy_space(Options(channels=3, bits=(LayerFormat.of(4, 8), INT8), ranks=(), fixed=("conv1", "linear")))
SPACE = toy_space(Options(channels=4, bits=(LayerFormat.of(4, 8), INT8, FLOAT), ranks=(0.25,)))
LIMITS = ToyLimits(SPACE)
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


def test_layers_without_any_choice_are_left_alone() -> None:
    """Their tables have one entry, which no knob reaches."""
    space = toy_space(
        Options(channels=1, bits=(LayerFormat.of(4, 8), INT8), fixed=("conv1", "layer1.0.conv1", "linear"))
    )
    assert () in space.scopes.values()
    limits = ToyLimits(space, 0.25, 1.0)
    agent = Milp(space, limits, 0, ToyEstimates(space))
    for _ in range(8):
        (policy,) = agent.ask(1)
        assert policy.layers["conv1"] == LayerDecision()
        agent.tell(policy, ToyScore(damage(space)(policy), limits.violations(policy)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_optima_of_the_parts_are_among_the_first_proposals(seed: int) -> None:
    """Against every policy of a part: of those that meet the limits, none has a smaller error by the estimates."""
    limits, estimates = ToyLimits(TINY, 0.2, 1.0), ToyEstimates(TINY)
    first = [tuple(TINY.encode(policy)) for policy in Milp(TINY, limits, seed, estimates).ask(5)]
    totals = AdditiveModel(TINY, limits, estimates).totals(EVERY)
    met = 0
    for kind in ("channels", "bits"):
        for rest in (TINY.uniform(), TINY.uniform(bits=INT8)):
            home = np.array(TINY.encode(rest))
            fixed = np.array([knob.kind != kind for knob in TINY.knobs])
            within = (EVERY[:, fixed] == home[fixed]).all(axis=1) & (totals[:, 1:] <= 1).all(axis=1)
            if within.any():
                least = totals[within, 0].min()
                found = [totals[within & (vector == EVERY).all(axis=1), 0] for vector in first]
                assert min(float(each[0]) for each in found if len(each)) == pytest.approx(least, rel=0.02), kind
                met += 1
                break
    assert met == 2


def test_where_estimates_are_wrong_it_learns_from_what_is_told() -> None:
    """Every layer and group weighs another amount than the estimates say, and losses do not even add up."""
    estimates = ToyEstimates(SPACE)
    factors = np.random.default_rng(5).exponential(size=len(SPACE.scopes)) ** 2

    def accuracy(policy: Policy) -> float:
        loss = float(factors @ list(estimates.errors(policy).values()))
        return float(np.exp(-5 * loss - 20 * loss**2))

    def told(evaluations: int) -> list[float]:
        agent = Milp(SPACE, LIMITS, 0, estimates)
        found = []
        for _ in range(evaluations):
            (policy,) = agent.ask(1)
            found.append(accuracy(policy))
            agent.tell(policy, ToyScore(found[-1], LIMITS.violations(policy)))
        return found

    found = told(25)
    assert 1 - max(found) < 0.9 * (1 - found[0])
    random = Random(SPACE, LIMITS, 0).ask(100)
    assert max(found) > max(map(accuracy, random))


def test_a_policy_outside_the_space_is_known_but_not_learned_from() -> None:
    agent = Milp(SPACE, LIMITS, 0, ToyEstimates(SPACE))
    agent.tell(SPACE.int8(), ToyScore(0.9))
    odd = {**SPACE.base().layers, "linear": LayerDecision(LayerFormat.of(3, 8))}
    agent.tell(Policy(SPACE.fingerprint, SPACE.base().channels, odd), ToyScore(0.99))
    assert len(agent.ask(3)) == 3
