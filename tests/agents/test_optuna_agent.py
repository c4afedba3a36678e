from __future__ import annotations

import pytest

from trimtab.agents import Gp, Milp, Nsga2, Tpe, Uniform
from trimtab.agents.optuna_agent import OptunaAgent, OptunaParameters, excess
from trimtab.spaces import Policy
from trimtab.testing.agents import ToyEstimates, ToyLimits, ToyScore, damage, toy_space

FIRST = OptunaParameters().first

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
ACCURACY = damage(SPACE)
AGENTS: list[type[OptunaAgent]] = [Tpe, Nsga2, Gp]


@pytest.mark.parametrize("agent", AGENTS)
def test_the_exact_and_the_plain_answers_come_first(agent: type[OptunaAgent]) -> None:
    estimates = ToyEstimates(SPACE)
    (optimum,) = Milp(SPACE, LIMITS, 0, estimates).ask(1)
    first = agent(SPACE, LIMITS, 0, estimates).ask(FIRST)
    assert first[0] == optimum
    assert set(ids(Uniform(SPACE, LIMITS, 0).ask(FIRST // 2))) <= set(ids(first))


@pytest.mark.parametrize("agent", AGENTS)
def test_without_estimates_the_plain_answers_come_first(agent: type[OptunaAgent]) -> None:
    assert agent(SPACE, LIMITS, 0).ask(FIRST) == Uniform(SPACE, LIMITS, 0).ask(FIRST)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_optimum_of_the_estimates_is_not_lost(agent: type[OptunaAgent]) -> None:
    """`ToyEstimates` knows everything: nothing told later is better than what came first, and it stays the best."""
    asked = agent(SPACE, LIMITS, 0, ToyEstimates(SPACE))
    values = []
    for _ in range(30):
        (policy,) = asked.ask(1)
        values.append(ACCURACY(policy))
        asked.tell(policy, ToyScore(values[-1], LIMITS.violations(policy)))
    assert max(values) == values[0]


@pytest.mark.parametrize(
    ("violations", "expected"),
    [({"size": 0.25, "macs": -0.5, "latency": 0.5}, 0.75), ({"size": -0.25, "macs": -0.5}, -0.25), ({}, -1.0)],
)
def test_the_excess_adds_violations_up_or_is_the_smallest_slack(violations: dict[str, float], expected: float) -> None:
    assert excess(ToyScore(0.5, violations)) == expected


def ids(policies: list[Policy]) -> list[str]:
    return [policy.id for policy in policies]
