"""The agent of one's own in docs/agents.md is complete, short, keeps the contract, and is of use."""

from __future__ import annotations

import re
import runpy
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tests.agents.test_contract import spaces_without_some_kind
from tests.agents.test_contract import test_a_space_of_one_kind_of_knob_will_do as check_a_space_of_one_kind

from trimtab.agents import AGENTS, Agent, Random
from trimtab.spaces import Space
from trimtab.testing.agents import ACCURACY, LIMITS, SPACE, AgentContract, ids, python, search

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"


def example() -> type[Agent]:
    """Return the agent that the page's first Python block defines."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line]) <= 30
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(block[1])
        file.flush()
        found: type[Agent] = runpy.run_path(file.name)["Climber"]
    return found


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """The example, registered as any agent is."""
    agent = example()
    monkeypatch.setitem(AGENTS, agent.name, agent)
    return agent.name


def registered_ids(name: str) -> list[str]:
    """For another process, which finds the example on the page again."""
    AGENTS[name] = example()
    return ids(name)


class TestTheExample(AgentContract):
    def test_proposes_the_same_in_another_process(self, name: str) -> None:
        code = "from tests.agents import test_docs as t; import sys; print(*t.registered_ids(sys.argv[1]))"
        other = python(code, name)
        assert other.stdout.split() == ids(name), other.stderr


@pytest.mark.parametrize("space", spaces_without_some_kind(), ids=["channels", "bits", "ranks"])
def test_a_space_of_one_kind_of_knob_will_do(name: str, space: Space) -> None:
    check_a_space_of_one_kind(name, space)


def test_the_example_beats_random(name: str) -> None:
    def best(agent: Agent) -> float:
        return max(map(ACCURACY, search(agent, 60)))

    climber = [best(AGENTS[name](SPACE, LIMITS, seed)) for seed in range(3)]
    random = [best(Random(SPACE, LIMITS, seed)) for seed in range(3)]
    assert 1 - np.mean(climber) < 0.8 * (1 - np.mean(random))
