"""The proposer: an agent under the budgets, or, where a cost is minimised, under one level of it after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.agents.base import Agent, Score
from trimtab.errors import InfeasibleBudget
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.levels import Levels
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.spaces.policy import Policy

__all__ = ["Proposer"]


class Proposer:
    """An agent with all that it was told, made by `make` for some limits.

    Without `minimise` it searches under the limits, as they are. With it the named cost gets one more limit, a level
    (`Levels`); at every level there is a fresh agent, which is told of all evaluations and goes on with its proposals,
    exactly as in a run that is resumed. So every agent serves, and to each of them it is a budget as any other.
    """

    def __init__(self, make: Callable[[BudgetLimits], Agent], limits: BudgetLimits, minimise: str | None) -> None:
        self.make, self.limits, self.minimise = make, limits, minimise
        self._told: list[Evaluation] = []
        self._agent: Agent | None = None
        self._state: Mapping[str, Any] | None = None  # of the last agent, for the next one
        self._levels: Levels | None = None
        if minimise is not None:
            base = limits.model.get(limits.space.base(), minimise)
            self._levels = Levels(limits.smallest(minimise)[1], base)

    def ask(self, count: int) -> list[Policy]:
        """Return up to `count` new policies; none where the agent has no more to propose, under no level."""
        while True:
            policies = self._asked(count)
            if policies or self._levels is None or not self._levels.exhausted():
                return policies
            self._end_level()

    def tell(self, evaluation: Evaluation) -> None:
        """Tell the agent, if there is one by now, or when there is, of an evaluation."""
        self._told.append(evaluation)
        if self._agent is not None:
            self._tell(self._agent, evaluation)
        if self._levels is not None and self.minimise is not None:
            cost = self.limits.model.get(evaluation.policy, self.minimise)
            if self._levels.told(cost, max(evaluation.violations.values())):
                self._end_level()

    def state(self) -> dict[str, Any]:
        """Return what `resume` takes, as plain JSON: the agent's state, and the levels."""
        state: dict[str, Any] = {} if self._agent is None else self._agent.state()
        return state if self._levels is None else {**state, "levels": self._levels.to_json()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state` returned, before what was told after it is told again."""
        if self._levels is not None:
            self._levels = Levels.from_json(state["levels"])
        self._state, self._agent = {key: value for key, value in state.items() if key != "levels"}, None

    def _asked(self, count: int) -> list[Policy]:
        try:
            if self._agent is None:
                self._agent = self._made()
            return self._agent.ask(count)
        except InfeasibleBudget:
            if self._levels is None:
                raise
            return []

    def _made(self) -> Agent:
        limits = self.limits
        if self._levels is not None and self.minimise is not None:
            limits = limits.under(self.minimise, self._levels.level)
        agent = self.make(limits)
        for evaluation in self._told:
            self._tell(agent, evaluation)
        if self._state is not None:
            agent.load(self._state)
        return agent

    def _tell(self, agent: Agent, evaluation: Evaluation) -> None:
        """Tell an agent; one under a level is told of predicted costs, and of no accuracy that has to be kept."""
        score: Score = evaluation
        if self._levels is not None:
            score = _Score(evaluation.accuracy, agent.limits.violations(evaluation.policy))
        agent.tell(evaluation.policy, score)

    def _end_level(self) -> None:
        if self._agent is not None:
            self._state, self._agent = self._agent.state(), None


@dataclass(frozen=True)
class _Score:
    """The score that an agent is told of a policy."""

    accuracy: float
    violations: Mapping[str, float]
