from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trimtab.agents.decision_process import DecisionProcess, Episode, choice_of, level_of
from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.spaces import Options, Policy, build_space
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.testing.agents import ToyLimits, toy_space

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
WALK = DecisionProcess(SPACE, LIMITS)


def roll(process: DecisionProcess, seed: int) -> tuple[Policy, np.ndarray, np.ndarray]:
    """A random episode: its policy, its states (steps + 1, features) and the actions executed (steps, slots)."""
    rng = np.random.default_rng(seed)
    episode = Episode(process)
    states, actions = [episode.state()], []
    while episode.step is not None:
        actions.append(episode.act(rng.random(process.slots).tolist()))
        states.append(episode.state())
    return episode.policy(), np.stack(states), np.stack(actions)


@pytest.mark.parametrize("choices", range(1, 12))
def test_a_level_stands_for_the_choice_that_it_was_made_of(choices: int) -> None:
    assert [choice_of(level_of(choice, choices), choices) for choice in range(choices)] == list(range(choices))
    assert choice_of(0.0, choices) == 0
    assert choice_of(1.0, choices) == choices - 1


def test_equal_parts_of_the_interval_are_haqs_equation_3() -> None:
    """Round(b_min - 0.5 + a * (b_max - b_min + 1)) for b_min = 2, b_max = 8."""
    for action in np.linspace(0.001, 0.999, 97):
        assert 2 + choice_of(action, 7) == round(2 - 0.5 + action * (8 - 2 + 1))


def test_every_knob_is_decided_once_at_the_first_layer_that_it_concerns() -> None:
    decided = [knob for step in WALK.steps for knob in step.knobs]
    assert sorted(decided) == list(range(len(SPACE.knobs)))
    scopes = list(SPACE.scopes.values())
    for step in WALK.steps:
        for knob in step.knobs:
            assert step.layer == min(i for i, scope in enumerate(scopes) if knob in scope)
        assert len(set(step.slots)) == len(step.knobs)


def test_an_action_of_a_half_is_what_is_reserved_and_actions_are_read_back_as_choices() -> None:
    for knob, size in enumerate(WALK.sizes):
        assert WALK.choice(knob, 0.5) == WALK.reserve[knob]
        assert [WALK.choice(knob, WALK.action(knob, choice)) for choice in range(size)] == list(range(size))


def test_what_is_reserved_treats_all_layers_alike_and_is_the_least_compressed_that_fits() -> None:
    """By brute force over the dense policies with one keep level and one choice of bits for all layers of the toy.

    A policy is the less compressed, the higher the lowest of its knobs' levels, then their sum; a choice's level is the
    middle of its part of [0, 1].
    """
    sizes = {kind: [len(knob.choices) for knob in SPACE.knobs if knob.kind == kind] for kind in ("channels", "bits")}
    ranked = []
    for keep in range(max(sizes["channels"])):
        for width in range(max(sizes["bits"])):
            levels = {"channels": (keep + 0.5) / max(sizes["channels"]), "bits": (width + 0.5) / max(sizes["bits"])}
            vector = []
            for knob in SPACE.knobs:
                count = len(knob.choices)
                vector.append(min(int(levels.get(knob.kind, 1.0) * count), count - 1))
            if LIMITS.feasible(SPACE.decode(vector)):
                reached = [(c + 0.5) / len(knob.choices) for c, knob in zip(vector, SPACE.knobs, strict=True)]
                ranked.append((min(reached), sum(reached), vector))
    assert len(ranked) > 1
    best = max(ranked)
    assert [rank[:2] for rank in ranked].count(best[:2]) == 1
    assert SPACE.decode(WALK.reserve) == SPACE.decode(best[2])


@given(st.data())
def test_whatever_the_actions_every_episode_ends_within_the_budgets(data: st.DataObject) -> None:
    episode = Episode(WALK)
    while episode.step is not None:
        episode.act([data.draw(st.floats(0, 1)) for _ in range(WALK.slots)])
        assert LIMITS.feasible(episode.policy())
    assert LIMITS.project(episode.policy()) == episode.policy()


