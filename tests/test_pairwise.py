"""Every meeting occurs, by brute force, in about as few rows as that can take."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pairwise import covering, pairwise

SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=5)


@settings(max_examples=50)
@given(sizes=SIZES, strength=st.integers(1, 2))
def test_every_meeting_occurs(sizes: list[int], strength: int) -> None:
    rows = covering(sizes, strength)
    for arguments in combinations(range(len(sizes)), strength):
        met = {tuple(row[argument] for argument in arguments) for row in rows}
        assert met == set(product(*(range(sizes[argument]) for argument in arguments)))
    assert len(set(rows)) == len(rows) <= prod(sizes)


def test_rows_are_few() -> None:
    assert len(covering([12, 4, 4, 5])) == 12 * 5
    assert len(covering([2] * 7)) <= 8  # six are enough; all combinations are 128
    assert len(covering([12, 4, 4, 5], 3)) <= 1.2 * 12 * 4 * 5


def test_as_strong_as_there_are_arguments_is_all_combinations() -> None:
    assert sorted(covering([3, 2, 4], 3)) == sorted(product(range(3), range(2), range(4)))


def test_a_mark_names_its_cases() -> None:
    mark = pairwise(op=["add", "mul"], source=[None, (1, 2)]).mark
    assert mark.args == (("op", "source"), [("add", None), ("add", (1, 2)), ("mul", None), ("mul", (1, 2))])
    assert mark.kwargs["ids"] == ["add-None", "add-source1", "mul-None", "mul-source1"]
