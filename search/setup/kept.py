"""The kept accuracy: what a network may lose of the accuracy of the network as given, and how sure that has to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.errors import InfeasibleBudget
from trimtab.evaluators.answers import Graded, Lost, lost
from trimtab.search.setup.config import KeepConfig

__all__ = ["Kept"]


@dataclass(frozen=True)
class Kept:
    """The accuracy to keep: at most `allowed`, a share of the images in (0, 1), is lost of the answers of the network
    as `given`, with a one-sided `confidence`."""

    given: Graded
    allowed: float
    confidence: float

    @classmethod
    def asked(cls, keep: KeepConfig, given: Graded) -> Kept:
        """Return what a configuration asks for of the network as given, by its answers."""
        return cls(given, -keep.accuracy / 100, keep.confidence)

    def lost(self, answers: Graded) -> Lost:
        """Return what answers to the same images lose, at most, by the confidence."""
        return lost(self.given, answers, self.confidence)

    def violation(self, answers: Graded) -> float:
        """Return the most that may be lost / `allowed` - 1: at most 0 where the accuracy is shown to be kept."""
        return self.lost(answers).bound / self.allowed - 1

    def check(self) -> None:
        """Refuse, as an `InfeasibleBudget`, what so few images cannot show of any network."""
        least = self.lost(self.given).bound
        if least > self.allowed:
            raise InfeasibleBudget(
                f"keep.accuracy = {-100 * self.allowed:g} cannot be shown on {self.given.images} images: of a network "
                f"that answers all of them as the network as given does they show, by {100 * self.confidence:.4g} %, "
                f"that it loses at most {_points(least)} points; allow more, or choose on more images (data.selection)"
            )

    def said(self, answers: Graded) -> str:
        """Say what is lost, at most, and whether that is within what is allowed."""
        return str(self.judgement(answers)["said"])

    def judgement(self, answers: Graded) -> dict[str, Any]:
        """Return all of it as plain JSON values: `value` and `bound` as `Lost` has them, `allowed`, `confidence`,
        whether it is `kept`, and all that `said` in words."""
        found = self.lost(answers)
        moved = f"loses {_points(found.value)}" if found.value >= 0 else f"gains {_points(-found.value)}"
        at_most = "at most" if found.value >= 0 else "loses at most"
        kept = found.bound <= self.allowed
        within = "within" if kept else "not shown within" if found.value <= self.allowed else "not within"
        said = (
            f"{moved} points, {at_most} {_points(found.bound)} by {100 * self.confidence:.4g} %: {within} "
            f"{_points(self.allowed)}"
        )
        return {**asdict(found), "allowed": self.allowed, "confidence": self.confidence, "kept": kept, "said": said}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "given": self.given.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kept:
        """Read what `to_json` wrote."""
        return cls(**{**data, "given": Graded.from_json(data["given"])})


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
