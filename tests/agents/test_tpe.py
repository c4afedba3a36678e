from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest

from trimtab.agents import Agent, Random, Tpe
from trimtab.agents.random import draw
from trimtab.agents.tpe import TpeParameters
from trimtab.spaces import LayerDecision, Options, Policy
from trimtab.spaces.numbers.formats import FLOAT, LayerFormat
from trimtab.testing.agents import ToyLimits, ToyScore, best, damage, distance_to, python, toy_space

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
TARGET = LIMITS.project(SPACE.decode(draw(SPACE, np.random.default_rng(99))))


@pytest.mark.parametrize("accuracy", [distance_to(SPACE, TARGET), damage(SPACE)], ids=["target", "damage"])
def test_it_beats_random_at_the_same_number_of_evaluations(accuracy: Callable[[Policy], float]) -> None:
    random = [best(Random(SPACE, LIMITS, seed), accuracy, 80) for seed in range(4)]
    tpe = [best(Tpe(SPACE, LIMITS, seed), accuracy, 80) for seed in range(4)]
    assert 1 - np.mean(tpe) < 0.85 * (1 - np.mean(random))


def test_the_target_is_the_optimum_and_feasible() -> None:
    assert LIMITS.feasible(TARGET)
    assert distance_to(SPACE, TARGET)(TARGET) == 1.0


def test_what_violates_a_budget_when_measured_is_avoided() -> None:
    """The measured cost may differ from the price: here the limits know nothing of a budget for kept channels."""
    accuracy = damage(SPACE)

    def share_met(agent: Agent, tell_violations: bool) -> float:
        met = []
        for _ in range(80):
            (policy,) = agent.ask(1)
            violation = sum(policy.channels.values()) / 50 - 1
            met.append(violation <= 0)
            agent.tell(policy, ToyScore(accuracy(policy), {"latency": violation} if tell_violations else {}))
        return float(np.mean(met[TpeParameters().startup :]))

    agents = [Tpe(SPACE, ToyLimits(SPACE, 1.0, 1.0), seed) for seed in (0, 0, 1, 1, 2, 2)]
    told = np.mean([share_met(agent, True) for agent in agents[::2]])
    untold = np.mean([share_met(agent, False) for agent in agents[1::2]])
    assert told > untold + 0.3, (told, untold)


def test_a_policy_outside_the_choices_is_known_but_not_modelled() -> None:
    space = toy_space(Options(bits=(LayerFormat.of(4, 8), FLOAT)))
    agent = Tpe(space, ToyLimits(space, 1.0, 1.0), 0)
    agent.tell(space.int8(), ToyScore(0.9))
    narrow = Policy(space.fingerprint, {**space.base().channels, "conv1": 1}, space.base().layers)
    agent.tell(narrow, ToyScore(0.9))
    odd = {**space.base().layers, "linear": LayerDecision(rank=7)}
    agent.tell(Policy(space.fingerprint, space.base().channels, odd), ToyScore(0.9))
    assert agent._study.trials == []
    assert len(agent.ask(TpeParameters().startup + 3)) == TpeParameters().startup + 3


def test_many_results_are_seen_as_their_best_tenth_and_a_sample_of_the_others() -> None:
    agent = Tpe(SPACE, LIMITS, 0)
    rng = np.random.default_rng(0)
    told = []
    for _ in range(4 * TpeParameters().shown):
        accuracy, violation = rng.random(), rng.normal()
        agent.tell(SPACE.decode(draw(SPACE, rng)), ToyScore(accuracy, {"size": violation}))
        told.append((violation > 0, violation if violation > 0 else 0.0, -accuracy))
    best = sorted(range(len(told)), key=lambda number: told[number])[: TpeParameters().shown // 10]
    one, other = ([trial.number for trial in agent._shown(seed)] for seed in (1, 2))
    for numbers in (one, other):
        assert len(set(numbers)) == len(numbers) == TpeParameters().shown
        assert numbers == sorted(numbers)
        assert set(best) <= set(numbers)
    assert one == [trial.number for trial in agent._shown(1)] != other


def test_optuna_is_silent_and_stays_as_talkative_as_it_was() -> None:
    code = """
import optuna
from tests.agents import test_tpe as t
before = optuna.logging.get_verbosity()
agent = t.Tpe(t.SPACE, t.LIMITS, 0)
t.best(agent, lambda policy: 0.5, 22)
assert optuna.logging.get_verbosity() == before
"""
    run = python(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_verbosity_is_restored_when_it_was_changed() -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        Tpe(SPACE, LIMITS, 0)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
