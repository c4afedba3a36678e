from __future__ import annotations

import math

import pytest

from trimtab import plugins
from trimtab.errors import BadInput


class Point:
    """An entry point that a package declares."""

    name = "brought"

    def load(self) -> str:
        return "loaded"


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()] if group == "trimtab.things" else [])


def test_names_are_our_own_of_a_package_or_of_a_module() -> None:
    for name in ("own", "brought", "math:pi", "no.such:thing"):
        plugins.check_known("thing", name, "trimtab.things", ["own"])
    for name, group in (("ovn", "trimtab.things"), ("brought", "trimtab.others")):
        with pytest.raises(BadInput, match=f"unknown thing '{name}'"):
            plugins.check_known("thing", name, group, ["own"])


def test_what_a_name_stands_for_is_loaded_or_said_to_be_missing() -> None:
    assert plugins.load("thing", "brought", "trimtab.things") == "loaded"
    assert plugins.load("thing", "math:pi", "trimtab.things") == math.pi
    for name in ("math:no_such", "no.such:thing"):
        with pytest.raises(BadInput, match=f"thing '{name}'"):
            plugins.load("thing", name, "trimtab.things")
