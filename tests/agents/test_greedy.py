from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents import Greedy, Random
from trimtab.agents.additive import AdditiveModel
from trimtab.agents.greedy import STEPS, shrink
from trimtab.spaces import Options
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.testing.agents import ToyEstimates, ToyLimits, best, damage, distance_to, toy_space

SPACE = toy_space(Options(channels=4, bits=(LayerFormat.of(4, 8), INT8, FLOAT), ranks=(0.25,)))
LIMITS = ToyLimits(SPACE)
DAMAGE = damage(SPACE)
MODEL = AdditiveModel(SPACE, LIMITS, ToyEstimates(SPACE))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1.5), st.floats(0.2, 1.5), st.sampled_from(STEPS))
def test_it_shrinks_until_the_budgets_are_met_and_no_further(seed: int, size: float, macs: float, step: float) -> None:
    start = np.random.default_rng(seed).integers(0, MODEL.sizes)
    allowed = np.array([size, macs])
    found = shrink(MODEL, start, allowed, step)
    assert (MODEL.totals([found])[0, 1:] <= allowed + 1e-9).all()
    if (MODEL.totals([start])[0, 1:] <= allowed).all():
        np.testing.assert_array_equal(found, start)


def test_a_single_step_is_the_cheapest_that_saves_enough() -> None:
    """Where a step has to save all of the excess, it is the change of least error per saving, tried one by one."""
    start = np.array(SPACE.encode(LIMITS.project(SPACE.base())))
    shares = MODEL.totals([start])[0, 1:]
    allowed = shares * 0.98
    found = shrink(MODEL, start, allowed, 1.0)
    prices = {}
    for knob, size in enumerate(MODEL.sizes):
        for choice in range(size):
            other = start.copy()
            other[knob] = choice
            totals = MODEL.totals([other, start])
            saved = (shares - allowed).sum() - np.maximum(totals[0, 1:] - allowed, 0).sum()
            if (totals[0, 1:] <= allowed).all():
                prices[tuple(other)] = max(totals[0, 0] - totals[1, 0], 1e-12) / saved
    totals = MODEL.totals([found, start])
    price = max(totals[0, 0] - totals[1, 0], 1e-12) / (shares - allowed).sum()
    assert price <= min(prices.values()) * (1 + 1e-9)


def test_impossible_budgets_end_the_shrinking() -> None:
    found = shrink(MODEL, MODEL.sizes - 1, np.array([1e-6, 1e-6]), 0.1)
    assert found.shape == MODEL.sizes.shape


def test_its_first_proposal_beats_random_search() -> None:
    greedy = best(Greedy(SPACE, LIMITS, 0, ToyEstimates(SPACE)), DAMAGE, 1)
    random = np.mean([best(Random(SPACE, LIMITS, seed), DAMAGE, 40) for seed in range(3)])
    assert 1 - greedy < 0.7 * (1 - random)


@pytest.mark.parametrize("seed", [0, 1])
def test_changes_of_the_best_improve_on_the_schedules(seed: int) -> None:
    """Where the estimates are wrong."""
    target = LIMITS.project(SPACE.decode(np.random.default_rng(99).integers(0, MODEL.sizes).tolist()))
    few, many = (
        best(Greedy(SPACE, LIMITS, seed, ToyEstimates(SPACE)), distance_to(SPACE, target), evaluations)
        for evaluations in (2 * len(STEPS), 60)
    )
    assert 1 - many < 0.9 * (1 - few)
