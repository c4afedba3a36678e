"""Channel groups: counted by hand, and pruning a group changes nothing but that its channels are zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.spaces.zeroed import zero_channels
from torch import Tensor, nn

from trimtab.graph import Array
from trimtab.spaces import Graph, Node, Space, build_space
from trimtab.spaces.channels.prune import kept_channels, prune, smallest_kept
from trimtab.spaces.execute import run
from trimtab.spaces.zoo import CifarResNet

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]
TOYS = ["residual-a", "residual-b", "concat", "concat-flatten", "pre-activation", "inverted", "grouped", "dense"]
TOYS += ["concat-added", "concat-flatten-sum", "gated", "shuffled", "tokens", "twice", "decoder", "signal"]


def random_kept(space: Space, seed: int) -> dict[str, Array]:
    """Random channels of every group that leave no layer empty."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in space.groups:
        order = rng.permutation(group.size)
        smallest = smallest_kept(group, order)
        kept[group.name] = np.sort(order[: rng.integers(smallest, group.size + 1)])
    return kept


def run_with_zeroed_channels(network: Graph, selected: Mapping[str, Array], x: Tensor) -> Tensor:
    """The full-width network, with the pruned channels of every tensor overwritten by zeros as it runs."""

    def observe(op: Node, y: Tensor) -> Tensor:
        mask = torch.zeros(y.shape[1])
        mask[torch.from_numpy(selected[op.name])] = 1
        return y * mask.reshape(1, -1, *[1] * (y.ndim - 2))

    return run(network, x, observe)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-4 * max(float(expected.abs().max()), 1.0)


def members(space: Space) -> dict[str, tuple[int, set[str]]]:
    return {
        group.name: (group.size, {name for name in group.members if space.network.node(name).is_layer})
        for group in space.groups
    }


