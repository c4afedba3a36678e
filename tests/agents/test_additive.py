from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents.additive import AdditiveModel, Planner, Solver
from trimtab.agents.milp import optimise
from trimtab.spaces import Options, Space
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.testing.agents import ToyEstimates, ToyLimits, toy_space

SPACE = toy_space(Options(channels=4, bits=(LayerFormat.of(4, 8), INT8, FLOAT), ranks=(0.25,)))
ESTIMATES = ToyEstimates(SPACE)
MODEL = AdditiveModel(SPACE, ToyLimits(SPACE), ESTIMATES)
SOLVER = Solver(MODEL)


def vectors(space: Space, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, len(knob.choices), count) for knob in space.knobs], axis=1)


def directly(space: Space, limits: ToyLimits, vector: np.ndarray) -> list[float]:
    """Error and shares of a vector, asked of those who know."""
    policy = space.decode(vector.tolist())
    errors = ToyEstimates(space).errors(policy)
    return [sum(errors.values()), *(violation + 1 for violation in limits.violations(policy).values())]


def test_totals_are_what_estimates_and_limits_say() -> None:
    for vector in vectors(SPACE, 60):
        np.testing.assert_allclose(MODEL.totals([vector])[0], directly(SPACE, ToyLimits(SPACE), vector))


def test_between_coarse_widths_the_roots_of_errors_are_interpolated() -> None:
    """Against one policy for each corner of the widths around, layer by layer; shares are exact everywhere."""
    space = toy_space(Options(channels=8, bits=(INT8, FLOAT), ranks=()))
    estimates, limits = ToyEstimates(space), ToyLimits(space)
    model = AdditiveModel(space, limits, estimates)
    counts = {i: [int(str(c)) for c in knob.choices] for i, knob in enumerate(space.knobs) if knob.kind == "channels"}
    assert {len(each) for each in counts.values()} == {7}
    known = (0, 2, 5, 6)

    def corners(knob: int, choice: int) -> list[tuple[int, float]]:
        low = max(each for each in known if each <= choice)
        if low == choice:
            return [(choice, 1.0)]
        high, widths = min(each for each in known if each > choice), counts[knob]
        share = (widths[choice] - widths[low]) / (widths[high] - widths[low])
        return [(low, 1 - share), (high, share)]

    for vector in vectors(space, 12):
        expected = 0.0
        for layer, scope in space.scopes.items():
            shared = [knob for knob in scope if knob in counts]
            root = 0.0
            for corner in product(*(corners(knob, vector[knob]) for knob in shared)):
                moved = vector.copy()
                moved[shared] = [choice for choice, _ in corner]
                error = estimates.errors(space.decode(moved.tolist()))[layer]
                root += math.prod(share for _, share in corner) * math.sqrt(error)
            expected += root**2
        error, *shares = model.totals([vector])[0]
        assert error == pytest.approx(expected)
        np.testing.assert_allclose(shares, directly(space, limits, vector)[1:])


def test_few_policies_fill_the_tables() -> None:
    class Counting(ToyLimits):
        asked = 0

        def shares(self, policy: object) -> dict[str, dict[str, float]]:
            self.asked += 1
            return super().shares(policy)  # type: ignore[arg-type]

    limits = Counting(SPACE)
    model = AdditiveModel(SPACE, limits, ESTIMATES)
    assert limits.asked <= 1.1 * max(factor.size for factor in model.factors)


def test_neighbours_differ_in_one_knob_and_none_is_missing() -> None:
    vector = vectors(SPACE, 1)[0]
    found = MODEL.neighbours(vector)
    assert ((found != vector).sum(axis=1) == 1).all()
    assert len({tuple(row) for row in found}) == len(found) == int((MODEL.sizes - 1).sum())
    assert (found >= 0).all()
    assert (found < MODEL.sizes).all()


