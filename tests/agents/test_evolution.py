from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trimtab.agents import Evolution, Milp, Random, Uniform
from trimtab.agents.evolution import EvolutionParameters
from trimtab.agents.random import draw
from trimtab.agents.stages import stages
from trimtab.spaces import LayerDecision, Options, Policy
from trimtab.testing.agents import ToyEstimates, ToyLimits, ToyScore, best, damage, distance_to, toy_space

USUAL = EvolutionParameters()

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
TARGET = LIMITS.project(SPACE.decode(draw(SPACE, np.random.default_rng(99))))
KNOBS = [knob.name for knob in SPACE.knobs]


@pytest.mark.parametrize("accuracy", [distance_to(SPACE, TARGET), damage(SPACE)], ids=["target", "damage"])
def test_it_beats_random_at_the_same_number_of_evaluations(accuracy: Callable[[Policy], float]) -> None:
    random = [best(Random(SPACE, LIMITS, seed), accuracy, 100) for seed in range(3)]
    evolution = [best(Evolution(SPACE, LIMITS, seed), accuracy, 100) for seed in range(3)]
    assert 1 - np.mean(evolution) < 0.75 * (1 - np.mean(random))


def test_the_founders_are_milp_s_or_else_the_best_uniform_policies() -> None:
    estimates = ToyEstimates(SPACE)
    known = Evolution(SPACE, LIMITS, 3, estimates).ask(USUAL.founders)
    assert known == Milp(SPACE, LIMITS, 3, estimates).ask(USUAL.founders)
    assert Evolution(SPACE, LIMITS, 3).ask(USUAL.founders) == Uniform(SPACE, LIMITS, 0).ask(USUAL.founders)


def test_a_group_mutates_with_the_layers_that_read_or_write_it() -> None:
    genes = [{KNOBS[knob] for knob in gene} for gene in Evolution(SPACE, LIMITS, 0)._genes]
    block = {
        "channels:layer1.0.conv1",
        *(f"{kind}:layer1.0.conv{i}" for kind in ("bits", "form") for i in (1, 2)),
    }
    assert block & set(KNOBS) in genes
    assert set.union(*genes) == set(KNOBS)
    assert sum(name.startswith("channels") for gene in genes for name in gene) == len(genes)


def test_layers_without_channel_knobs_are_genes_of_their_own() -> None:
    space = toy_space(Options(channels=1))
    genes = Evolution(space, ToyLimits(space), 0)._genes
    targets = [{space.knobs[knob].target for knob in gene} for gene in genes]
    assert targets == [{op.name} for op in space.network.layers]


def test_a_mutation_stays_within_a_group_and_changes_something() -> None:
    agent = Evolution(SPACE, LIMITS, 0)
    start = SPACE.encode(TARGET)
    for seed in range(50):
        vector = list(start)
        agent._mutate(vector, np.random.default_rng(seed))
        changed = {i for i, (a, b) in enumerate(zip(start, vector, strict=True)) if a != b}
        assert changed
        assert any(changed <= set(gene) for gene in agent._genes)
        SPACE.decode(vector)


def test_a_crossover_takes_whole_stages() -> None:
    agent = Evolution(SPACE, LIMITS, 0)
    ones, zeros = [1] * len(KNOBS), [0] * len(KNOBS)
    children = [agent._crossed(ones, zeros, np.random.default_rng(seed)) for seed in range(30)]
    for child in children:
        assert all(len({child[i] for i in stage}) == 1 for stage in stages(SPACE))
    assert len({tuple(child) for child in children}) > 8


def test_what_has_grown_old_breeds_no_more() -> None:
    agent = Evolution(SPACE, LIMITS, 0)
    agent.tell(TARGET, ToyScore(1.0))
    for seed in range(USUAL.population):
        agent.tell(SPACE.decode(draw(SPACE, np.random.default_rng(seed))), ToyScore(0.1))
    parents = [agent._parent(np.random.default_rng(seed)) for seed in range(40)]
    assert SPACE.encode(TARGET) not in parents


def test_parents_are_the_best_of_several_and_violations_count_first() -> None:
    agent = Evolution(SPACE, LIMITS, 0)
    rng = np.random.default_rng(0)
    for i in range(USUAL.population):
        violated = {"latency": 0.1 * (i % 2)}
        agent.tell(SPACE.decode(draw(SPACE, rng)), ToyScore(0.5 + 0.4 * (i % 2) + i / 1000, violated))
    feasible = [vector for (excess, _), vector in agent._population if excess == 0]
    parents = [agent._parent(np.random.default_rng(seed)) for seed in range(40)]
    assert sum(parent in feasible for parent in parents) >= 38
    assert sum(parent in feasible[len(feasible) // 2 :] for parent in parents) >= 36


def test_a_policy_outside_the_choices_is_known_but_does_not_breed() -> None:
    agent = Evolution(SPACE, ToyLimits(SPACE, 1.0, 1.0), 0)
    odd = {**SPACE.base().layers, "linear": LayerDecision(rank=7)}
    agent.tell(Policy(SPACE.fingerprint, SPACE.base().channels, odd), ToyScore(0.9))
    assert not agent._population
    assert len(agent.ask(USUAL.startup + 3)) == USUAL.startup + 3