@pytest.mark.parametrize("name", TOYS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pruning_equals_the_full_network_with_these_channels_zeroed(
    name: str, seed: int, space_of: SpaceOf, image: Image
) -> None:
    space = space_of(name)
    kept = kept_channels(space.groups, random_kept(space, seed))
    pruned, selected = prune(space.network, kept)
    x = image(2, 1)
    found = run(pruned, x)
    assert_close(found, run_with_zeroed_channels(space.network, selected, x))
    assert_close(found, run(zero_channels(space.network, kept), x))


@pytest.mark.parametrize("name", TOYS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_pruned_network_declares_the_shapes_that_it_computes(
    name: str, seed: int, space_of: SpaceOf, image: Image
) -> None:
    space = space_of(name)
    pruned, selected = prune(space.network, kept_channels(space.groups, random_kept(space, seed)))
    shapes: dict[str, tuple[int, ...]] = {}
    run(pruned, image(1), lambda op, y: shapes.update({op.name: tuple(y.shape[1:])}))
    assert shapes == {op.name: pruned.shapes[op.name] for op in pruned}
    assert {name: shape[0] for name, shape in shapes.items()} == {op.name: len(selected[op.name]) for op in pruned}
    for op in pruned.layers:
        assert pruned.shapes[op.name][0] % op.groups == 0


@pytest.mark.parametrize("name", TOYS)
def test_the_output_is_never_pruned(name: str, space_of: SpaceOf) -> None:
    space = space_of(name)
    kept = {group.name: space.order[group.name][: space.smallest[group.name]] for group in space.groups}
    pruned, selected = prune(space.network, kept_channels(space.groups, kept))
    assert selected[space.network.output].tolist() == list(range(5))
    assert pruned.shapes[pruned.output] == space.network.shapes[space.network.output]


@pytest.mark.parametrize("name", TOYS)
def test_every_channel_of_a_group_is_somewhere(name: str, space_of: SpaceOf) -> None:
    for group in space_of(name).groups:
        found = np.concatenate(list(group.members.values()))
        assert set(found[found >= 0].tolist()) == set(range(group.size))


@pytest.mark.parametrize("name", TOYS)
def test_no_layer_is_in_two_groups(name: str, space_of: SpaceOf) -> None:
    names = [name for group in space_of(name).groups for name in group.members]
    assert len(names) == len(set(names))


def test_a_resnet_20_with_option_b_has_a_group_per_stage_and_one_per_block() -> None:
    space = build_space(CifarResNet(20, "B"), torch.zeros(1, 3, 32, 32))
    expected: dict[str, tuple[int, set[str]]] = {
        "conv1": (16, {"conv1", *(f"layer1.{block}.conv2" for block in range(3))}),
    }
    for stage in (1, 2, 3):
        for block in range(3):
            expected[f"layer{stage}.{block}.conv1"] = (8 << stage, {f"layer{stage}.{block}.conv1"})
        if stage > 1:
            stream = {f"layer{stage}.{block}.conv2" for block in range(3)} | {f"layer{stage}.0.shortcut.0"}
            expected[f"layer{stage}.0.conv2"] = (8 << stage, stream)
    assert len(expected) == 12
    assert members(space) == expected


def test_a_resnet_20_with_option_a_has_the_same_groups_without_shortcut_layers() -> None:
    space = build_space(CifarResNet(20, "A"), torch.zeros(1, 3, 32, 32))
    found = members(space)
    assert len(found) == 12
    assert found["layer2.0.conv2"] == (32, {f"layer2.{block}.conv2" for block in range(3)})
    maps = {name for group in space.groups for name in group.members} - {op.name for op in space.network.layers}
    assert [space.network.node(name).kind for name in maps] == ["channel_map"] * 2


def test_a_concatenation_ties_nothing(space_of: SpaceOf) -> None:
    assert members(space_of("concat")) == {
        "stem.0": (8, {"stem.0"}),
        "left.0": (6, {"left.0"}),
        "right.0": (10, {"right.0"}),
        "last.0": (7, {"last.0"}),
    }


def test_a_concatenation_that_is_flattened_ties_nothing(space_of: SpaceOf) -> None:
    assert members(space_of("concat-flatten")) == {
        "left.0": (6, {"left.0"}),
        "right.0": (4, {"right.0"}),
        "hidden": (12, {"hidden"}),
    }


def test_a_sum_behind_a_concatenation_ties_each_operand_to_its_part(space_of: SpaceOf) -> None:
    space = space_of("concat-added")
    assert members(space) == {"left": (10, {"left", "right", "both"}), "narrow": (7, {"narrow"})}
    group = space.groups[0]
    parts = [group.members["both"][:6].tolist(), group.members["both"][6:].tolist()]
    assert [group.members["left"].tolist(), group.members["right"].tolist()] == parts
    assert space.smallest["left"] == 2


def test_operands_that_are_summed_behind_a_flattened_concatenation_stay_apart(space_of: SpaceOf) -> None:
    assert members(space_of("concat-flatten-sum")) == {"left": (6, {"left", "twin"}), "right": (4, {"right"})}


def test_pre_activation_norms_follow_the_stream(space_of: SpaceOf) -> None:
    assert members(space_of("pre-activation")) == {
        "stem": (8, {"stem", "conv0b", "conv1b"}),
        "conv0a": (6, {"conv0a"}),
        "conv1a": (6, {"conv1a"}),
    }


def test_depthwise_layers_follow_their_producer(space_of: SpaceOf) -> None:
    assert members(space_of("inverted")) == {
        "stem.0": (8, {"stem.0"}),
        "first.0": (16, {"first.0"}),
        "first.6": (6, {"first.6", "second.6"}),
        "second.0": (12, {"second.0"}),
    }


def test_a_grouped_convolution_ties_the_same_position_of_its_groups(space_of: SpaceOf) -> None:
    # `grouped` has 4 groups: 8 inputs are 2 positions, 16 outputs 4. `behind` reads cat(x, y) in 3 groups of 8, and x
    # and y are tied by the sum; channel c of both sits at positions c and c + 12 of 24, so c, c + 4 and c + 8 are one.
    found = members(space_of("grouped"))
    assert found["reduce.0"] == (2, {"reduce.0"})
    assert found["grouped.0"] == (4, {"grouped.0"})
    assert found["stem.0"] == (4, {"stem.0", "expand.0"})
    assert found["behind.0"] == (6, {"behind.0"})


def test_a_dense_block_has_a_group_per_layer(space_of: SpaceOf) -> None:
    space = space_of("dense")
    convolutions = [op.name for op in space.network.layers if op.kind == "conv2d" and not op.is_depthwise]
    assert [group.name for group in space.groups] == convolutions
    assert all(group.size == space.network.shapes[group.name][0] for group in space.groups)


def test_a_gate_goes_with_what_it_multiplies(space_of: SpaceOf) -> None:
    assert members(space_of("gated")) == {
        "stem.0": (8, {"stem.0", "project0", "project1"}),
        "expand0.0": (12, {"expand0.0", "excite0"}),
        "squeeze0": (5, {"squeeze0"}),
        "expand1.0": (12, {"expand1.0", "excite1"}),
        "squeeze1": (5, {"squeeze1"}),
    }


def test_a_layer_that_is_used_twice_has_a_group_for_each_use(space_of: SpaceOf) -> None:
    assert members(space_of("twice")) == {
        "stem.0": (8, {"stem.0", "outer.0", "outer.0_use2"}),
        "inner.0": (6, {"inner.0"}),
        "inner.0_use2": (6, {"inner.0_use2"}),
    }


def test_a_sigmoid_that_is_no_gate_keeps_its_channels() -> None:
    layers = (nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 6, 1), nn.SiLU(), nn.Conv2d(6, 2, 1))
    assert members(build_space(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))) == {"2": (6, {"2"})}


def test_shuffled_channels_are_followed_and_tie_nothing(space_of: SpaceOf) -> None:
    space = space_of("shuffled")
    dense = [op.name for op in space.network.layers if op.kind == "conv2d" and not op.is_depthwise]
    found = members(space)
    assert list(found) == dense
    sizes = {name: space.network.shapes[name][0] for name in dense}
    # A channel of each of the four halves stays, so that none is ever empty; one may stand for two of them.
    assert 1 <= sum(sizes[name] - size for name, (size, _) in found.items()) <= 4


def test_attention_is_pruned_alike_in_every_head_and_layer_norm_not_at_all(space_of: SpaceOf) -> None:
    assert members(space_of("tokens")) == {
        "attention.q": (4, {"attention.q", "attention.k"}),
        "attention.v": (4, {"attention.v"}),
        "mlp.0": (12, {"mlp.0"}),
    }


def test_what_meets_the_input_image_is_not_pruned() -> None:
    class Meets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.inner(self.conv(x) + x))
            return result

    assert members(build_space(Meets(), torch.zeros(1, 3, 8, 8))) == {"inner": (6, {"inner"})}


def test_a_depthwise_layer_that_widens_keeps_its_inputs_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    assert members(build_space(model, torch.zeros(1, 3, 8, 8))) == {"1": (2, {"1"})}


def test_groups_do_not_depend_on_frozen_parameters_or_disabled_gradients() -> None:
    expected = members(build_space(CifarResNet(8, "B"), torch.zeros(1, 3, 32, 32)))
    model = CifarResNet(8, "B").requires_grad_(False)
    with torch.no_grad():
        assert members(build_space(model, torch.zeros(1, 3, 32, 32))) == expected
