"""Engines by name, and those that others bring along."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trimtab.errors import BadInput
from trimtab.evaluators.engines import ENGINES, check_engine, make_engine
from trimtab.evaluators.engines.native import NativeEngine


class Stub(NativeEngine):
    """An engine of a user's own."""

    name = "stub"


class NoEngine:
    """Lacks nearly everything."""

    def __init__(self, threads: int) -> None:
        self.threads, self.name, self.signature = threads, "none", "none"


@pytest.mark.parametrize("place", [f"{__name__}:Stub", "brought"])
def test_engines_of_others_are_made_by_their_place_or_their_package(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name = "brought"

        def load(self) -> type[Stub]:
            return Stub

    monkeypatch.setattr("trimtab.plugins.entry_points", lambda group: [Point()] if group == "trimtab.engines" else [])
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Stub=Stub))
    check_engine(place)
    engine = make_engine(place, 2)
    assert (engine.name, engine.threads) == ("stub", 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nativ", "did you mean 'native'"),
        ("no.such.module:Engine", "No module named"),
        ("trimtab.evaluators.engines.native:Nothing", "Nothing"),
    ],
)
def test_what_is_no_engine_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make_engine(name)


def test_what_lacks_a_part_of_an_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ENGINES["native"])
    assert entry.make(1).name == "native"
    monkeypatch.setitem(__import__("sys").modules, "made_up", __import__("types").SimpleNamespace(NoEngine=NoEngine))
    with pytest.raises(BadInput, match="it has no 'has_bf16'"):
        make_engine("made_up:NoEngine")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (type("Made", (), {}), "TypeError: .*takes no arguments"),
        (type("Made", (), {"__init__": lambda self, *, threads: None}), "TypeError: .*positional argument"),
        (type("Made", (), {"__init__": lambda self, threads: {}["device"]}), "KeyError: 'device'"),
        (3, "TypeError: 'int' object is not callable"),
    ],
)
def test_what_cannot_be_made_with_threads_is_refused(made: object, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "made_up", __import__("types").SimpleNamespace(Made=made))
    with pytest.raises(BadInput, match=f"^engine 'made_up:Made': {said}"):
        make_engine("made_up:Made")
