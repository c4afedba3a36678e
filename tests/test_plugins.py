from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab import plugins
from trimtab.agents import chosen
from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.search.setup.config import NetworkConfig
from trimtab.search.setup.networks import make_model


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
    assert plugins.load("thing", "pathlib:Path.name", "trimtab.things") is Path.name
    for name in ("math:no_such", "no.such:thing"):
        with pytest.raises(BadInput, match=f"thing '{name}'"):
            plugins.load("thing", name, "trimtab.things")


#: Kind -> all that make one from where it lies.
KINDS: dict[str, Callable[[str], object]] = {
    "agent": chosen,
    "engine": make_engine,
    "network.import": lambda place: make_model(NetworkConfig.model_validate({"import": place})),
}

MINE = """
from torch import nn
from trimtab.agents import Random
from trimtab.evaluators.engines.native import NativeEngine

class Mine:
    agent, engine, network = Random, NativeEngine, nn.Identity
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A module in the current folder of a script, whose path does not have that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])

    def write(code: str) -> str:
        name = f"mine_{abs(hash((code, request.node.name)))}"
        (tmp_path / f"{name}.py").write_text(code)
        return f"{name}:Mine"

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_the_current_folder_is_found(place: Callable[[str], str], kind: str) -> None:
    assert KINDS[kind](f"{place(MINE)}.{kind.partition('.')[0]}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def (", "SyntaxError: "),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import no_such_module", "ModuleNotFoundError: .*'no_such_module'"),
        ("from trimtab.errors import BadInput\nraise BadInput('install it')", "install it"),
        ("", "AttributeError: .*'Mine'"),
    ],
)
def test_whatever_a_module_of_others_raises_is_one_line_that_names_it(
    place: Callable[[str], str], kind: str, code: str, said: str
) -> None:
    where = place(code)
    with pytest.raises(BadInput, match=f"^{kind} '{where}': {said}") as error:
        KINDS[kind](where)
    assert "\n" not in str(error.value)
