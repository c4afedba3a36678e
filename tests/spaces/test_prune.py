"""Which channels stay, against plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.spaces.zeroed import zero_channels

from trimtab.errors import TrimtabError
from trimtab.spaces import Graph, Node, Space
from trimtab.spaces.channels.groups import ChannelGroup
from trimtab.spaces.channels.prune import importance_order, kept_channels, prune, smallest_kept

SpaceOf = Callable[..., Space]


def layer(name: str, source: str, outputs: int, inputs: int, groups: int = 1) -> Node:
    weight = np.random.default_rng(outputs).normal(size=(outputs, inputs // groups, 1, 1)).astype(np.float32)
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": groups}
    return Node("conv2d", name, (source,), attrs, {"weight": weight, "bias": np.ones(outputs, np.float32)})


def test_the_highest_scores_come_first_and_equal_ones_in_order() -> None:
    group = ChannelGroup("a", 4, {"a": np.arange(4)})
    assert importance_order(group, np.array([1.0, 3.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


def test_the_best_channel_of_every_member_comes_before_all_others() -> None:
    group = ChannelGroup("a", 4, {"a": np.array([0, 1]), "b": np.array([2, 3]), "both": np.arange(4)})
    order = importance_order(group, np.array([4.0, 3.0, 1.0, 2.0]))
    assert order.tolist() == [0, 3, 1, 2]
    assert smallest_kept(group, order) == 2


def test_kept_channels_follow_the_positions_and_what_has_none_stays() -> None:
    group = ChannelGroup("a", 3, {"a": np.array([0, 1, 2]), "b": np.array([2, -1, 0, 2])})
    kept = kept_channels([group], {"a": np.array([2])})
    assert {name: channels.tolist() for name, channels in kept.items()} == {"a": [2], "b": [0, 1, 3]}


def test_pruning_slices_outputs_and_the_inputs_that_follow() -> None:
    first, second = layer("first", "x", 4, 3), layer("second", "first", 2, 4)
    pruned, selected = prune(Graph("x", (3, 2, 2), (first, second), "second"), {"first": np.array([1, 3])})
    assert np.array_equal(pruned.node("first").weight, first.weight[[1, 3]])
    assert np.array_equal(pruned.node("second").weight, second.weight[:, [1, 3]])
    assert selected["first"].tolist() == [1, 3]
    assert selected["second"].tolist() == [0, 1]


def test_keeping_everything_returns_the_same_weights(space_of: SpaceOf) -> None:
    network = space_of("residual-a").network
    assert prune(network, {})[0].weights_hash() == network.weights_hash()
    assert zero_channels(network, {}).weights_hash() == network.weights_hash()


def test_a_sum_whose_operands_keep_different_channels_is_an_error() -> None:
    ops = (layer("a", "x", 4, 3), layer("b", "x", 4, 3), Node("add", "sum", ("a", "b")))
    with pytest.raises(TrimtabError, match="'sum' keep different channels"):
        prune(Graph("x", (3, 2, 2), ops, "sum"), {"a": np.array([0, 1])})


def test_zeroing_reaches_depthwise_layers_and_channel_maps() -> None:
    ops = (
        layer("a", "x", 4, 3),
        layer("depthwise", "a", 4, 4, groups=4),
        Node("channel_map", "map", ("depthwise",), {"index": (0, 1, 2, 3, -1)}),
    )
    zeroed = zero_channels(Graph("x", (3, 2, 2), ops, "map"), {"a": np.array([0, 2]), "map": np.array([0, 1, 4])})
    assert zeroed.node("depthwise").bias.tolist() == [1, 0, 1, 0]
    assert zeroed.node("map").attrs["index"] == (0, 1, -1, -1, -1)
