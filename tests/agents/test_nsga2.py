from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trimtab.agents import Agent, Nsga2, Random
from trimtab.agents.nsga2 import GENERATION, Nsga2Parameters
from trimtab.agents.random import draw
from trimtab.testing.agents import ToyLimits, ToyScore, damage, toy_space

POPULATION = Nsga2Parameters().population

SPACE = toy_space()
LIMITS = ToyLimits(SPACE, size=0.6, macs=1.0)
ACCURACY = damage(SPACE)
Point = tuple[float, float]  # share of the size budget, accuracy


def evaluated(agent: Agent, evaluations: int) -> list[Point]:
    points = []
    for _ in range(evaluations):
        (policy,) = agent.ask(1)
        points.append((LIMITS.violations(policy)["size"] + 1, ACCURACY(policy)))
        agent.tell(policy, ToyScore(points[-1][1], LIMITS.violations(policy)))
    return points


def hypervolume(points: list[Point]) -> float:
    """The area of the unit square that points dominate, by their staircase."""
    area, best = 0.0, 0.0
    ordered = [*sorted(points), (1.0, 0.0)]
    for (cost, accuracy), (following, _) in pairwise(ordered):
        best = max(best, accuracy)
        area += best * (following - cost)
    return area


def test_its_front_covers_more_than_that_of_random() -> None:
    random = [hypervolume(evaluated(Random(SPACE, LIMITS, seed), 200)) for seed in range(3)]
    nsga2 = [hypervolume(evaluated(Nsga2(SPACE, LIMITS, seed), 200)) for seed in range(3)]
    assert min(nsga2) > max(random), (nsga2, random)


def test_the_first_parents_are_the_least_dominated() -> None:
    agent = Nsga2(SPACE, LIMITS, 0)
    rng = np.random.default_rng(0)
    points = rng.random((POPULATION, 2))
    violated = rng.random(2 * POPULATION) < 0.2
    # One generation, and another one that is worse in everything: all parents come from the first.
    points = np.concatenate([points, points + np.array([1, -1])])
    for (cost, accuracy), over in zip(points, violated, strict=True):
        score = ToyScore(accuracy, {"size": cost - 3, "macs": 0.5 if over else -0.5})
        agent.tell(SPACE.decode(draw(SPACE, rng)), score)
    agent.ask(1)
    trials = agent._study.trials
    assert [trial.system_attrs[GENERATION] for trial in trials] == [0] * POPULATION + [1] * POPULATION
    from optuna.samplers import NSGAIISampler

    study = agent._study.study(NSGAIISampler(population_size=POPULATION))
    parents = {trial.number for trial in study.sampler.get_parent_population(study, 2)}
    assert len(parents) == POPULATION

    def dominates(a: int, b: int) -> bool:
        if violated[a] or violated[b]:
            return bool(violated[b] and not violated[a])
        (cost, accuracy), (other_cost, other_accuracy) = points[a], points[b]
        no_worse = cost <= other_cost and accuracy >= other_accuracy
        return bool(no_worse and (cost < other_cost or accuracy > other_accuracy))

    assert not any(dominates(out, parent) for parent in parents for out in set(range(2 * POPULATION)) - parents)


@pytest.mark.parametrize("told", [POPULATION, 3 * POPULATION + 5])
def test_telling_again_rebuilds_the_generations(told: int) -> None:
    agent, again = Nsga2(SPACE, LIMITS, 1), Nsga2(SPACE, LIMITS, 1)
    for _ in range(told):
        (policy,) = agent.ask(1)
        score = ToyScore(ACCURACY(policy), LIMITS.violations(policy))
        agent.tell(policy, score)
        again.tell(policy, score)
    again.load(agent.state())
    assert agent.ask(20) == again.ask(20)
