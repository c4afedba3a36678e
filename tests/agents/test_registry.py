"""Choices of agents, as configurations, command lines and programs write them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import pytest

from trimtab.agents import AGENTS, Agent, Evolution, Random, chosen, label, make
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
        (Policy, "not Policy"),
    ],
)
def test_what_is_no_choice_is_refused_with_what_would_be(choice: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        chosen(choice)


def test_a_class_of_one_s_own_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, agent in list(AGENTS.items()):
        monkeypatch.setitem(AGENTS, name, agent)
    monkeypatch.delitem(AGENTS, "mine", raising=False)
    assert label(Mine) == "mine"
    assert isinstance(make("mine", SPACE, LIMITS, 0), Mine)
    AGENTS.pop("mine")

    class Impostor(Random):
        """Another agent of a name that is taken."""

    with pytest.raises(BadInput, match="another agent of the name 'random'"):
        chosen(Impostor)


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
