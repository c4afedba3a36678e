"""The engine of one's own in docs/engines.md is chosen by where it lies, and keeps the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.evaluators.engines import Engine, make_engine
from trimtab.testing.engines import EngineContract

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The example that the page's first Python block defines."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_engine.py").write_text(block[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield make_engine("own_engine:Portable")


class TestTheExample(EngineContract):
    """As the docstring of `trimtab.testing.engines` has it."""


def test_the_example_is_told_from_the_engine_that_it_is_derived_from(engine: Engine) -> None:
    assert engine.name == "portable"
    assert "portable" in engine.signature
