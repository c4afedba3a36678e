"""The contract of everything that decides: ask for policies, tell what they were worth."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from trimtab.errors import BadInput, TrimtabError, in_one_line
from trimtab.spaces import Policy, Space

__all__ = ["CHECKED", "Agent", "Estimates", "Limits", "Parameters", "Score", "stable_seed"]

#: How parameters are checked: no unknown ones, and numbers are finite.
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=CHECKED)
class Parameters:
    """The parameters of an agent: none. An agent that has any derives a class with a field and a default for each."""


class Score(Protocol):
    """The result of one evaluated policy, as its agent is told it."""

    @property
    def accuracy(self) -> float:
        """Proxy accuracy between 0 and 1, higher is better; finite."""

    @property
    def violations(self) -> Mapping[str, float]:
        """For every budget cost / limit - 1: at most 0 where it is met; never NaN."""


class Limits(Protocol):
    """The budgets, as cheap prices that an agent may ask for without evaluating anything."""

    def feasible(self, policy: Policy) -> bool:
        """Return whether every budget is met (about a tenth of a millisecond)."""

    def project(self, policy: Policy) -> Policy:
        """Return a feasible policy of the space near this one, and an equal one if it is feasible already.

        Deterministic. Raises `trimtab.errors.InfeasibleBudget` where no policy is feasible.
        """

    def violations(self, policy: Policy) -> Mapping[str, float]:
        """Return for every budget cost / limit - 1: at most 0 where it is met."""

    def shares(self, policy: Policy) -> Mapping[str, Mapping[str, float]]:
        """Return budget -> layer -> the layer's cost / limit, for the budgets that are sums over layers.

        The shares of a budget, and one under "" for what belongs to no layer, add up to its violation + 1. A layer's
        share depends on the knobs of `Space.scopes`, and a little, where layers run together, on its neighbours'.
        """


class Estimates(Protocol):
    """Knowledge of single layers before any network is run: `trimtab.spaces.repairs.database.LayerDatabase` is one."""

    def errors(self, policy: Policy) -> Mapping[str, float]:
        """Return every layer's expected increase of the loss, in nats per image, at least 0; they add up.

        A layer's error depends on the knobs of `Space.scopes` and on nothing else.
        """


class Agent(ABC):
    """Proposes policies by `ask` and learns from `tell`; it never runs a network.

    Obligations, which `trimtab.testing.agents.AgentContract` holds every agent to:

    - every policy that `ask` returns is feasible, and none was asked or told before;
    - what is proposed depends on nothing but the space, the limits, the seed, the number of proposals so far and the
      results told so far, in their order: not on time, process or hash seed;
    - so a fresh agent that is told every finished result in the original order and then loads the saved state goes
      on exactly as the interrupted one would have.

    An implementation supplies `name` and `_propose`, `_learn` if it learns, and `_start` if it keeps anything. Not
    thread-safe: one thread drives it.
    """

    #: The name in configurations; part of every proposal's seed.
    name: ClassVar[str]

    #: The kinds of knobs that it decides; all others stay as the network was given.
    decides: ClassVar[tuple[str, ...]] = ("channels", "bits", "form")

    #: Whether it cannot do without `Estimates`: what it is then given is complete, so that asking is quick.
    needs_estimates: ClassVar[bool] = False

    #: The class of its parameters, which `parameters` is an instance of.
    takes: ClassVar[type[Parameters]] = Parameters

    #: Proposals tried for one policy before the agent counts as exhausted: small spaces repeat themselves.
    retries: ClassVar[int] = 48

    def __init__(
        self,
        space: Space,
        limits: Limits,
        seed: int,
        estimates: Estimates | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        if self.needs_estimates and estimates is None:
            raise ValueError(f"agent {self.name!r} needs estimates of the layers' errors")
        self.space = space
        self.limits = limits
        self.seed = seed
        self.estimates = estimates
        self.parameters: Any = self.takes() if parameters is None else parameters
        self._proposals = 0
        self._seen: set[str] = set()
        self._pending: dict[str, None] = {}  # ids asked and not yet told, oldest first
        self._repeats = 0  # proposals in a row that were known already
        self._start()

    def _start(self) -> None:  # noqa: B027 - most agents begin with nothing of their own
        """Set what the agent keeps from proposal to proposal; space, limits, seed, estimates and parameters are set."""

    @abstractmethod
    def _propose(self, number: int) -> Policy | None:
        """Return raw proposal `number` (0, 1, ...), feasible or not; None when there will never be another one.

        It may repeat itself: `ask` projects and skips; `self._repeats` counts the skipped ones since the last policy
        that was new. Draw from `stable_seed(self.seed, self.name, number)` only.
        """

    def _learn(self, policy: Policy, score: Score) -> None:  # noqa: B027 - most agents do not learn
        """Take one result into account. `policy` is one of the network's, perhaps never asked for."""

    def ask(self, n: int) -> list[Policy]:
        """Return up to `n` new feasible policies; fewer, or none, when the agent has no more to propose.

        Raises `trimtab.errors.InfeasibleBudget` where the limits have no feasible policy.
        """
        policies: list[Policy] = []
        while len(policies) < n and (policy := self._next()) is not None:
            policies.append(policy)
        return policies

    def tell(self, policy: Policy, score: Score) -> None:
        """Learn what a policy was worth. One that was never asked for is welcome (a warm start).

        A policy for another network is a `BadInput`, a score that is not a number a `ValueError`.
        """
        self.space.check(policy)
        if not math.isfinite(score.accuracy):
            raise ValueError(f"the accuracy of policy {policy.id} is {score.accuracy}; it must be finite")
        for budget, violation in score.violations.items():
            if math.isnan(violation):
                raise ValueError(f"the violation of budget {budget!r} by policy {policy.id} is NaN")
        self._seen.add(policy.id)
        self._pending.pop(policy.id, None)
        self._learn(policy, score)

    def state(self) -> dict[str, Any]:
        """Return the counters as plain JSON: proposals made, and the ids of the policies in flight.

        What was learned is not in it: that is told again.
        """
        return {"agent": self.name, "proposals": self._proposals, "pending": list(self._pending)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state` returned, after every finished result has been told.

        The policies in flight are not proposed again: evaluating them is up to whoever holds them. A state of
        another agent, or none at all, is a `BadInput`.
        """
        name = state.get("agent")
        if name != self.name:
            raise BadInput(f"the saved state is one of agent {name!r}, this is {self.name!r}")
        proposals, pending = state.get("proposals"), state.get("pending")
        if isinstance(proposals, bool) or not isinstance(proposals, int) or proposals < 0:
            raise BadInput(f"the saved state of agent {self.name!r} counts {proposals!r} proposals")
        if not isinstance(pending, list) or not all(isinstance(policy, str) for policy in pending):
            raise BadInput(f"the saved state of agent {self.name!r} has no list of pending policies")
        self._proposals = proposals
        self._pending = {policy: None for policy in pending if policy not in self._seen}
        self._seen.update(pending)

    def _next(self) -> Policy | None:
        for repeats in range(self.retries):
            self._repeats = repeats
            proposal = self._checked(self._propose(self._proposals))
            if proposal is None:
                return None
            self._proposals += 1
            policy = self.limits.project(proposal)
            if policy.id in self._seen:
                continue
            if not self.limits.feasible(policy):
                raise TrimtabError(
                    f"the limits projected policy {proposal.id} to {policy.id}, which violates them: "
                    f"{dict(self.limits.violations(policy))}; this is a defect of the limits"
                )
            self._seen.add(policy.id)
            self._pending[policy.id] = None
            return policy
        return None

    def _checked(self, proposal: object) -> Policy | None:
        if proposal is None or isinstance(proposal, Policy):
            return proposal
        raise BadInput(
            f"agent {self.name!r}: _propose returns a trimtab.spaces.Policy or None, not {in_one_line(proposal)}"
        )


def stable_seed(seed: int, name: str, number: int) -> int:
    """Return a seed in [0, 2**32) for one proposal: equal in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
