from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from trimtab.agents.actor_critic import BASELINE_RATE, BATCH, REMEMBERED, ActorCritic, Rewards, truncated_normal

STEPS = 5


def episode(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((STEPS + 1, 7)).astype(np.float32), rng.random((STEPS, 2))


def learner(algorithm: str = "DDPG", seed: int = 0) -> ActorCritic:
    return ActorCritic(algorithm, features=7, actions=2, steps=STEPS, seed=seed)


@pytest.mark.parametrize("mean", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("deviation", [0.02, 0.5])
def test_noise_is_a_truncated_normal(mean: float, deviation: float) -> None:
    drawn = truncated_normal(np.full(2000, mean), deviation, np.random.default_rng(1))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    exact = truncnorm(-mean / deviation, (1 - mean) / deviation, mean, deviation)
    assert kstest(drawn, exact.cdf).pvalue > 0.01


def test_every_step_of_an_episode_earns_its_reward() -> None:
    taught = learner()
    for seed, reward in enumerate((0.25, 0.75)):
        taught.remember(*episode(seed), reward)
    buffer = taught._buffer
    assert buffer.size() == 2 * STEPS
    np.testing.assert_array_equal(buffer.rewards[: 2 * STEPS, 0], [0.25] * STEPS + [0.75] * STEPS)
    np.testing.assert_array_equal(buffer.dones[: 2 * STEPS, 0], ([0] * (STEPS - 1) + [1]) * 2)
    states, actions = episode(1)
    np.testing.assert_array_equal(buffer.observations[STEPS : 2 * STEPS, 0], states[:-1])
    np.testing.assert_array_equal(buffer.next_observations[STEPS : 2 * STEPS, 0], states[1:])
    np.testing.assert_allclose(buffer.actions[STEPS : 2 * STEPS, 0], 2 * actions - 1, rtol=1e-6)


def test_only_the_last_episodes_are_remembered() -> None:
    taught = learner()
    for number in range(REMEMBERED + 3):
        taught.remember(*episode(number), float(number))
    assert taught._buffer.size() == REMEMBERED * STEPS
    assert set(taught._buffer.rewards.ravel()) == set(map(float, range(3, REMEMBERED + 3)))


def test_batches_hold_rewards_relative_to_their_moving_average() -> None:
    taught = learner()
    rewards = np.random.default_rng(0).random(20)
    for seed, reward in enumerate(rewards):
        taught.remember(*episode(seed), reward)
    buffer = taught._buffer
    average = None
    for draw in range(4):
        buffer.draws = np.random.default_rng(draw)
        drawn = np.repeat(rewards, STEPS)[np.random.default_rng(draw).integers(20 * STEPS, size=BATCH)]
        average = drawn.mean() if average is None else average + BASELINE_RATE * (drawn.mean() - average)
        expected = (drawn - average) / rewards.std()
        np.testing.assert_allclose(buffer.sample(BATCH).rewards[:, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_equal_rewards_are_no_reason_to_divide_by_nothing() -> None:
    assert np.array_equal(Rewards().relative(np.full(4, 0.5), 0.0), np.zeros(4))


@pytest.mark.parametrize("algorithm", ["DDPG", "TD3", "SAC"])
def test_it_depends_on_nothing_but_its_seed_and_leaves_the_world_as_it_was(algorithm: str) -> None:
    def taught() -> np.ndarray:
        one = learner(algorithm, seed=3)
        for seed in range(4):
            one.remember(*episode(seed), seed / 4)
        one.train(seed=9)
        return one.act(episode(0)[0][0])

    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1]
    first = taught()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(6)
    np.random.seed(6)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(taught(), first)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (first >= 0).all()
    assert (first <= 1).all()


def test_the_actor_learns_ten_times_slower_than_the_critic() -> None:
    model = learner()._model
    taught = learner()
    for _ in range(2):
        taught.remember(*episode(0), 1.0)
    taught.train(0)
    for each in (model, taught._model):
        assert each.actor.optimizer.param_groups[0]["lr"] == 1e-4
        assert each.critic.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("algorithm", ["DDPG", "TD3", "SAC"])
def test_the_actor_comes_to_imitate_the_best_episodes(algorithm: str) -> None:
    """One of ten episodes is better than the others: its actions are learned, wherever the actor began."""
    taught = learner(algorithm)
    best = episode(3)
    for seed in range(10):
        taught.remember(*episode(seed), 0.9 if seed == 3 else 0.1 + seed / 100)

    def distance() -> float:
        return float(np.abs(np.stack([taught.act(state) for state in best[0][:-1]]) - best[1]).mean())

    before = distance()
    for seed in range(30):
        taught.train(seed)
    assert distance() < 0.5 * before


def test_what_a_step_is_worth_does_not_depend_on_the_states_behind_it() -> None:
    def taught(scale: float) -> np.ndarray:
        one = learner()
        for seed in range(4):
            one.remember(*episode(seed), seed / 4)
        one._buffer.next_observations *= scale
        one.train(0)
        return one.act(episode(0)[0][0])

    np.testing.assert_array_equal(taught(1.0), taught(-3.0))
