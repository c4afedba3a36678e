"""The decision process through the layers as a gymnasium environment, on which any agent can be trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from trimtab.agents.base import Limits
from trimtab.agents.decision_process import DecisionProcess, Episode
from trimtab.graph import Array
from trimtab.spaces import Policy, Space

__all__ = ["CompressionEnvironment"]


class CompressionEnvironment(gymnasium.Env[Array, Array]):
    """One episode decides one policy, layer by layer; see `DecisionProcess` for steps, states and actions.

    `evaluate` says what a finished policy is worth, such as its proxy accuracy; it is called once an episode, at its
    end. All other rewards are 0: an agent that learns from single steps learns little before it fills the final reward
    back into the episode, as `trimtab.agents.amc` does. Whatever the actions, the policy meets every budget. The last
    step's `info` holds it under "policy".
    """

    def __init__(self, space: Space, limits: Limits, evaluate: Callable[[Policy], float]) -> None:
        self.process = DecisionProcess(space, limits)
        self.evaluate = evaluate
        self.observation_space = Box(0.0, 1.0, (len(self.process.features),), np.float32)
        self.action_space = Box(0.0, 1.0, (self.process.slots,), np.float32)
        self._episode = Episode(self.process)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode: return the first state (features,), and nothing more."""
        super().reset(seed=seed)
        self._episode = Episode(self.process)
        return self._episode.state(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide one layer by an action (slots,) in [0, 1]; a step after the episode's end is a `ValueError`."""
        self._episode.act(np.clip(action, 0, 1).tolist())
        if self._episode.step is not None:
            return self._episode.state(), 0.0, False, False, {}
        # Memory is no sum over layers, and layers that run together share their time: the process cannot bound those.
        policy = self.process.limits.project(self._episode.policy())
        return self._episode.state(), float(self.evaluate(policy)), True, False, {"policy": policy}
