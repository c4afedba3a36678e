from __future__ import annotations

import numpy as np
import pytest

from trimtab.agents import Haq
from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.spaces import Options
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.testing.agents import ToyLimits, ToyScore, toy_space

SPACE = toy_space()
LIMITS = ToyLimits(SPACE, size=0.3, macs=1.0)
BITS = [i for i, knob in enumerate(SPACE.knobs) if knob.kind == "bits"]


def test_it_leaves_channels_and_forms_as_they_are() -> None:
    base = SPACE.base()
    for policy in Haq(SPACE, LIMITS, 0).ask(20):
        assert policy.channels == base.channels
        assert all(layer.rank is None for layer in policy.layers.values())


def test_bits_are_narrowed_from_the_last_layer_to_the_first_and_around_until_the_budget_is_met() -> None:
    vector = np.array(SPACE.encode(SPACE.base()))
    expected = vector.copy()
    order = list(reversed(BITS))
    turn = 0
    while not LIMITS.feasible(SPACE.decode(expected.tolist())):
        knob = order[turn % len(order)]
        expected[knob] = max(expected[knob] - 1, 0)
        turn += 1
    assert Haq(SPACE, LIMITS, 0)._narrowed([1.0] * len(BITS)) == SPACE.decode(expected.tolist())


def test_what_meets_the_budget_is_not_narrowed() -> None:
    levels = [0.3] * len(BITS)  # the second of four
    assert Haq(SPACE, LIMITS, 0)._narrowed(levels) == SPACE.uniform(1.0, LayerFormat.of(4, 8))


def test_a_policy_is_replayed_by_its_bits() -> None:
    agent = Haq(SPACE, LIMITS, 0)
    episode = agent._replay(SPACE.uniform(1.0, LayerFormat.of(4, 8)))
    assert episode is not None
    states, actions = episode
    np.testing.assert_allclose(actions, np.full((len(BITS), 1), 0.375))
    np.testing.assert_allclose(states[:, -1], [1.0] + [0.375] * len(BITS))
    assert states.min() >= 0
    assert states.max() <= 1


def test_pruned_policies_are_not_its_episodes() -> None:
    agent = Haq(SPACE, LIMITS, 0)
    agent.tell(SPACE.uniform(0.5, INT8), ToyScore(0.9))
    assert agent._told == 0


def test_budgets_that_bits_alone_cannot_meet_are_told_apart() -> None:
    agent = Haq(SPACE, ToyLimits(SPACE, size=0.3, macs=0.5), 0)
    with pytest.raises(InfeasibleBudget, match=r"bits alone cannot meet .* macs is 2 times its budget"):
        agent.ask(1)


def test_a_space_without_bits_is_refused() -> None:
    space = toy_space(Options(bits=(INT8,)))
    with pytest.raises(BadInput, match="decides bits only"):
        Haq(space, ToyLimits(space), 0)
