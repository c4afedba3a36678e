from __future__ import annotations

import pytest
from tests.agents.toys import ToyLimits, ToyScore, toy_space

from trimtab.agents import Uniform
from trimtab.spaces import DEFAULT_BITS, Policy

SPACE = toy_space()
PAIRS = list(reversed(DEFAULT_BITS))


def combination(policy: Policy) -> tuple[tuple[int, int], bool]:
    """The bits of all layers, which must agree, and whether any layer is factorised."""
    bits = {(layer.w_bits, layer.a_bits) for layer in policy.layers.values()}
    assert len(bits) == 1
    return bits.pop(), any(layer.rank is not None for layer in policy.layers.values())


def kept(policy: Policy) -> int:
    return sum(policy.channels.values())


def test_the_combinations_take_turns_nearest_to_the_network_as_given_first() -> None:
    first = Uniform(SPACE, ToyLimits(SPACE, 1.0, 1.0), 0).ask(3 * len(PAIRS))
    assert first[0] == SPACE.base()
    assert [combination(policy)[0] for policy in first] == PAIRS * 3
    assert [combination(policy)[1] for policy in first] == [False] * len(PAIRS) + [True] * 2 * len(PAIRS)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_largest_keep_ratio_that_fits_comes_first(pair: tuple[int, int]) -> None:
    limits = ToyLimits(SPACE, 0.2, 0.5)
    policies = Uniform(SPACE, limits, 0).ask(1000)
    dense = [policy for policy in policies if combination(policy) == (pair, False)]
    every = {SPACE.uniform(keep / 1000, pair) for keep in range(250, 1001)}
    feasible = sorted((kept(policy) for policy in every if limits.feasible(policy)), reverse=True)
    assert [kept(policy) for policy in dense] == feasible


def test_the_seed_and_what_is_told_do_not_matter() -> None:
    limits = ToyLimits(SPACE)
    one, other = Uniform(SPACE, limits, 0), Uniform(SPACE, limits, 1)
    asked = []
    for _ in range(10):
        asked += one.ask(1)
        one.tell(asked[-1], ToyScore(0.1))
    assert asked == other.ask(10)


def test_it_ends_only_when_everything_uniform_was_proposed() -> None:
    limits = ToyLimits(SPACE, 1.0, 1.0)
    everything = Uniform(SPACE, limits, 0).ask(10_000)
    agent = Uniform(SPACE, limits, 0)
    for policy in everything[:-1]:  # many more than any agent's ordinary retries
        agent.tell(policy, ToyScore(0.1))
    assert len(everything) > 60
    assert agent.ask(2) == everything[-1:]
