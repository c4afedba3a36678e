"""The promises of every agent, whoever it is: a new one adds a line to the registry and passes this."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from trimtab.agents import AGENTS, Random, chosen, make
from trimtab.errors import BadInput, TrimtabError
from trimtab.spaces import Options, Policy, Space
from trimtab.spaces.numbers.formats import INT8
from trimtab.testing.agents import (
    LIMITS,
    SPACE,
    TINY,
    AgentContract,
    ToyEstimates,
    ToyLimits,
    fresh,
    ids,
    python,
    toy_space,
)


@pytest.mark.parametrize("name", sorted(AGENTS))
class TestEveryAgent(AgentContract):
    def test_has_the_name_it_is_registered_under(self, name: str) -> None:
        assert fresh(name, 0).name == name

    def test_proposes_the_same_in_another_process(self, name: str) -> None:
        assert ids_elsewhere()[name] == ids(name)


def every_id() -> dict[str, list[str]]:
    return {name: ids(name) for name in AGENTS}


@cache
def ids_elsewhere() -> dict[str, list[str]]:
    """What every registered agent proposes in another process: one for all of them."""
    other = python("import json; from tests.agents import test_contract as t; print(json.dumps(t.every_id()))")
    assert other.returncode == 0, other.stderr
    found: dict[str, list[str]] = json.loads(other.stdout)
    return found


def test_an_unknown_agent_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown agent 'unifrom'; did you mean 'uniform'"):
        make("unifrom", SPACE, LIMITS, 0)


@pytest.mark.parametrize("proposal", [5, [0, 1], "policy", np.zeros((4, 40))], ids=["int", "list", "str", "ndarray"])
def test_what_is_no_policy_is_refused_with_the_agent_s_name(proposal: object) -> None:
    class Mistaken(Random):
        name = "mistaken"

        def _propose(self, number: int) -> Any:
            return proposal

    with pytest.raises(BadInput, match=f"agent 'mistaken': .* not {type(proposal).__name__}: ") as error:
        Mistaken(SPACE, LIMITS, 0).ask(1)
    assert "\n" not in str(error.value)


def test_limits_that_break_their_promise_are_found_out() -> None:
    class Broken(ToyLimits):
        def project(self, policy: Policy) -> Policy:
            return self.space.base()

    with pytest.raises(TrimtabError, match="defect of the limits"):
        make("random", SPACE, Broken(SPACE), 0).ask(1)


def test_importing_the_agents_imports_no_others_packages() -> None:
    imported = python("import sys, trimtab.agents; print(*sys.modules)").stdout.split()
    assert "trimtab.agents" in imported
    assert not {"optuna", "gymnasium", "stable_baselines3"} & set(imported)


def spaces_without_some_kind() -> list[Space]:
    return [
        TINY,
        toy_space(Options(channels=1, ranks=())),
        toy_space(Options(channels=1, bits=(INT8,))),
    ]


@pytest.mark.parametrize("space", spaces_without_some_kind(), ids=["channels", "bits", "ranks"])
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_space_of_one_kind_of_knob_will_do(name: str, space: Space) -> None:
    limits = ToyLimits(space, size=0.99, macs=1.0)
    if not {knob.kind for knob in space.knobs} & set(chosen(name).agent.decides):
        with pytest.raises(BadInput, match="decides"):
            make(name, space, limits, 0, ToyEstimates(space))
        return
    assert make(name, space, limits, 0, ToyEstimates(space)).ask(2)
