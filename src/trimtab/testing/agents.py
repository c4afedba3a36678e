"""The contract of agents, and a toy problem to hold them to it: a small space with budgets and accuracies on which a
whole search takes a second.

An agent of one's own keeps the contract where this passes:

    from trimtab.agents import label
    from trimtab.testing.agents import AgentContract

    class TestMine(AgentContract):
        @pytest.fixture
        def name(self):
            return label(Mine)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.agents import AGENTS, Agent, chosen, make
from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.graph import Array
from trimtab.spaces import Options, Policy, Space, build_space
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.zoo import CifarResNet


@dataclass(frozen=True)
class ToyScore:
    """A result that is made up."""

    accuracy: float
    violations: Mapping[str, float] = field(default_factory=dict)


def toy_space(options: Options | None = None) -> Space:
    """Return the space of a small residual network with random weights."""
    torch.manual_seed(0)
    return build_space(CifarResNet(8, width=8).eval(), torch.zeros(1, 3, 16, 16), options)


class ToyLimits:
    """Weights in bits, and MACs, both at most a share of the untouched network's."""

    def __init__(self, space: Space, size: float = 0.3, macs: float = 0.6) -> None:
        self.space = space
        base = self.costs(space.base())
        self.budgets = {"size": size * base["size"], "macs": macs * base["macs"]}

    def costs(self, policy: Policy) -> dict[str, float]:
        return {name: sum(costs.values()) for name, costs in self.by_layer(policy).items()}

    def by_layer(self, policy: Policy) -> dict[str, dict[str, float]]:
        size: dict[str, float] = {}
        macs: dict[str, float] = {}
        for shape in self.space.layer_shapes(policy):
            taps = int(np.prod(shape.op.weight.shape[2:]))
            area = int(np.prod(self.space.network.shapes[shape.op.name][1:]))
            weights = shape.inputs * shape.outputs * taps // shape.op.groups
            if shape.decision.rank is not None:
                weights = shape.decision.rank * (shape.inputs * taps + shape.outputs)
            size[shape.op.name] = weights * shape.decision.format.weight.bits
            macs[shape.op.name] = weights * area
        return {"size": size, "macs": macs}

    def shares(self, policy: Policy) -> dict[str, dict[str, float]]:
        return {
            name: {layer: cost / self.budgets[name] for layer, cost in costs.items()}
            for name, costs in self.by_layer(policy).items()
        }

    def violations(self, policy: Policy) -> dict[str, float]:
        costs = self.costs(policy)
        return {name: costs[name] / limit - 1 for name, limit in self.budgets.items()}

    def feasible(self, policy: Policy) -> bool:
        return max(self.violations(policy).values()) <= 0

    def project(self, policy: Policy) -> Policy:
        """Lower the knob that is highest in its range, the first of equals, until everything is met."""
        if self.feasible(policy):
            return policy
        vector = np.array(self.space.encode(policy))
        spans = np.array([len(knob.choices) - 1 for knob in self.space.knobs])
        while vector.any():
            vector[int(np.argmax(vector / spans))] -= 1
            policy = self.space.decode(vector.tolist())
            if self.feasible(policy):
                return policy
        raise InfeasibleBudget(f"even the smallest policy violates a budget: {self.violations(policy)}")


def distance_to(space: Space, target: Policy) -> Callable[[Policy], float]:
    """An additive accuracy with a known optimum: 1 at the target, falling with every knob's distance from it."""
    goal = np.array(space.encode(target))
    spans = np.array([len(knob.choices) - 1 for knob in space.knobs])
    weights = np.random.default_rng(7).exponential(size=len(spans))

    def accuracy(policy: Policy) -> float:
        distances = np.abs(np.array(space.encode(policy)) - goal) / spans
        return float(1 - (weights * distances).sum() / weights.sum())

    return accuracy


