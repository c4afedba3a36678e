from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.agents import Gp, Random
from trimtab.agents.gp import GpParameters, fitted_at
from trimtab.agents.random import draw
from trimtab.agents.stages import stages
from trimtab.spaces import Policy
from trimtab.testing.agents import ToyLimits, ToyScore, best, damage, toy_space

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
ACCURACY = damage(SPACE)


def score(policy: Policy) -> ToyScore:
    return ToyScore(ACCURACY(policy), LIMITS.violations(policy))


def told(results: int) -> Gp:
    agent = Gp(SPACE, LIMITS, 0)
    rng = np.random.default_rng(0)
    for _ in range(results):
        policy = SPACE.decode(draw(SPACE, rng))
        agent.tell(policy, score(policy))
    return agent


def test_it_beats_random_at_the_same_number_of_evaluations() -> None:
    random = [best(Random(SPACE, LIMITS, seed), ACCURACY, 40) for seed in range(2)]
    gp = [best(Gp(SPACE, LIMITS, seed), ACCURACY, 40) for seed in range(2)]
    assert 1 - np.mean(gp) < 0.9 * (1 - np.mean(random)), (gp, random)


def test_levels_are_mean_places() -> None:
    agent = Gp(SPACE, LIMITS, 0)
    policy = SPACE.decode(draw(SPACE, np.random.default_rng(3)))
    agent.tell(policy, score(policy))
    vector = SPACE.encode(policy)
    for stage, knobs in enumerate(stages(SPACE, GpParameters().stages)):
        for kind in ("channels", "bits", "form"):
            places = [vector[i] / (len(SPACE.knobs[i].choices) - 1) for i in knobs if SPACE.knobs[i].kind == kind]
            if places:
                assert agent._study.trials[0].params[f"{kind} {stage}"] == pytest.approx(np.mean(places))


def test_the_best_policys_own_levels_are_the_best_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = told(30)
    results = [(LIMITS.feasible(SPACE.decode(v)), ACCURACY(SPACE.decode(v)), v) for v in agent._vectors]
    winner = max(results, key=lambda found: found[:2])[2]
    own = agent._levels(np.array(winner))
    monkeypatch.setattr(agent, "_ask_process", lambda results: own)
    assert agent._sample(1) == agent._sample(2) == winner
    # Levels that move by little are reached on average over a level's knobs.
    agent._fit = None
    monkeypatch.setattr(agent, "_ask_process", lambda results: np.full(len(own), 0.5))
    reached = np.mean([agent._levels(np.array(agent._sample(seed))) for seed in range(200)], axis=0)
    assert np.abs(reached - 0.5).max() < 0.15


def test_fits_are_as_many_as_the_results_are_new() -> None:
    fits = {fitted_at(results, 20) for results in range(20, 1001)}
    assert min(fits) == 20
    assert [fitted_at(results, 20) for results in range(20, 26)] == [20, 20, 22, 22, 24, 24]
    assert 30 < len(fits) < 45
    assert all(results * 0.88 < fitted_at(results, 20) <= results for results in range(20, 1001))


def test_threads_are_as_many_as_before() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        told(25)._ask_process(25)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_what_it_asks_the_process_depends_on_no_thread_count() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(told(40)._ask_process(40).tolist())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
