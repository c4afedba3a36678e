"""Preference: which of several evaluations is the best: the most accurate one, or that of the least cost.

Both are known only so well: accuracies from the same few images, latencies from a few seconds of measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from trimtab.evaluators.answers import paired
from trimtab.search.loop.evaluation import Evaluation

__all__ = ["ERRORS", "best_in_reach", "is_cheaper", "nearest", "preferred", "ranked", "rule", "tie"]

#: A difference in accuracy of at most so many of its standard errors is a tie.
ERRORS = 2.0


def rule(minimise: str | None, loss: str) -> str:
    """Return the rule, for whoever reads a report; `minimise` is the cost that is minimised, if any is, and `loss` says
    what the loss is."""
    if minimise is None:
        tied = (
            "of the networks whose accuracy the selection images do not tell from the highest one (a paired difference "
            f"within {ERRORS:g} standard errors)"
        )
    else:
        tied = f"of the networks that keep the accuracy, and whose {minimise} is not told from the least"
        tied += " (their 95% intervals overlap)" if minimise == "latency" else ""
    return f"{tied}, the one of the lowest loss, then the smallest; the loss is {loss}"


def tie(a: Evaluation, b: Evaluation) -> bool:
    """Return whether two evaluations are not told apart: their accuracies by the images, or, where a cost is minimised,
    their costs by the intervals in which they are known."""
    if a.objective is not None and b.objective is not None:
        return max(a.objective.share.low, b.objective.share.low) <= min(a.objective.share.high, b.objective.share.high)
    difference = paired(a.answers, b.answers)
    return abs(difference.value) <= ERRORS * difference.error


def preferred(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """Return the best one: of all that tie with the most accurate (or with that of the least cost, where a cost is
    minimised), the one of the lowest loss, then the smallest.

    Ties are not transitive, so they are with one, the leader: a chain of them would lead to any accuracy. The order of
    the evaluations does not matter. None where there are none.
    """
    given = list(evaluations)
    leader = min(given, key=lambda e: (_worth(e), *_order(e)), default=None)
    return None if leader is None else min((e for e in given if tie(e, leader)), key=_order)


def ranked(evaluations: Iterable[Evaluation]) -> Iterator[Evaluation]:
    """Yield all, the best one first: each is what is preferred among those that are left."""
    left = list(evaluations)
    while (best := preferred(left)) is not None:
        left.remove(best)
        yield best


def best_in_reach(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """Return what is preferred of all that is feasible, or where nothing is, what is `nearest` to it."""
    given = list(evaluations)
    return preferred(e for e in given if e.feasible) or next(nearest(given), None)


def is_cheaper(a: Evaluation, b: Evaluation) -> bool:
    """Return whether the cost that is minimised is less of one evaluation than of another one, beyond a tie."""
    return not tie(a, b) and _worth(a) < _worth(b)


def nearest(evaluations: Iterable[Evaluation]) -> Iterator[Evaluation]:
    """Yield those that are within every budget on a cost, and do not keep the accuracy: first what may lose least, and
    of those that may lose as much, the cheapest."""
    yield from sorted(
        (e for e in evaluations if e.affordable and not e.feasible),
        key=lambda e: (e.violations["accuracy"], _worth(e), *_order(e)),
    )


def _worth(evaluation: Evaluation) -> float:
    """The less, the better."""
    return -evaluation.accuracy if evaluation.objective is None else evaluation.objective.share.middle


def _order(evaluation: Evaluation) -> tuple[Any, ...]:
    # Two that differ in their answers alone tie with different ones: a policy's name must not say with which.
    return evaluation.loss, evaluation.cost.size, evaluation.answers.key, evaluation.policy.id