@pytest.mark.parametrize(("size", "macs"), [(0.3, 0.6), (0.1, 0.3), (0.6, 0.2), (0.05, 0.9)])
def test_a_solution_is_feasible_and_near_the_optimum(size: float, macs: float) -> None:
    solver = Solver(AdditiveModel(SPACE, ToyLimits(SPACE, size, macs), ESTIMATES))
    solution = solver.solve()
    assert solution.feasible
    np.testing.assert_allclose(
        directly(SPACE, ToyLimits(SPACE, size, macs), solution.vector), [solution.error, *solution.shares]
    )
    optimum = optimise(solver).error
    assert solution.bound <= optimum + 1e-9
    assert optimum - 1e-9 <= solution.error <= 1.05 * optimum


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1.2), st.floats(0.2, 1.2))
def test_any_weights_and_budgets_give_what_they_say(seed: int, size: float, macs: float) -> None:
    weights = np.random.default_rng(seed).exponential(size=len(SPACE.scopes))
    weighted = [np.full(factor.size, weights[i]) for i, factor in enumerate(MODEL.factors)]
    solution = SOLVER.solve(np.concatenate(weighted) * MODEL.values[:, 0], np.array([size, macs]))
    assert solution.feasible == (solution.shares <= [size, macs]).all()
    if solution.feasible:
        assert solution.bound <= solution.error + 1e-9
        errors = ESTIMATES.errors(SPACE.decode(solution.vector.tolist()))
        assert solution.error == pytest.approx(sum(w * errors[layer] for w, layer in zip(weights, SPACE.scopes)))  # noqa: B905


def test_every_solution_of_the_multipliers_is_a_bound() -> None:
    """No feasible policy among many is below it."""
    bound = SOLVER.solve().bound
    totals = MODEL.totals(vectors(SPACE, 60_000))
    fits = (totals[:, 1:] <= 1).all(axis=1)
    assert fits.sum() > 100
    assert totals[fits, 0].min() >= bound


def test_where_nothing_is_feasible_the_solution_says_so() -> None:
    assert not SOLVER.solve(allowed=np.array([1e-4, 1.0])).feasible


def test_limits_that_no_sum_describes_are_met_all_the_same() -> None:
    class Nearly(ToyLimits):
        """Sums that are off by what layers do together."""

        def costs(self, policy: object) -> dict[str, float]:
            costs = super().costs(policy)  # type: ignore[arg-type]
            return {name: cost * (1.1 if hasattr(self, "budgets") else 1.0) for name, cost in costs.items()}

    limits = Nearly(SPACE)
    planner = Planner(SPACE, limits, ESTIMATES)
    for seed in range(5):
        policy, feasible = planner.policy(planner.model.values[:, 0] * np.random.default_rng(seed).exponential())
        assert feasible
        assert limits.feasible(policy)
        assert max(limits.violations(policy).values()) > -0.1


def test_tables_that_would_be_too_large_become_increments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact for what changes a single group of a layer, and still solvable."""
    monkeypatch.setattr("trimtab.agents.additive.LARGEST", 50)
    model = AdditiveModel(SPACE, ToyLimits(SPACE), ESTIMATES)
    assert max(factor.size for factor in model.factors) <= 50
    assert len(model.factors) > len(SPACE.scopes)
    home = np.array(SPACE.encode(SPACE.uniform(0.5, INT8)))
    for vector in model.neighbours(home):
        np.testing.assert_allclose(model.totals([vector])[0], directly(SPACE, ToyLimits(SPACE), vector))
    assert Planner(SPACE, ToyLimits(SPACE), ESTIMATES).policy(model.values[:, 0])[1]


@pytest.mark.parametrize(
    "options", [Options(channels=1), Options(channels=4, bits=(INT8,), ranks=()), Options(channels=2, ranks=())]
)
def test_spaces_without_some_kind_of_knob(options: Options) -> None:
    space = toy_space(options)
    limits = ToyLimits(space, 0.5, 0.9)
    model = AdditiveModel(space, limits, ToyEstimates(space))
    for vector in vectors(space, 5):
        np.testing.assert_allclose(model.totals([vector])[0], directly(space, limits, vector))
    assert Solver(model).solve().feasible
