"""Evaluations: what a policy was found to cost and to be worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from trimtab.errors import BadInput
from trimtab.evaluators.answers import Graded
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency
from trimtab.evaluators.price.cost import Cost
from trimtab.search.setup.kept import Kept
from trimtab.spaces.policy import Policy

__all__ = ["Evaluation", "Objective", "pareto", "violations"]


@dataclass(frozen=True)
class Objective:
    """The cost that is minimised, of one network: its name, what the network as given takes (`base`), and the `share`
    of that, exactly, or with the 95 % interval by which it is compared with others that were measured."""

    cost: str
    base: float
    share: Interval

    @classmethod
    def of(cls, cost: str, base: float, value: float) -> Objective:
        """Return the objective of a cost that is known, or predicted."""
        return cls(cost, base, Interval.exactly(value / base))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "share": list(self.share)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Objective:
        """Read what `to_json` wrote."""
        return cls(**{**data, "share": Interval(*data["share"])})


@dataclass(frozen=True)
class Evaluation:
    """One judged policy: `answers` and `loss` as a `Judgement` has them; `cost` as predicted (latency in seconds) but
    for the size, which is that of the weights as they are stored; `latency` where it was measured end to end.

    `violations` maps every budget to cost / limit - 1; for a measured policy its latency counts by the upper end of
    the interval that decisions rest on. `seconds` says where the evaluation's time went.

    `objective` is what is minimised, None where that is no cost and the accuracy is what counts. The accuracy is then a
    budget like the others, and `violations` has an entry for it (`Kept.violation`).
    """

    policy: Policy
    answers: Graded
    loss: float
    cost: Cost
    violations: Mapping[str, float]
    seconds: Mapping[str, float]
    latency: Latency | None = None
    objective: Objective | None = None

    @property
    def accuracy(self) -> float:
        """Proxy accuracy in [0, 1]."""
        return self.answers.accuracy

    @property
    def feasible(self) -> bool:
        """Whether every budget is met, by the best knowledge of its cost."""
        return all(v <= 0 for v in self.violations.values())

    @property
    def affordable(self) -> bool:
        """Whether every budget on a cost is met, whatever the accuracy."""
        return all(v <= 0 for name, v in self.violations.items() if name != "accuracy")

    @property
    def verified(self) -> bool:
        """Whether it is feasible by an end-to-end measurement."""
        return self.latency is not None and self.feasible

    def said(self) -> str:
        """Say what counts of it, in few words."""
        if self.objective is None:
            return self.answers.said()
        return f"{self.objective.share.middle:.3f}x {self.objective.cost}"

    def measured(self, latency: Latency, limit: Interval | None) -> Evaluation:
        """Return the evaluation with its measured latency in place of the predicted one.

        `limit` is the latency budget in multiples of the yardstick, None where there is none.
        """
        found = dict(self.violations)
        if limit is not None:
            found["latency"] = latency.excess(limit)
        objective = self.objective
        if objective is not None and objective.cost == "latency":
            # Candidates are compared with each other: what ties the yardstick to the base is the same for all.
            share = latency.to_yardstick.scaled(latency.ratio / latency.to_yardstick.middle)
            objective = replace(objective, share=share)
        return replace(self, latency=latency, violations=found, objective=objective)

    def with_size(self, size: int, limits: Mapping[str, float]) -> Evaluation:
        """Return the evaluation with the bytes of the finished network in place of predicted ones."""
        found = {**self.violations, "size": size / limits["size"] - 1} if "size" in limits else self.violations
        objective = self.objective
        if objective is not None and objective.cost == "size":
            objective = Objective.of("size", objective.base, size)
        return replace(self, cost=replace(self.cost, size=size), violations=found, objective=objective)

    def answered(self, answers: Graded, loss: float, kept: Kept | None) -> Evaluation:
        """Return the evaluation with what another network of the policy answers; `kept` is the accuracy to keep."""
        found = self.violations if kept is None else {**self.violations, "accuracy": kept.violation(answers)}
        return replace(self, answers=answers, loss=loss, violations=found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "policy": self.policy.to_json(),
            "accuracy": self.answers.value,
            "answers": self.answers.to_json(),
            "loss": self.loss,
            "cost": asdict(self.cost),
            "violations": dict(self.violations),
            "seconds": dict(self.seconds),
            "latency": None if self.latency is None else self.latency.to_json(),
            **({} if self.objective is None else {"objective": self.objective.to_json()}),
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
        answers, cost = Graded.from_json(data["answers"]), Cost(**data["cost"])
        objective = Objective.from_json(data["objective"]) if "objective" in data else None
        return cls(policy, answers, data["loss"], cost, data["violations"], data["seconds"], latency, objective)


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