class ToyEstimates:
    """Every compression hurts, each knob by its own amount, which the layers that the knob concerns share."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._spans = np.array([len(knob.choices) - 1 for knob in space.knobs])
        weights = np.random.default_rng(7).exponential(size=len(self._spans))
        self._weights = weights / weights.sum()
        self._layers = np.zeros(len(weights))
        for scope in space.scopes.values():
            self._layers[list(scope)] += 1

    def damage(self, policy: Policy) -> Array:
        """Return every knob's, (knobs,)."""
        return np.asarray(self._weights * (1 - np.array(self.space.encode(policy)) / self._spans) ** 2)

    def errors(self, policy: Policy) -> dict[str, float]:
        shared = self.damage(policy) / self._layers
        return {layer: float(shared[list(scope)].sum()) for layer, scope in self.space.scopes.items()}


def damage(space: Space) -> Callable[[Policy], float]:
    """The accuracy of which `ToyEstimates` knows everything: the budget binds."""
    estimates = ToyEstimates(space)
    return lambda policy: 1 - float(estimates.damage(policy).sum())


def best(agent: Agent, accuracy: Callable[[Policy], float], evaluations: int) -> float:
    """The best accuracy that an agent finds, one policy at a time."""
    values = []
    for _ in range(evaluations):
        (policy,) = agent.ask(1)
        values.append(accuracy(policy))
        agent.tell(policy, ToyScore(values[-1], agent.limits.violations(policy)))
    return max(values)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with another hash seed, warnings being errors."""
    paths = [*(path for path in sys.path if path), str(Path.cwd())]
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}", *arguments],
        env={"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
TINY = toy_space(Options(channels=2, min_keep=0.5, bits=(INT8,), ranks=()))
#: For agents that decide bits only: of the same layers, five are left to decide, and no bits change the MACs.
BITS_ONLY = ToyLimits(SPACE, macs=1.0)
TINY_BITS = toy_space(
    Options(
        channels=1,
        bits=(LayerFormat.of(4, 8), INT8),
        ranks=(),
        fixed=tuple(op.name for op in SPACE.network.layers[5:]),
    )
)
ACCURACY = damage(SPACE)
ESTIMATES = ToyEstimates(SPACE)


def limits_of(name: str) -> ToyLimits:
    """Limits that the knobs which the agent decides can meet."""
    return LIMITS if "channels" in chosen(name).agent.decides else BITS_ONLY


def fresh(name: str, seed: int) -> Agent:
    """Return the agent on the toy problem."""
    return make(name, SPACE, limits_of(name), seed, ESTIMATES)


def score(agent: Agent, policy: Policy) -> ToyScore:
    """Return what a policy is worth there."""
    return ToyScore(ACCURACY(policy), agent.limits.violations(policy))


def search(agent: Agent, evaluations: int, batch: int = 3) -> list[Policy]:
    """Ask and tell until so many policies are evaluated or the agent is exhausted."""
    asked: list[Policy] = []
    while len(asked) < evaluations:
        policies = agent.ask(min(batch, evaluations - len(asked)))
        if not policies:
            break
        for policy in policies:
            agent.tell(policy, score(agent, policy))
        asked += policies
    return asked


class AgentContract:
    """The promises of the agent chosen by the fixture or parameter `name`."""

    def test_has_a_name_of_its_own(self, name: str) -> None:
        agent = fresh(name, 0)
        assert AGENTS.get(agent.name, type(agent)) is type(agent)

    def test_asks_for_feasible_policies_and_never_twice(self, name: str) -> None:
        policies = search(fresh(name, 0), 40)
        assert len(policies) == 40
        assert all(limits_of(name).feasible(policy) for policy in policies)
        assert len({policy.id for policy in policies}) == 40
        for policy in policies:
            assert SPACE.decode(SPACE.encode(policy)) == policy

    def test_asks_for_at_most_as_many_as_wanted(self, name: str) -> None:
        agent = fresh(name, 0)
        assert agent.ask(0) == []
        assert len(agent.ask(1)) == 1
        assert len(agent.ask(7)) == 7

    def test_the_batch_does_not_change_what_is_proposed_before_it_learns(self, name: str) -> None:
        one, other = fresh(name, 5), fresh(name, 5)
        assert one.ask(6) == [policy for _ in range(3) for policy in other.ask(2)]

    def test_equal_seeds_propose_equally(self, name: str) -> None:
        assert search(fresh(name, 3), 30) == search(fresh(name, 3), 30)

    def test_proposes_the_same_in_another_process(self, name: str) -> None:
        code = "import sys; from trimtab.testing.agents import ids; print(*ids(sys.argv[1]))"
        other = python(code, name)
        assert other.stdout.split() == ids(name), other.stderr

    @pytest.mark.parametrize(("done", "in_flight"), [(0, 4), (13, 0), (28, 3)])
    def test_resumed_goes_on_as_uninterrupted(self, name: str, done: int, in_flight: int) -> None:
        agent = fresh(name, 11)
        finished = search(agent, done)
        flying = agent.ask(in_flight)
        state = json.loads(json.dumps(agent.state(), allow_nan=False))
        resumed = fresh(name, 11)
        for policy in finished:
            resumed.tell(policy, score(resumed, policy))
        resumed.load(state)
        assert resumed.state() == agent.state()
        for policy in flying:
            agent.tell(policy, score(agent, policy))
            resumed.tell(policy, score(resumed, policy))
        assert search(agent, 6) == search(resumed, 6)

    def test_a_state_older_than_the_last_results_does_not_repeat_them(self, name: str) -> None:
        agent = fresh(name, 2)
        finished = search(agent, 5)
        flying = agent.ask(3)
        state = agent.state()
        resumed = fresh(name, 2)
        for policy in [*finished, *flying]:
            resumed.tell(policy, score(resumed, policy))
        resumed.load(state)
        assert resumed.state()["pending"] == []
        known = {policy.id for policy in [*finished, *flying]}
        assert all(policy.id not in known for policy in resumed.ask(10))

    def test_a_policy_that_was_told_is_not_asked_for(self, name: str) -> None:
        first = fresh(name, 0).ask(5)
        agent = fresh(name, 0)
        for policy in [*first, SPACE.base(), SPACE.int8()]:
            agent.tell(policy, score(agent, policy))
        assert not {policy.id for policy in agent.ask(10)} & {policy.id for policy in first}

    def test_ends_when_there_is_nothing_left(self, name: str) -> None:
        space, macs = (TINY, 0.9) if "channels" in chosen(name).agent.decides else (TINY_BITS, 1.0)
        agent = make(name, space, ToyLimits(space, size=0.9, macs=macs), 0, ToyEstimates(space))
        policies: list[Policy] = []
        while asked := agent.ask(16):
            policies += asked
            for policy in asked:
                agent.tell(policy, ToyScore(0.5))
        assert 1 <= len({policy.id for policy in policies}) == len(policies) <= space.size

    def test_limits_that_nothing_meets_are_an_error_or_the_end(self, name: str) -> None:
        agent = make(name, SPACE, ToyLimits(SPACE, size=1e-4), 0, ESTIMATES)
        with suppress(InfeasibleBudget):
            assert agent.ask(1) == []

    def test_a_policy_of_another_network_is_refused(self, name: str) -> None:
        agent = fresh(name, 0)
        foreign = Policy("0" * 16, SPACE.base().channels, SPACE.base().layers)
        with pytest.raises(BadInput, match="another network"):
            agent.tell(foreign, ToyScore(0.5))

    def test_a_score_that_is_no_number_is_refused(self, name: str) -> None:
        agent, nan = fresh(name, 0), float("nan")
        for bad, text in ((ToyScore(nan), "accuracy"), (ToyScore(0.5, {"size": nan}), "budget 'size'")):
            with pytest.raises(ValueError, match=text):
                agent.tell(SPACE.base(), bad)

    def test_a_foreign_state_is_refused(self, name: str) -> None:
        agent = fresh(name, 0)
        state = agent.state()
        changes = ({"agent": "other"}, {"proposals": -1}, {"proposals": True}, {"pending": None}, {"pending": [1]})
        for foreign in ({}, *({**state, **change} for change in changes)):
            with pytest.raises(BadInput, match="saved state"):
                agent.load(foreign)


def ids(name: str) -> list[str]:
    """Return what a search of a few evaluations proposes."""
    return [policy.id for policy in search(fresh(name, 4), 26)]
