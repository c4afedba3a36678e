"""Covering arrays: a few combinations of a test's arguments in which any two values of any two arguments meet.

Most faults show where one or two arguments have certain values (Kuhn, Wallace and Gallo 2004, Software Fault
Interactions, IEEE Transactions on Software Engineering 30.6); `make mutants` shows what these combinations find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def covering(sizes: Sequence[int], strength: int = 2) -> list[tuple[int, ...]]:
    """Return rows of one value, 0 to size - 1, for each argument: any `strength` arguments meet in all their values.

    Greedy, after AETG (Cohen et al. 1997), but without chance: a row starts from values that have not met yet and goes
    on with those that add most meetings, of equals the one that was used least.
    """
    order = sorted(range(len(sizes)), key=lambda argument: -sizes[argument])

    def meetings(row: dict[int, int]) -> Iterable[tuple[tuple[int, int], ...]]:
        return combinations([(argument, row[argument]) for argument in order if argument in row], strength)

    missing = {
        meeting: None
        for arguments in combinations(order, strength)
        for meeting in product(*([(argument, value) for value in range(sizes[argument])] for argument in arguments))
    }
    used = Counter[tuple[int, int]]()
    rows: list[tuple[int, ...]] = []
    while missing:
        row = dict(next(iter(missing)))
        for argument in order:
            if argument not in row:
                gains = [
                    (sum(meeting in missing for meeting in meetings({**row, argument: value})), -used[argument, value])
                    for value in range(sizes[argument])
                ]
                row[argument] = gains.index(max(gains))
        used.update(row.items())
        for meeting in meetings(row):
            missing.pop(meeting, None)
        rows.append(tuple(row[argument] for argument in range(len(sizes))))
    return rows


def pairwise(*, strength: int = 2, **arguments: Iterable[Any]) -> pytest.MarkDecorator:
    """Return the mark that runs a test on a covering array of its arguments' values."""
    values = {name: list(of) for name, of in arguments.items()}
    rows = covering([len(of) for of in values.values()], strength)
    cases = [tuple(of[i] for of, i in zip(values.values(), row, strict=True)) for row in rows]
    ids = ["-".join(label(name, of[i], i) for (name, of), i in zip(values.items(), row, strict=True)) for row in rows]
    return pytest.mark.parametrize(tuple(values), cases, ids=ids)


def label(name: str, value: object, index: int) -> str:
    """Return what stands for a value in the name of a case."""
    return str(value) if value is None or isinstance(value, str | int | float) else f"{name}{index}"
