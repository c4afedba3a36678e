"""What every agent promises, whoever it is: a new one adds a line to the registry and passes this."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from tests.agents.toys import ToyEstimates, ToyLimits, ToyScore, damage, python, toy_space

from trimtab.agents import AGENTS, Agent, make
from trimtab.errors import BadInput, InfeasibleBudget, TrimtabError
from trimtab.spaces import Options, Policy, Space
from trimtab.spaces.formats import INT8, LayerFormat

SPACE = toy_space()
LIMITS = ToyLimits(SPACE)
TINY = toy_space(Options(channels=2, min_keep=0.5, bits=(INT8,), ranks=()))
#: For agents that decide bits only: of the same layers, five are left to decide, and no bits change the MACs.
BITS_ONLY = ToyLimits(SPACE, macs=1.0)
TINY_BITS = toy_space(
    Options(
        channels=1, bits=(LayerFormat.of(4, 8), INT8), ranks=(), fixed=tuple(op.name for op in SPACE.network.layers[5:])
    )
)
ACCURACY = damage(SPACE)
ESTIMATES = ToyEstimates(SPACE)


def limits_of(name: str) -> ToyLimits:
    """Limits that the knobs which the agent decides can meet."""
    return LIMITS if "channels" in AGENTS[name].decides else BITS_ONLY


def fresh(name: str, seed: int) -> Agent:
    return make(name, SPACE, limits_of(name), seed, ESTIMATES)


def score(agent: Agent, policy: Policy) -> ToyScore:
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
    """What the agent registered as `name` promises; `docs/agents.md`'s example is held to it as well."""

    def test_has_the_name_it_is_registered_under(self, name: str) -> None:
        assert fresh(name, 0).name == name

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
        code = "from tests.agents import test_contract as t; import sys; print(*t.ids(sys.argv[1]))"
        other = python(code, name)
        assert other.stdout.split() == ids(name), other.stderr

    @pytest.mark.parametrize(("done", "in_flight"), [(0, 0), (0, 4), (13, 0), (13, 4), (28, 3)])
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
        space, macs = (TINY, 0.9) if "channels" in AGENTS[name].decides else (TINY_BITS, 1.0)
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

    @pytest.mark.parametrize(
        ("bad", "text"),
        [(ToyScore(float("nan")), "accuracy"), (ToyScore(0.5, {"size": float("nan")}), "budget 'size'")],
    )
    def test_a_score_that_is_no_number_is_refused(self, name: str, bad: ToyScore, text: str) -> None:
        agent = fresh(name, 0)
        with pytest.raises(ValueError, match=text):
            agent.tell(SPACE.base(), bad)

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: {},
            lambda state: {**state, "agent": "other"},
            lambda state: {**state, "proposals": -1},
            lambda state: {**state, "proposals": True},
            lambda state: {**state, "pending": None},
            lambda state: {**state, "pending": [1]},
        ],
    )
    def test_a_foreign_state_is_refused(self, name: str, change: Callable[[dict[str, object]], object]) -> None:
        agent = fresh(name, 0)
        with pytest.raises(BadInput, match="saved state"):
            agent.load(change(agent.state()))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(AGENTS))
class TestEveryAgent(AgentContract):
    pass


def ids(name: str) -> list[str]:
    return [policy.id for policy in search(fresh(name, 4), 26)]


def test_an_unknown_agent_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown agent 'unifrom'; did you mean 'uniform'"):
        make("unifrom", SPACE, LIMITS, 0)


def test_limits_that_break_their_promise_are_found_out() -> None:
    class Broken(ToyLimits):
        def project(self, policy: Policy) -> Policy:
            return self.space.base()

    with pytest.raises(TrimtabError, match="defect of the limits"):
        make("random", SPACE, Broken(SPACE), 0).ask(1)


@pytest.mark.parametrize("package", ["optuna", "gymnasium", "stable_baselines3"])
def test_importing_the_agents_imports_no_others_packages(package: str) -> None:
    assert python(f"import sys, trimtab.agents; sys.exit({package!r} in sys.modules)").returncode == 0


def spaces_without_some_kind() -> list[Space]:
    return [
        TINY,
        toy_space(Options(channels=1, ranks=())),
        toy_space(Options(channels=1, bits=(INT8,))),
    ]


@pytest.mark.parametrize("space", spaces_without_some_kind(), ids=["channels", "bits", "ranks"])
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_space_of_one_kind_of_knob_will_do(name: str, space: Space) -> None:
    limits = ToyLimits(space, size=0.99, macs=1.0)
    if not {knob.kind for knob in space.knobs} & set(AGENTS[name].decides):
        with pytest.raises(BadInput, match="decides"):
            make(name, space, limits, 0, ToyEstimates(space))
        return
    assert make(name, space, limits, 0, ToyEstimates(space)).ask(2)
