"""The least cost that keeps the accuracy: levels of it, and every agent under them, where brute force knows it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluators.fakes import FakeEngine

from trimtab.agents import AGENTS, make
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.price.cost import Cost, CostModel
from trimtab.evaluators.price.table import LatencyTable
from trimtab.search.loop.evaluation import Evaluation, Objective
from trimtab.search.loop.levels import Levels
from trimtab.search.loop.proposer import Proposer
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.kept import Kept
from trimtab.spaces import Options, Policy, Space
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.testing.agents import SPACE, ToyEstimates, toy_space

IMAGES, EVALUATIONS = 2000, 60


class Toy:
    """A space of 2,187 policies whose accuracies are made up, and whose sizes are real."""

    def __init__(self, folder: Path) -> None:
        layers = [op.name for op in SPACE.network.layers]
        formats = (LayerFormat.of(4, 8), INT8, FLOAT)
        self.space: Space = toy_space(
            Options(channels=3, min_keep=0.25, bits=formats, ranks=(), fixed=tuple(layers[4:]))
        )
        self.model = CostModel(self.space, LatencyTable(FakeEngine(), self.space, folder / "latency"))
        self.limits = BudgetLimits(self.model, {})
        self.estimates = ToyEstimates(self.space)
        self.base = self.model.get(self.space.base(), "size")
        self.kept = Kept(self.answers(self.space.base()), 0.1, 0.95)

    def answers(self, policy: Policy) -> Answers:
        accuracy = 0.9 * (1 - float(self.estimates.damage(policy).sum()))
        return Answers.of(np.arange(IMAGES) < round(IMAGES * accuracy))

    def judged(self, policy: Policy) -> Evaluation:
        answers, size = self.answers(policy), self.model.get(policy, "size")
        objective = Objective.of("size", self.base, size)
        bare = Evaluation(policy, answers, 0.1, Cost(1.0, int(size), 1, 1), {}, {}, None, objective)
        return bare.answered(answers, 0.1, self.kept)

    def proposer(self, agent: str, seed: int = 0) -> Proposer:
        return Proposer(
            lambda limits: make(agent, self.space, limits, seed, self.estimates), self.limits, minimise="size"
        )

    def least(self, knobs: tuple[str, ...] = ("channels", "bits", "form")) -> float:
        """The least share of the size that keeps the accuracy, of all policies that decide such knobs only."""
        choices = [
            range(len(knob.choices)) if knob.kind in knobs else [len(knob.choices) - 1] for knob in self.space.knobs
        ]
        every = (self.space.decode(list(vector)) for vector in itertools.product(*choices))
        return min(self.model.get(p, "size") / self.base for p in every if self.kept.violation(self.answers(p)) <= 0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def least(toy: Toy) -> float:
    return toy.least()


def search(proposer: Proposer, toy: Toy, evaluations: int) -> list[Evaluation]:
    found: list[Evaluation] = []
    while len(found) < evaluations and (policies := proposer.ask(1)):
        found += map(toy.judged, policies)
        proposer.tell(found[-1])
    return found


#: How far above the least size an agent's best may be: those that plan find it, the others come near it.
REACH = {
    **dict.fromkeys(AGENTS, 1.06),
    **dict.fromkeys(("milp", "greedy", "haq"), 1.02),
    **dict.fromkeys(("random", "random-projected", "amc", "amc-td3", "amc-sac"), 1.2),
}


@pytest.mark.parametrize("agent", sorted(set(AGENTS) - {"uniform", "haq"}))
def test_every_agent_comes_near_the_smallest_network_that_keeps_the_accuracy(
    toy: Toy, least: float, agent: str
) -> None:
    found = search(toy.proposer(agent), toy, 42 if agent.startswith("amc") else EVALUATIONS)  # past its warm-up
    shares = [e.objective.share.middle for e in found if e.feasible and e.objective is not None]
    assert least * (1 - 1e-9) <= min(shares) <= REACH[agent] * least
    assert len({e.policy.id for e in found}) == len(found)


def test_an_agent_of_bits_comes_near_the_smallest_that_bits_alone_make(toy: Toy) -> None:
    found = search(toy.proposer("haq"), toy, EVALUATIONS)
    shares = [e.objective.share.middle for e in found if e.feasible and e.objective is not None]
    assert min(shares) <= REACH["haq"] * toy.least(("bits",))


def test_uniform_tries_all_that_is_uniform_and_ends(toy: Toy) -> None:
    found = search(toy.proposer("uniform"), toy, 10_000)
    assert len(found) < 100
    formats = (LayerFormat.of(4, 8), INT8, FLOAT)
    uniform = {toy.space.uniform(keep / 100, bits).id for keep in range(1, 101) for bits in formats}
    assert {e.policy.id for e in found} <= uniform


@pytest.mark.parametrize("agent", ["milp", "evolution", "random", "uniform", "tpe"])
@pytest.mark.parametrize("done", [1, 7, 20])
def test_a_resumed_search_proposes_what_the_whole_one_did(toy: Toy, agent: str, done: int) -> None:
    whole, states = toy.proposer(agent), []
    asked: list[list[Policy]] = []
    while len(asked) < done + 6 and (policies := whole.ask(2)):
        asked.append(policies)
        states.append(json.loads(json.dumps(whole.state())))
        for policy in policies:
            whole.tell(toy.judged(policy))
    resumed = toy.proposer(agent)
    for policies, state in list(zip(asked, states, strict=True))[:done]:
        resumed.resume(state)
        for policy in policies:
            resumed.tell(toy.judged(policy))
    for policies in asked[done:]:
        assert resumed.ask(2) == policies
        for policy in policies:
            resumed.tell(toy.judged(policy))


@given(st.floats(0.02, 0.99), st.integers(1, 60))
def test_the_levels_close_in_on_the_least_cost(threshold: float, spare: int) -> None:
    """A searcher that finds what keeps the accuracy at a level, where there is anything, just below that level."""
    levels = Levels(0.01, 1.0)
    for _ in range(30 + spare):
        cost = levels.level * 0.999
        assert 0.01 <= levels.low <= levels.high <= 1.0
        assert levels.smallest <= levels.level < levels.high
        levels = Levels.from_json(json.loads(json.dumps(levels.to_json())))
        levels.told(cost, threshold - cost)
    assert threshold <= levels.high <= 1.03 * threshold or levels.high == 1.0


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(-1.0, 3.0)), max_size=60))
def test_whatever_is_told_a_level_can_be_reached_and_is_no_more_than_the_least_found(
    told: list[tuple[float, float]],
) -> None:
    levels = Levels(0.05, 1.0)
    for share, excess in told:
        cost = max(levels.smallest, share * levels.level)
        levels.told(cost, excess)
        assert levels.smallest <= levels.level <= levels.high
    while levels.exhausted():
        assert levels.level <= levels.high
