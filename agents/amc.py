"""Reinforcement learning of whole policies, after AMC (He et al. 2018, arXiv:1802.03494)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.actor_critic import ActorCritic, truncated_normal
from trimtab.agents.base import CHECKED, Agent, Parameters, Score, stable_seed
from trimtab.errors import BadInput
from trimtab.graph import Array
from trimtab.spaces import Policy

if TYPE_CHECKING:
    from trimtab.agents.environment import CompressionEnvironment

__all__ = ["Amc", "AmcSac", "AmcTd3", "Episodic", "EpisodicParameters"]


@dataclass(frozen=True, config=CHECKED)
class EpisodicParameters(Parameters):
    """The parameters of every `Episodic` agent.

    The first `warmup` episodes are random: AMC takes 100 of 800, a search here has a few hundred evaluations in all.
    The exploration's deviation is `noise` at first, times `decay` for every episode after the warm-up, and never below
    `least_noise`: as long as it explores, it does not repeat itself.
    """

    warmup: int = Field(40, ge=1)
    noise: float = Field(0.5, gt=0, le=1)
    decay: float = Field(0.97, gt=0, le=1)
    least_noise: float = Field(0.1, gt=0, le=1)


class Episodic(Agent):
    """An actor decides a policy step by step; when its worth is told, actor and critic learn the whole episode.

    Nothing is kept between asking and telling: any policy is replayed as the episode that makes it. So many episodes
    may be in flight, and policies that others found are learned from like one's own. Policies that no episode makes are
    only remembered as known.

    The first `warmup` policies told are not the actor's work, but random ones or what others found.

    What differs from AMC, because its actor is no better after 400 episodes than its warm-up: the actor also imitates
    the best episodes, and the critic predicts the episode's reward instead of a sum over the remaining steps (both in
    `ActorCritic`); exploration decays to a higher floor, as imitation needs something better than itself to imitate.
    """

    #: stable-baselines3's name of the algorithm.
    algorithm: ClassVar[str] = "DDPG"

    takes: ClassVar[type[Parameters]] = EpisodicParameters

    def _start(self) -> None:
        self._told = 0
        self._waiting: list[tuple[Array, Array, float]] = []  # until there is something to train

    def _propose(self, number: int) -> Policy | None:
        rng = np.random.default_rng(stable_seed(self.seed, self.name, number))
        if self._told < self.parameters.warmup:
            return self._draw(rng)
        return self._roll(rng, self.deviation)

    @property
    def deviation(self) -> float:
        """The deviation of the exploration now; each proposal in a row that was known already adds to it."""
        own = self.parameters
        decayed = own.noise * own.decay ** (self._told - own.warmup)
        return float(min(max(decayed, own.least_noise) * (1 + self._repeats), own.noise))

    def _learn(self, policy: Policy, score: Score) -> None:
        episode = self._replay(policy)
        if episode is None:
            return
        # What breaks a budget when it is measured is worth nothing.
        feasible = all(violation <= 0 for violation in score.violations.values())
        self._waiting.append((*episode, score.accuracy if feasible else 0.0))
        self._told += 1
        if self._told >= self.parameters.warmup:
            while self._waiting:
                self.learner.remember(*self._waiting.pop(0))
            self.learner.train(stable_seed(self.seed, f"{self.name} learns", self._told))

    def _explore(self, state: Array, deviation: float, rng: np.random.Generator) -> Array:
        return truncated_normal(self.learner.act(state), deviation, rng)

    @property
    @abstractmethod
    def learner(self) -> ActorCritic:
        """The actor and its critic."""

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> Policy:
        """Return a random policy for the warm-up."""

    @abstractmethod
    def _roll(self, rng: np.random.Generator, deviation: float) -> Policy:
        """Return the policy of an episode by the actor, with exploration."""

    @abstractmethod
    def _replay(self, policy: Policy) -> tuple[Array, Array] | None:
        """Return the states (steps + 1, features) and actions (steps, actions) of a policy's episode, if it has one."""


class Amc(Episodic):
    """Goes through the layers and decides channels, bits and form of each; see `DecisionProcess`."""

    name: ClassVar[str] = "amc"

    @cached_property
    def environment(self) -> CompressionEnvironment:
        """The decision process through the layers; what an episode is worth is told later."""
        from trimtab.agents.environment import CompressionEnvironment

        return CompressionEnvironment(self.space, self.limits, lambda policy: 0.0)

    @cached_property
    def learner(self) -> ActorCritic:
        """The actor and its critic."""
        process = self.environment.process
        seed = stable_seed(self.seed, f"{self.name} learns", 0)
        return ActorCritic(self.algorithm, len(process.features), process.slots, len(process.steps), seed)

    def _draw(self, rng: np.random.Generator) -> Policy:
        # Independent uniform actions would make all episodes alike, and none of them a good one.
        deviation = self.parameters.noise * rng.random()
        middle = np.full(self.environment.process.slots, 0.5)
        return self._episode(lambda state: truncated_normal(middle, deviation, rng))

    def _roll(self, rng: np.random.Generator, deviation: float) -> Policy:
        return self._episode(lambda state: self._explore(state, deviation, rng))

    def _episode(self, act: Callable[[Array], Array]) -> Policy:
        """Return the policy of an episode, by the actions (slots,) for its states (features,)."""
        state, info = self.environment.reset()
        while "policy" not in info:
            state, *_, info = self.environment.step(act(state))
        policy: Policy = info["policy"]
        return policy

    def _replay(self, policy: Policy) -> tuple[Array, Array] | None:
        try:
            return self.environment.process.replay(policy)
        except BadInput:
            return None


class AmcTd3(Amc):
    """The same with TD3 (Fujimoto et al. 2018, arXiv:1802.09477): two critics, and an actor that follows later."""

    name: ClassVar[str] = "amc-td3"
    algorithm: ClassVar[str] = "TD3"


class AmcSac(Amc):
    """The same with SAC (Haarnoja et al. 2018, arXiv:1801.01290): the actor is also rewarded for staying random."""

    name: ClassVar[str] = "amc-sac"
    algorithm: ClassVar[str] = "SAC"
