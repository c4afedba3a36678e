"""Choices are offered where they gain something: under made-up times, whose answer is known, and on the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch

from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.plan import Call, Step
from trimtab.evaluators.price.table import LatencyTable
from trimtab.search.setup.pruned_space import PricedChoice, price_choices, removals
from trimtab.spaces import Options, Policy, Space, build_space
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.spaces.zoo import CifarResNet

Clock = Callable[[Step], float]


class MadeUpTable:
    """A latency table whose times are a function of the step."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = clock

    def fill(self, policy: Policy, calls: Sequence[Call]) -> None:
        pass


def space_of(**options: Any) -> Space:
    torch.manual_seed(0)
    return build_space(CifarResNet(8, width=16).eval(), torch.zeros(1, 3, 16, 16), Options(**options))


def offers_of(space: Space, clock: Clock, *budgets: str) -> list[PricedChoice]:
    return price_choices(CostModel(space, cast(LatencyTable, MadeUpTable(clock))), budgets)


def pointless(priced: list[PricedChoice], kind: str) -> set[str]:
    return {offer.choice for offer in priced if offer.why and offer.knob.startswith(kind)}


def by_macs(step: Step) -> float:
    return 1e-6 + 1e-9 * step.macs


def test_where_every_choice_saves_time_every_choice_is_offered() -> None:
    priced = offers_of(space_of(), lambda step: by_macs(step) * step.format.weight.bits, "latency")
    assert not [offer for offer in priced if offer.why and offer.knob != "form:linear"]


def test_a_rank_that_takes_more_time_than_the_dense_layer_is_not_offered() -> None:
    space = space_of(ranks=(0.25, 0.75))

    def clock(step: Step) -> float:  # 1x1 layers take ten times as long, so only the small rank pays
        return by_macs(step) * (10 if dict(step.attrs).get("kernel") == (1, 1) else 1)

    priced = offers_of(space, clock, "latency", "size")
    for offer in priced:
        if offer.knob.startswith("form:layer") and offer.choice != "dense":
            shape = space.network.node(offer.knob.removeprefix("form:")).weight
            assert shape is not None
            full = min(shape.shape[0], shape[0].size)
            rank = round(float(offer.choice.split()[1]) * full)
            factors = rank * shape[0].size + 10 * rank * shape.shape[0]
            assert bool(offer.why) == (factors > 0.99 * shape.size), offer


def test_bits_that_are_neither_faster_nor_smaller_are_not_offered() -> None:
    space = space_of(bits=(LayerFormat.of(4, 2), LayerFormat.of(4, 8), INT8, FLOAT))
    assert pointless(offers_of(space, by_macs, "latency", "size"), "bits") == {"4/2"}
    assert pointless(offers_of(space, by_macs, "latency"), "bits") == {"4/2", "4/8", "8/8"}
    by_bits = offers_of(space, lambda step: by_macs(step) * step.format.activation_bits, "latency")
    assert not pointless(by_bits, "bits") - {"4/8"}


def test_channel_counts_between_two_cliffs_are_not_offered_for_time() -> None:
    space = space_of(channels=8, ranks=())

    def clock(step: Step) -> float:  # kernels work on 8 channels at a time
        return 1e-6 * sum(-(-shape[0] // 8) for shape in (step.in_shape, step.out_shape))

    priced = offers_of(space, clock, "latency")
    for offer in priced:
        if offer.knob.startswith("channels:"):
            assert bool(offer.why) == (int(offer.choice) % 8 != 0), offer
    assert not pointless(offers_of(space, clock, "latency", "size"), "channels")


def test_without_a_budget_on_time_or_bytes_nothing_is_removed() -> None:
    assert not removals(offers_of(space_of(), lambda step: 1.0, "macs"))


def test_what_is_removed_is_gone_from_the_space_and_the_rest_decodes_as_before() -> None:
    space = space_of(bits=(LayerFormat.of(4, 2), LayerFormat.of(4, 8), INT8, FLOAT))
    found = removals(offers_of(space, by_macs, "latency", "size"))
    smaller = space.without(found)
    assert smaller.size < space.size
    assert all(LayerFormat.of(4, 2) not in knob.choices for knob in smaller.knobs)
    assert smaller.base() == space.base()
    policy = smaller.decode([0] * len(smaller.knobs))
    assert space.decode(space.encode(policy)) == policy
    assert smaller.decode(smaller.encode(policy)) == policy


def test_a_layer_with_one_choice_left_has_that_one() -> None:
    space = space_of(bits=(LayerFormat.of(4, 8), INT8))
    found = [removal for removal in removals(offers_of(space, by_macs, "latency")) if removal.choice == "4/8"]
    smaller = space.without(found)
    assert not [knob for knob in smaller.knobs if knob.kind == "bits"]
    assert {decision.format.weight.bits for decision in smaller.decode([0] * len(smaller.knobs)).layers.values()} == {8}


@pytest.mark.parametrize("budgets", [("latency",), ("latency", "size")])
def test_on_the_engine_what_is_offered_is_cheaper_by_the_table(budgets: tuple[str, ...]) -> None:
    from trimtab.evaluators.engines import make_engine

    space = space_of(channels=2, ranks=(0.5,), bits=(INT8, FLOAT))
    model = CostModel(space, LatencyTable(make_engine("native", 1), space))
    widest = {knob.name: int(str(knob.choices[-1])) for knob in space.knobs if knob.kind == "channels"}
    priced = {(offer.knob, offer.choice): offer for offer in price_choices(model, budgets)}
    narrower = [offer for offer in priced.values() if offer.knob in widest and int(offer.choice) != widest[offer.knob]]
    assert narrower
    for offer in narrower:
        smaller = offer.size < priced[offer.knob, str(widest[offer.knob])].size
        cheaper = offer.gain >= 0.01 or ("size" in budgets and smaller)
        assert bool(offer.why) != cheaper, offer
