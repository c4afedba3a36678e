"""Actor and critic by stable-baselines3, taught whole episodes, whose reward comes at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from trimtab.graph import Array
from trimtab.threads import torch_threads

__all__ = ["ActorCritic", "Rewards", "truncated_normal"]

#: AMC's constants, as its authors' implementation has them.
HIDDEN = 300
BATCH = 64
SOFT_UPDATE = 0.01
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
BASELINE_RATE = 0.5

#: AMC's is 1. With the final reward in every step the critic would have to learn, by bootstrapping, a sum over the rest
#: of the episode; with 0 it regresses the final reward on state and action, which a few hundred episodes teach.
DISCOUNT = 0.0

#: The share of all episodes that the actor imitates, and its learning rate in doing so.
BEST = 0.1
IMITATION_RATE = 1e-3

#: Episodes that are remembered.
REMEMBERED = 100


@dataclass
class Rewards:
    """Rewards made comparable within a batch: less their moving average, in units of their spread.

    AMC's equation 3 subtracts the average; the unit is ours. Accuracies of a few points' difference would otherwise be
    lost in what the critic, fresh from its initialisation, says about states.
    """

    baseline: float | None = None

    def relative(self, batch: Array, spread: float) -> Array:
        """Take the mean of a batch into the moving average, and return the batch relative to it."""
        mean = float(batch.mean())
        self.baseline = mean if self.baseline is None else self.baseline + BASELINE_RATE * (mean - self.baseline)
        return np.asarray((batch - self.baseline) / max(spread, 1e-6))


class ActorCritic:
    """An actor and its critic: `algorithm` is "DDPG", "TD3" or "SAC".

    The actor follows the critic and, ten times faster, the actions of the best episodes so far (self-imitation, Oh et
    al. 2018, arXiv:1806.05635). A critic of a few hundred episodes says too little about dozens of actions: an actor
    that follows it alone is after 400 episodes no better than its warm-up.

    Depends on nothing but its arguments and what it was taught, in that order: PyTorch's generator is seeded for every
    use and left as it was found, and so is the number of threads.
    """

    def __init__(self, algorithm: str, features: int, actions: int, steps: int, seed: int) -> None:
        self.steps = steps
        with _deterministic(seed):
            self._model = _model(algorithm, features, actions, steps)
        self._actor = self._model.actor
        self._buffer = self._model.replay_buffer
        self._imitator = torch.optim.Adam(self._actor.parameters(), IMITATION_RATE)
        self._episodes: list[tuple[float, Array, Array]] = []  # reward, states but the last, actions in [-1, 1]

    def act(self, state: Array) -> Array:
        """Return the actor's action, (actions,) in [0, 1], for a state (features,)."""
        with torch.no_grad(), torch_threads(1):
            action = self._actor(torch.from_numpy(state[None]), **self._certain)
        return np.asarray((action[0].numpy().astype(np.float64) + 1) / 2)

    @property
    def _certain(self) -> Mapping[str, bool]:
        return {"deterministic": True} if hasattr(self._actor, "log_std") else {}

    def remember(self, states: Array, actions: Array, reward: float) -> None:
        """Take an episode, states (steps + 1, features) and actions (steps, actions), every step earning its reward."""
        for step in range(self.steps):
            done = step == self.steps - 1
            self._buffer.add(states[step], states[step + 1], 2 * actions[step] - 1, reward, done, [{}])
        self._episodes.append((reward, states[:-1], np.asarray(2 * actions - 1, np.float32)))

    def train(self, seed: int) -> None:
        """Make one update per step of an episode: of the critic and the actor by it, then of the actor by imitation."""
        self._buffer.draws = np.random.default_rng(seed)
        with _deterministic(seed):
            self._model.train(gradient_steps=self.steps, batch_size=BATCH)
            self._imitate(np.random.default_rng([seed, 1]))
            self._model.policy.set_training_mode(False)

    def _imitate(self, rng: np.random.Generator) -> None:
        """Regress the actor on the actions of the best episodes; of equal ones the earlier is better."""
        best = sorted(self._episodes, key=lambda episode: -episode[0])[: math.ceil(BEST * len(self._episodes))]
        states = torch.from_numpy(np.concatenate([states for _, states, _ in best]))
        actions = torch.from_numpy(np.concatenate([actions for _, _, actions in best]))
        for _ in range(self.steps):
            drawn = torch.from_numpy(rng.integers(len(states), size=BATCH))
            loss = torch.nn.functional.mse_loss(self._actor(states[drawn], **self._certain), actions[drawn])
            self._imitator.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it so
            self._imitator.step()


def truncated_normal(mean: Array, deviation: float, rng: np.random.Generator) -> Array:
    """Draw from normal distributions around means in [0, 1], cut off outside [0, 1], by inverting their CDF."""
    centre = torch.from_numpy(np.asarray(mean, dtype=np.float64))
    low, high = torch.special.ndtr(-centre / deviation), torch.special.ndtr((1 - centre) / deviation)
    uniform = low + (high - low) * torch.from_numpy(rng.random(centre.shape))
    return np.asarray((centre + deviation * torch.special.ndtri(uniform)).clamp(0, 1).numpy())


def _model(algorithm: str, features: int, actions: int, steps: int) -> Any:
    import stable_baselines3
    from stable_baselines3.common.logger import Logger

    settings: dict[str, Any] = {
        "learning_rate": CRITIC_RATE,
        "buffer_size": REMEMBERED * steps,
        "batch_size": BATCH,
        "tau": SOFT_UPDATE,
        "gamma": DISCOUNT,
        "policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]},
        "replay_buffer_class": _buffer_class(),
        "device": "cpu",
    }
    model = getattr(stable_baselines3, algorithm)("MlpPolicy", _spaces_only(features, actions), **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    # One schedule sets all rates alike; AMC's actor learns ten times slower than its critic.
    model._update_learning_rate = lambda optimizers: None
    for group in model.actor.optimizer.param_groups:
        group["lr"] = ACTOR_RATE
    model.policy.set_training_mode(False)
    return model


@cache
def _buffer_class() -> type:
    from stable_baselines3.common.buffers import ReplayBuffer

    class Buffer(ReplayBuffer):  # type: ignore[misc]  # stable-baselines3 is not followed
        """Draws by a generator of its own, not NumPy's global one, and hands out relative rewards."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.draws = np.random.default_rng(0)
            self.scale = Rewards()

        def sample(self, batch_size: int, env: Any = None) -> Any:
            return self._get_samples(self.draws.integers(self.size(), size=batch_size), env)

        def _normalize_reward(self, reward: Array, env: Any = None) -> Array:
            return self.scale.relative(reward, float(self.rewards[: self.size()].std())).astype(np.float32)

    return Buffer


def _spaces_only(features: int, actions: int) -> Any:
    """An environment that tells a model its spaces, and is never stepped."""
    import gymnasium
    from gymnasium.spaces import Box

    class Spaces(gymnasium.Env[Array, Array]):
        observation_space = Box(0.0, 1.0, (features,), np.float32)
        action_space = Box(0.0, 1.0, (actions,), np.float32)

    return Spaces()


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch_threads(1):
        torch.manual_seed(seed)
        yield
