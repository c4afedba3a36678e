"""The agent of one's own in docs/agents.md is complete, short, keeps the contract, and is of use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from tests.agents.test_contract import spaces_without_some_kind
from tests.agents.test_contract import test_a_space_of_one_kind_of_knob_will_do as check_a_space_of_one_kind

from trimtab.agents import Agent, Random, label, make
from trimtab.spaces import Space
from trimtab.testing.agents import ACCURACY, LIMITS, SPACE, AgentContract, search

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"


def example() -> str:
    """Return the agent that the page's first Python block defines."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line]) <= 30
    return block[1]


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example, in a module that other processes can import, too."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_climber.py").write_text(example())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield label(import_module("own_climber").Climber)


class TestTheExample(AgentContract):
    """As the docstring of `trimtab.testing.agents` has it."""


@pytest.mark.parametrize("space", spaces_without_some_kind(), ids=["channels", "bits", "ranks"])
def test_a_space_of_one_kind_of_knob_will_do(name: str, space: Space) -> None:
    check_a_space_of_one_kind(name, space)


def test_the_example_beats_random(name: str) -> None:
    def best(agent: Agent) -> float:
        return max(map(ACCURACY, search(agent, 60)))

    climber = [best(make(name, SPACE, LIMITS, seed)) for seed in range(3)]
    random = [best(Random(SPACE, LIMITS, seed)) for seed in range(3)]
    assert 1 - np.mean(climber) < 0.8 * (1 - np.mean(random))
