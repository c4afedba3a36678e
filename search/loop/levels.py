"""The levels of a cost that is minimised: limits under which the most accurate network is looked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Levels"]

#: Evaluations that do not keep the accuracy after which a level counts as failed, at first.
PATIENCE = 2

#: The bracket is narrow where its ends are within this share of each other. Then it is opened again, to between these
#: shares of its upper end, and levels are given twice the patience.
NARROW = 0.02
OPENED = (0.8, 0.95)


@dataclass
class Levels:
    """The levels of a cost, one after the other: each is a budget under which the most accurate network is looked for.

    The least cost at which the accuracy is kept lies between `low`, below which it was looked for in vain, or which
    nothing is below, and `high`, the least that was found to keep it. Each level halves the bracket (on a logarithmic
    scale): one that keeps it becomes `high`, a level under which `patience` evaluations did not becomes `low`. So the
    question of the least cost is answered by those of the highest accuracy under a limit (the epsilon-constraint
    method: Haimes et al. 1971), and whoever answers these serves. As a search may miss what there is, `low` is no more
    than an opinion: once the bracket is narrow it is opened again, with more patience, about down to where the
    evaluation lies that failed by least.

    Costs are positive, `smallest` is the least that can be reached. `nearest` is the cost of the evaluation that failed
    by least, by `miss`, of those that cost less than `high`. What follows depends on what is told alone.
    """

    smallest: float
    high: float
    low: float = field(default=0.0)
    patience: int = PATIENCE
    failed: int = 0
    nearest: float = 0.0
    miss: float | None = None

    def __post_init__(self) -> None:
        self.low = max(self.low, self.smallest)

    @property
    def level(self) -> float:
        """The limit on the cost of what is evaluated next: at least `smallest`, and less than `high` if that can be."""
        return max(math.sqrt(self.low * self.high), self.smallest)

    def told(self, cost: float, excess: float) -> bool:
        """Take one evaluation under the level into account; return whether it ends the level.

        `excess` is by how much it fails, at most 0 where it keeps the accuracy and every budget.
        """
        if excess <= 0:
            if cost >= self.high:
                return False
            self.high = max(cost, self.smallest)
            if self.nearest >= self.high:
                self.nearest, self.miss = 0.0, None
            if self.low >= self.high:
                self._open()
            return self._ended()
        if cost < self.high and (self.miss is None or excess < self.miss):
            self.nearest, self.miss = cost, excess
        self.failed += 1
        if self.failed < self.patience:
            return False
        self.low = self.level
        return self._ended()

    def exhausted(self) -> bool:
        """Take into account that nothing is left to evaluate under the level; return whether there is another one."""
        if self._is_narrow():
            return False
        self.low, self.failed = self.level, 0
        return True

    def _ended(self) -> bool:
        self.failed = 0
        if self._is_narrow():
            self.patience *= 2
            self._open()
        return True

    def _open(self) -> None:
        least, most = OPENED
        self.low = max(min(max(self.nearest, least * self.high), most * self.high), self.smallest)

    def _is_narrow(self) -> bool:
        return self.high <= self.low * (1 + NARROW)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Levels:
        """Read what `to_json` wrote."""
        return cls(**data)
