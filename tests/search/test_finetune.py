"""Fine-tuning: what is trained is what is stored, and it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.search.runs import tiny

from trimtab.evaluators.accuracy import accuracy_of, judging_session, torch_logits
from trimtab.search.bench.proxy import rank_correlation
from trimtab.search.finish.finetune import Schedule, finetune
from trimtab.search.progress import Progress
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.policy import Policy


@pytest.fixture(scope="module")
def problem() -> Problem:
    space = {"channels": 4, "bits": [[2, 8], [8, 8], [16, 32], [32, 32]], "ranks": [0.5], "patterns": ["2:4"]}
    return load_problem(tiny(space=space), Progress())


def policies(problem: Problem) -> list[Policy]:
    space = problem.space
    return [
        space.base(),
        space.uniform(0.5, INT8),
        space.uniform(1.0, LayerFormat.of(2, 8)),
        space.uniform(0.5, LayerFormat.of(16, 32), "svd 0.5"),
        space.uniform(1.0, INT8, "2:4"),
    ]


def test_without_a_step_the_candidate_stays_what_it_was(problem: Problem) -> None:
    x = problem.judge.images[:32]
    for policy in policies(problem):
        candidate = problem.judge.candidate(policy)
        same = finetune(candidate, problem.space.normalised, *problem.splits.train(), Schedule(steps=0))
        before, after = torch_logits(candidate, x), torch_logits(same, x)
        # Scales and weights are multiplied by factors of 1 that are rounded.
        assert np.sqrt(((before - after) ** 2).mean()) < 0.02 * before.std(), policy.layers


def test_tuning_gains_and_keeps_bits_and_zeros(problem: Problem) -> None:
    schedule = Schedule(steps=30, batch=32)
    gained = []
    for policy in policies(problem)[1:]:
        candidate = problem.judge.candidate(policy)
        tuned = finetune(candidate, problem.space.normalised, *problem.splits.train(), schedule)
        x, y = problem.splits.train()
        gained.append(accuracy_of(judging_session(tuned), x, y) - accuracy_of(judging_session(candidate), x, y))
        assert tuned.network.shapes == candidate.network.shapes
        for name, (weight, scale) in tuned.int8.items():
            assert set(np.unique(np.abs(weight))) <= set(np.unique(np.abs(candidate.int8[name][0]))) or (
                candidate.decisions[name].format.weight.bits == 8
            )
            assert (scale > 0).all()
        for op in tuned.network.layers:
            weight = op.weight
            assert weight is not None
            if tuned.decisions[op.name].pattern:
                assert not weight[candidate.network.node(op.name).weight == 0].any()
            if tuned.decisions[op.name].format.weight.bits == 16:
                assert not (np.ascontiguousarray(weight).view(np.uint32) & 0xFFFF).any()
    assert np.mean(gained) > 0


def test_it_is_repeatable(problem: Problem) -> None:
    candidate, schedule = problem.judge.candidate(policies(problem)[1]), Schedule(steps=3)
    found = [
        finetune(candidate, problem.space.normalised, *problem.splits.train(), s).network.weights_hash()
        for s in (schedule, schedule, replace(schedule, seed=1))
    ]
    assert found[0] == found[1] != found[2]


def test_rank_correlation_is_spearman_s_with_an_interval_around_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    value, low, high = rank_correlation(x.tolist(), (x + rng.normal(size=40)).tolist())
    assert low < value < high
    assert rank_correlation(x.tolist(), np.exp(x).tolist()) == (
        pytest.approx(1.0),
        pytest.approx(1.0),
        pytest.approx(1.0),
    )
