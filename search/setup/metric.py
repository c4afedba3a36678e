"""The metric of a run as its tables and its report show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.evaluators.accuracy import Judge
from trimtab.evaluators.answers import SHARES, Scale
from trimtab.evaluators.metrics import TOP_1

__all__ = ["ACCURACY", "ShownMetric"]


@dataclass(frozen=True)
class ShownMetric:
    """A metric in words: its name, its scale, whether outputs are logits of `classes`, and whether they are held to
    `targets`, or else to what the untouched network says."""

    name: str = "accuracy"
    scale: Scale = SHARES
    classes: bool = True
    targets: bool = True

    @classmethod
    def by(cls, judge: Judge) -> ShownMetric:
        """Return how the metric of a judge is shown."""
        metric, targets = judge.metric, judge.targets is not None
        name = "accuracy" if metric.name == TOP_1.name else metric.name
        if not targets:
            name = "agreement" if metric.name == TOP_1.name else f"{metric.name} of the untouched network's outputs"
        return cls(name, judge.scale, bool(metric.classes), targets)

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> ShownMetric:
        """Return how the metric of a summary is shown."""
        found = summary.get("metric")
        return cls() if found is None else cls(**{**found, "scale": Scale(**found["scale"])})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def figure(self, value: float) -> str:
        """Return a value of the metric: "91.20%", or "0.1234" where it is no share."""
        return self.scale.said(value)

    @property
    def points(self) -> str:
        """What a hundredth of a difference is called."""
        return "points" if self.scale.given is None else "% of it as given"

    @property
    def loss(self) -> str:
        """What the loss is, in words."""
        if self.classes:
            return "the mean KL divergence from the untouched network's predictions, in nats"
        return "the mean squared distance from the untouched network's outputs, as a share of their variance"

    @property
    def said(self) -> str:
        """What the metric is, in a line."""
        better = f"{self.name}, {'higher' if self.scale.higher else 'lower'} is better"
        if self.targets:
            return better
        return f"{better}: there are no labels, and what counts is agreement with the untouched network"


#: Top-1 accuracy, by labels.
ACCURACY = ShownMetric()