def test_what_fits_is_decided_as_wanted() -> None:
    process = DecisionProcess(SPACE, ToyLimits(SPACE, 1.01, 1.01))
    episode = Episode(process)
    while episode.step is not None:
        episode.act([1.0] * process.slots)
    assert episode.policy() == SPACE.base()


def test_the_nearest_choice_that_leaves_enough_for_the_rest_is_taken() -> None:
    """By brute force: the widest first group whose policy, everything else as it is reserved, meets the budgets."""
    episode = Episode(WALK)
    assert episode.step is not None
    knob = episode.step.knobs[0]
    reserve = list(WALK.reserve)
    fitting = [
        choice
        for choice in range(WALK.sizes[knob])
        if LIMITS.feasible(SPACE.decode([*reserve[:knob], choice, *reserve[knob + 1 :]]))
    ]
    episode.act([1.0] * WALK.slots)
    assert episode.vector[knob] == max(fitting)


@pytest.mark.parametrize("seed", range(8))
def test_a_policy_is_replayed_as_the_episode_that_made_it(seed: int) -> None:
    policy, states, actions = roll(WALK, seed)
    replayed, executed = WALK.replay(policy)
    np.testing.assert_array_equal(replayed, states)
    np.testing.assert_array_equal(executed, actions)


@pytest.mark.parametrize(
    "policy", [SPACE.base(), SPACE.uniform(0.5, INT8), SPACE.uniform(0.25, LayerFormat.of(2, 8), "svd 0.5")]
)
def test_states_lie_between_0_and_1_whatever_the_policy(policy: Policy) -> None:
    states, actions = WALK.replay(policy)
    assert states.shape == (len(WALK.steps) + 1, len(WALK.features))
    assert actions.shape == (len(WALK.steps), WALK.slots)
    for values in (states, actions):
        assert values.min() >= 0
        assert values.max() <= 1


def test_executed_actions_make_the_same_policy_again() -> None:
    policy, _, actions = roll(WALK, 3)
    episode = Episode(WALK)
    for action in actions:
        episode.act(action.tolist())
    assert episode.policy() == policy


def test_a_policy_outside_the_space_has_no_episode() -> None:
    odd = Policy(SPACE.fingerprint, {**SPACE.base().channels, "conv1": 1}, SPACE.base().layers)
    with pytest.raises(BadInput):
        WALK.replay(odd)


def test_budgets_that_nothing_meets_are_an_error() -> None:
    with pytest.raises(InfeasibleBudget):
        Episode(DecisionProcess(SPACE, ToyLimits(SPACE, size=1e-4)))


def test_the_state_of_a_tiny_network_by_hand() -> None:
    """A 3x3 convolution of stride 2 from 1 to 4 channels, 8x8 to 4x4, then a linear layer from 4 to 2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    space = build_space(net.eval(), torch.zeros(1, 1, 8, 8), Options(channels=4, bits=(INT8,), ranks=()))
    process = DecisionProcess(space, ToyLimits(space, size=1.0, macs=0.6))
    assert [knob.choices for knob in space.knobs] == [(1, 2, 3, 4)]
    assert process.features == (
        *("place", "outputs", "inputs", "height", "width", "stride", "kernel", "macs", "saved", "rest", "kept inputs"),
        *("spent size", "room size", "spent macs", "room macs", "last action 0"),
    )
    total = 4 * 9 * 16 + 8  # 576 MACs of the convolution, 8 of the linear layer
    episode = Episode(process)
    reserved = 2 * 9 * 16 + 2 * 2  # 60 % of the MACs allow two channels
    expected = [0, 1, 1, 1, 1, 1, 1, 1, 0, 8 / total, 1]
    np.testing.assert_allclose(episode.state()[:11], expected, rtol=1e-6)
    np.testing.assert_allclose(episode.state()[13:], [0, 1 - reserved / (0.6 * total), 1], rtol=1e-6)
    episode.act([1.0])
    assert episode.step is None
    assert episode.vector == [1]
    np.testing.assert_allclose(episode.state()[8:11], [292 / total, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(episode.state()[13:], [292 / (0.6 * total), 1 - 292 / (0.6 * total), 0.5], rtol=1e-6)
