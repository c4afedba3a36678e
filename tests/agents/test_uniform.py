from __future__ import annotations

import pytest

from trimtab.agents import Uniform
from trimtab.spaces import DEFAULT_FORMATS, LayerFormat, Options, Policy
from trimtab.spaces.numbers.formats import INT8
from trimtab.testing.agents import ToyLimits, ToyScore, toy_space

SPACE = toy_space()
PAIRS = list(reversed(DEFAULT_FORMATS))


def combination(policy: Policy) -> tuple[LayerFormat, bool]:
    """The bits of all layers, which must agree, and whether any layer is factorised."""
    bits = {layer.format for layer in policy.layers.values()}
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
def test_the_largest_keep_ratio_that_fits_comes_first(pair: LayerFormat) -> None:
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


def test_one_ratio_scales_every_group() -> None:
    """A width multiplier: no group, a residual stream's included, is left out."""
    for policy in Uniform(SPACE, ToyLimits(SPACE, 0.2, 0.5), 0).ask(20):
        ratios = [policy.channels[group.name] / group.size for group in SPACE.groups]
        steps = [1 / group.size for group in SPACE.groups]
        assert max(ratios) - min(ratios) <= max(steps)


def test_groups_of_uneven_choices_are_scaled_in_every_way_that_differs() -> None:
    space = toy_space(Options(channels=5, min_keep=0.2, bits=(INT8,), ranks=()))
    proposed = Uniform(space, ToyLimits(space, 1.0, 1.0), 0).ask(1000)
    assert proposed == list(dict.fromkeys(space.uniform(keep / 5000, INT8) for keep in range(5000, 0, -1)))
