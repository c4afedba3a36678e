"""Evaluations: what a policy was found to cost and to be worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from trimtab.errors import BadInput
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency
from trimtab.evaluators.price.cost import Cost
from trimtab.spaces.policy import Policy

__all__ = ["Evaluation", "pareto", "violations"]


@dataclass(frozen=True)
class Evaluation:
    """One judged policy: `answers` and `loss` as a `Judgement` has them; `cost` as predicted (latency in seconds) but
    for the size, which is that of the weights as they are stored; `latency` where it was measured end to end.

    `violations` maps every budget to cost / limit - 1; for a measured policy its latency counts by the upper end of
    the interval that decisions rest on. `seconds` says where the evaluation's time went.
    """

    policy: Policy
    answers: Answers
    loss: float
    cost: Cost
    violations: Mapping[str, float]
    seconds: Mapping[str, float]
    latency: Latency | None = None

    @property
    def accuracy(self) -> float:
        """Proxy accuracy in [0, 1]."""
        return self.answers.accuracy

    @property
    def feasible(self) -> bool:
        """Whether every budget is met, by the best knowledge of its cost."""
        return all(v <= 0 for v in self.violations.values())

    @property
    def verified(self) -> bool:
        """Whether it is feasible by an end-to-end measurement."""
        return self.latency is not None and self.feasible

    def measured(self, latency: Latency, limit: Interval | None) -> Evaluation:
        """Return the evaluation with its measured latency in place of the predicted one.

        `limit` is the latency budget in multiples of the yardstick, None where there is none.
        """
        found = dict(self.violations)
        if limit is not None:
            found["latency"] = latency.excess(limit)
        return replace(self, latency=latency, violations=found)

    def with_size(self, size: int, limits: Mapping[str, float]) -> Evaluation:
        """Return the evaluation with the bytes of the finished network in place of predicted ones."""
        found = {**self.violations, "size": size / limits["size"] - 1} if "size" in limits else self.violations
        return replace(self, cost=replace(self.cost, size=size), violations=found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "policy": self.policy.to_json(),
            "accuracy": self.accuracy,
            "answers": self.answers.to_json(),
            "loss": self.loss,
            "cost": asdict(self.cost),
            "violations": dict(self.violations),
            "seconds": dict(self.seconds),
            "latency": None if self.latency is None else self.latency.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read what `to_json` wrote; a result from before it had `answers` and `loss` is a `BadInput`."""
        if "answers" not in data:
            raise BadInput(
                "this journal is of an older trimtab, whose results do not say which images were answered rightly: "
                "nothing can be chosen from them; start the search again, in another folder"
            )
        latency = None if data["latency"] is None else Latency.from_json(data["latency"])
        policy = Policy.from_json(data["policy"])
        answers, cost = Answers.from_json(data["answers"]), Cost(**data["cost"])
        return cls(policy, answers, data["loss"], cost, data["violations"], data["seconds"], latency)


def violations(cost: Cost, limits: Mapping[str, float]) -> dict[str, float]:
    """Return cost / limit - 1 for every budget."""
    return {name: cost.get(name) / limit - 1 for name, limit in limits.items()}


def pareto(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Return those that no other one beats in both predicted latency and accuracy, fastest first."""
    front: list[Evaluation] = []
    for candidate in sorted(evaluations, key=lambda e: (e.cost.latency, -e.accuracy, e.loss, e.policy.id)):
        if not front or candidate.accuracy > front[-1].accuracy:
            front.append(candidate)
    return front
