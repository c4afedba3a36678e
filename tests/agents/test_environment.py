from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from trimtab.agents.environment import CompressionEnvironment
from trimtab.testing.agents import ToyLimits, damage, toy_space

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
ACCURACY = damage(SPACE)


def environment() -> CompressionEnvironment:
    return CompressionEnvironment(SPACE, LIMITS, ACCURACY)


def test_gymnasium_finds_nothing_wrong_nor_warns_and_stable_baselines_takes_it() -> None:
    from stable_baselines3.common.env_checker import check_env as check_for_training

    gymnasium.logger.min_level = gymnasium.logger.WARN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment(), skip_render_check=True)
    check_for_training(environment(), warn=False)  # it would rather have actions in [-1, 1]


def test_the_reward_comes_at_the_end_and_is_what_the_policy_is_worth() -> None:
    env = environment()
    env.action_space.seed(0)
    for _ in range(3):
        env.reset()
        rewards, done = [], False
        while not done:
            _, reward, done, truncated, info = env.step(env.action_space.sample())
            rewards.append(reward)
            assert not truncated
        assert len(rewards) == len(env.process.steps)
        assert rewards[:-1] == [0.0] * (len(rewards) - 1)
        assert rewards[-1] == ACCURACY(info["policy"])
        assert LIMITS.feasible(info["policy"])


def test_a_step_after_the_end_is_an_error() -> None:
    env = environment()
    env.reset()
    for _ in env.process.steps:
        env.step(np.ones(env.process.slots, np.float32))
    with pytest.raises(ValueError, match="over"):
        env.step(np.ones(env.process.slots, np.float32))


def test_users_train_agents_of_their_own_on_it() -> None:
    from stable_baselines3 import DDPG

    seen = []

    def evaluate(policy: object) -> float:
        seen.append(policy)
        return ACCURACY(policy)  # type: ignore[arg-type]

    env = CompressionEnvironment(SPACE, LIMITS, evaluate)
    steps = len(env.process.steps)
    DDPG("MlpPolicy", env, learning_starts=steps, batch_size=8, seed=0, device="cpu").learn(4 * steps)
    assert len(seen) == 4
