"""Preference: which of several evaluations is the best, where their accuracies are known from the same few images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from trimtab.evaluators.answers import paired
from trimtab.search.loop.evaluation import Evaluation

__all__ = ["ERRORS", "RULE", "preferred", "ranked", "tie"]

#: A difference in accuracy of at most so many of its standard errors is a tie.
ERRORS = 2.0

#: The rule, for whoever reads a report.
RULE = (
    "of the networks whose accuracy the selection images do not tell from the highest one (a paired difference within "
    f"{ERRORS:g} standard errors), the one of the lowest loss, then the smallest; the loss is the mean KL divergence "
    "from the untouched network's predictions, in nats"
)


def tie(a: Evaluation, b: Evaluation) -> bool:
    """Return whether the images do not tell the accuracies of two evaluations apart."""
    difference = paired(a.answers, b.answers)
    return abs(difference.value) <= ERRORS * difference.error


def preferred(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """Return the best one: of all that tie with the most accurate, the one of the lowest loss, then the smallest.

    Ties are not transitive, so they are with one, the leader: a chain of them would lead to any accuracy. The order of
    the evaluations does not matter. None where there are none.
    """
    given = list(evaluations)
    leader = min(given, key=lambda e: (-e.accuracy, *_order(e)), default=None)
    return None if leader is None else min((e for e in given if tie(e, leader)), key=_order)


def ranked(evaluations: Iterable[Evaluation]) -> Iterator[Evaluation]:
    """Yield all, the best one first: each is what is preferred among those that are left."""
    left = list(evaluations)
    while (best := preferred(left)) is not None:
        left.remove(best)
        yield best


def _order(evaluation: Evaluation) -> tuple[Any, ...]:
    # Two that differ in their answers alone tie with different ones: a policy's name must not say with which.
    return evaluation.loss, evaluation.cost.size, evaluation.answers.bits, evaluation.policy.id
