"""Choices of agents, as configurations, command lines and programs write them."""

from __future__ import annotations

import sys
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from trimtab.agents import AGENTS, Agent, Evolution, Parameters, Random, chosen, label, make
from trimtab.agents.evolution import EvolutionParameters
from trimtab.errors import BadInput
from trimtab.spaces import Policy
from trimtab.testing.agents import ToyEstimates, ToyLimits, toy_space

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)


class Mine(Agent):
    """An agent of a user's own."""

    name: ClassVar[str] = "mine"

    def _propose(self, number: int) -> Policy | None:
        return self.space.uniform()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("evolution", "evolution"),
        (" evolution() ", "evolution"),
        ("evolution(population=32)", "evolution"),
        ("evolution(crossed=0.25,population=64)", "evolution(population=64, crossed=0.25)"),
        ({"name": "evolution", "population": 64}, "evolution(population=64)"),
        ({"name": "uniform"}, "uniform"),
        (Evolution, "evolution"),
        ("trimtab.agents.random:Random", "trimtab.agents.random:Random"),
    ],
)
def test_a_choice_is_kept_as_text_that_says_the_same(choice: Any, said: str) -> None:
    assert label(choice) == said
    assert chosen(said) == chosen(choice)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_parameter_of_every_agent_can_be_set_and_is_used_as_text(name: str) -> None:
    agent = AGENTS[name]
    for field in fields(agent.takes):
        usual = getattr(agent.takes(), field.name)
        other = usual + 1 if isinstance(usual, int) else usual * 0.99
        found = chosen({"name": name, field.name: other})
        assert getattr(found.parameters, field.name) == other
        assert found.label == f"{name}({field.name}={other})"
        assert chosen(found.label) == found
        assert type(found.make(SPACE, LIMITS, 0, ToyEstimates(SPACE)).parameters) is agent.takes


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("evolutoin", "did you mean 'evolution'"),
        ("evolution(populatoin=3)", "did you mean 'population'"),
        ("evolution(population=1)", "population: Input should be greater than or equal to 2, found 1"),
        ("evolution(population=many)", "population: Input should be a valid integer"),
        ("evolution(population=4)", "a tournament of 8 needs a population of as many"),
        ("evolution(crossed=.nan)", "crossed"),
        ("evolution(population)", "is not a parameter"),
        ("evolution)", "is not an agent"),
        ("uniform(population=3)", "has no parameters"),
        ({"population": 3}, "is written"),
        ("no.such.module:Agent", "No module named"),
        ("trimtab.agents.random:Rundom", "Rundom"),
        ("trimtab.spaces:Policy", "not a class derived from"),
        (Policy, "Policy' is not a class derived from"),
    ],
)
def test_what_is_no_choice_is_refused_with_what_would_be(choice: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        chosen(choice)


def test_a_class_of_one_s_own_is_known_by_where_it_lies() -> None:
    registered = dict(AGENTS)
    assert label(Mine) == f"{__name__}:Mine"
    assert chosen(label(Mine)) == chosen(Mine)
    assert isinstance(make(label(Mine), SPACE, LIMITS, 0), Mine)
    assert registered == AGENTS


def test_a_class_that_a_notebook_defines_again_takes_the_place_of_the_first() -> None:
    def cell() -> type[Agent]:
        class Cell(Random):
            """An agent that no import finds."""

        return Cell

    first, second = cell(), cell()
    labels = {label(first), label(second)}
    assert [chosen(each).agent for each in labels] == [second]


class Parts(Agent):
    """An agent that is whole but for what a test takes away from it."""

    name: ClassVar[str] = "parts"

    def _propose(self, number: int) -> Policy | None:
        return None


class Required(Parameters):
    """Parameters that no class makes as usual."""

    def __init__(self, width: int) -> None: ...


@pytest.mark.parametrize(
    ("base", "parts", "said"),
    [
        (Agent, {"_propose": Parts._propose}, "lacks name: "),
        (Agent, {"name": "parts"}, "lacks _propose: "),
        (Agent, {}, "lacks name, _propose: "),
        (Parts, {"name": 3}, "lacks name: "),
        (Parts, {"takes": Required}, "takes: TypeError: .*width"),
        (Parts, {"takes": dict}, "takes: TypeError: .*dataclass"),
        (Parts, {"__init__": lambda self, space: None}, "__init__: TypeError: too many positional arguments"),
    ],
)
def test_a_class_that_is_not_whole_is_refused_when_it_is_chosen(
    base: type[Agent], parts: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = type("Half", (base,), {**parts, "__module__": "halves"})
    monkeypatch.setitem(sys.modules, "halves", cast(ModuleType, SimpleNamespace(Half=made)))
    for choice in (made, "halves:Half"):
        with pytest.raises(BadInput, match=f"^agent 'halves:Half'.*{said}") as error:
            chosen(choice)
        assert "\n" not in str(error.value)


def test_packages_bring_agents_along(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "brought"

        def load(self) -> type[Agent]:
            return Mine

    monkeypatch.setattr("trimtab.plugins.entry_points", lambda group: [Point()] if group == "trimtab.agents" else [])
    assert isinstance(make("brought", SPACE, LIMITS, 0), Mine)
    with pytest.raises(BadInput, match="brought"):
        chosen("brouhgt")


def test_a_larger_population_is_another_search() -> None:
    few, many = (
        [policy.id for policy in told(make(f"evolution(population={size}, tournament=4)", SPACE, LIMITS, 0))]
        for size in (4, 40)
    )
    assert few[:16] == many[:16]  # the start is the same
    assert few != many


def told(agent: Agent) -> list[Policy]:
    from trimtab.testing.agents import ToyScore, damage

    accuracy, asked = damage(SPACE), []
    for _ in range(40):
        (policy,) = agent.ask(1)
        agent.tell(policy, ToyScore(accuracy(policy), LIMITS.violations(policy)))
        asked.append(policy)
    return asked


def test_parameters_are_checked_in_python_too() -> None:
    with pytest.raises(ValueError, match="population"):
        EvolutionParameters(population=0)
