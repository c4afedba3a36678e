"""Widths by an additive model, against every combination of widths."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from trimtab.agents.allocation import allocate_widths
from trimtab.errors import BadInput
from trimtab.spaces import Options, Policy
from trimtab.testing.agents import ToyLimits, toy_space

SPACE = toy_space(Options(channels=4))
WIDTHS = {knob.target: [int(str(choice)) for choice in knob.choices] for knob in SPACE.knobs if knob.kind == "channels"}
Curves = Mapping[str, Mapping[int, float]]


def curves(seed: int) -> Curves:
    """Errors that fall with the width, each group's slower and slower."""
    rng = np.random.default_rng(seed)
    steps = {group: np.sort(rng.exponential(rng.exponential(), len(counts) - 1)) for group, counts in WIDTHS.items()}
    return {
        group: dict(zip(counts, [*np.cumsum(steps[group])[::-1], 0.0], strict=True)) for group, counts in WIDTHS.items()
    }


def total(values: Curves, policy: Policy) -> float:
    return sum(curve[policy.channels[group]] for group, curve in values.items())


@pytest.mark.parametrize("seed", range(5))
def test_no_widths_have_less_error_at_the_same_cost(seed: int) -> None:
    errors = curves(seed)
    price = dict(zip(WIDTHS, np.random.default_rng(seed).uniform(1, 3, len(WIDTHS)), strict=True))

    def cost(policy: Policy) -> float:
        return sum(price[group] * policy.channels[group] for group in WIDTHS)

    base = SPACE.base()
    found = allocate_widths(SPACE, lambda policy: total(errors, policy), cost, 0.6 * cost(base))
    assert cost(found) <= 0.6 * cost(base)
    every = [
        replace(base, channels=dict(zip(WIDTHS, counts, strict=True))) for counts in itertools.product(*WIDTHS.values())
    ]
    assert total(errors, found) == pytest.approx(
        min(total(errors, policy) for policy in every if cost(policy) <= cost(found) + 1e-9)
    )


def test_a_dear_first_step_is_taken_for_a_cheap_second_one() -> None:
    first = next(iter(WIDTHS))
    errors = {group: {count: 10.0 * (counts[-1] - count) for count in counts} for group, counts in WIDTHS.items()}
    narrow, *_, wide = WIDTHS[first]
    errors[first] = {count: 0.0 if count == wide else 12.0 for count in WIDTHS[first]}
    base = SPACE.base()
    found = allocate_widths(
        SPACE,
        lambda policy: total(errors, policy),
        lambda policy: sum(policy.channels.values()),
        sum(base.channels.values()) - (wide - narrow),
    )
    assert found.channels == {**base.channels, first: narrow}


def test_the_last_step_goes_no_further_than_it_has_to() -> None:
    limits = ToyLimits(SPACE)

    def macs(policy: Policy) -> float:
        return limits.costs(policy)["macs"]

    first = next(iter(WIDTHS))
    errors = {
        group: {count: float(group != first and count < counts[-1]) for count in counts}
        for group, counts in WIDTHS.items()
    }
    found = allocate_widths(SPACE, lambda policy: total(errors, policy), macs, macs(SPACE.base()) - 1)
    assert found.channels == {**SPACE.base().channels, first: WIDTHS[first][-2]}


def test_a_limit_below_the_narrowest_network_is_bad_input() -> None:
    with pytest.raises(BadInput, match="limit"):
        allocate_widths(SPACE, lambda policy: 0.0, lambda policy: sum(policy.channels.values()), 1)
