"""Forms of layers, as text."""

from __future__ import annotations

import pytest

from trimtab.errors import BadInput
from trimtab.spaces.forms.layer_forms import DENSE, parse_form


def test_a_form_is_read_from_its_text() -> None:
    assert parse_form("svd 0.25").kind == "factorisation"
    assert parse_form("svd 0.25").amount == 0.25
    assert parse_form("svd .5").text == "svd .5"
    assert parse_form(DENSE).kind == DENSE


@pytest.mark.parametrize(
    "text", ["2:", "svd", "svd 0", "svd 1", "svd 1.5", "svd x", "sdv 0.5", "4:2", "0:4", "dense 0.5"]
)
def test_what_is_not_a_form_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match=text.split(" ")[0]):
        parse_form(text)


def test_patterns_and_ways_of_sharing_are_forms() -> None:
    form = parse_form("2:4")
    assert (form.kind, form.name, form.amount, form.text) == ("pattern", "n:m", 0.5, "2:4")
    assert parse_form("block 0.75").kind == "pattern"
    assert parse_form("hashed 0.25").kind == "sharing"
