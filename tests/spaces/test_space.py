"""The space: vectors and policies, and widths that are those of the networks really built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.errors import BadInput
from trimtab.spaces import LayerDecision, Options, Policy, Space, apply, build_space
from trimtab.spaces.execute import run
from trimtab.spaces.factorisation import FACTORISATIONS, layer_of
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.spaces.space import channel_steps

SpaceOf = Callable[..., Space]
TOYS = ["residual-a", "residual-b", "concat-flatten", "concat-added", "pre-activation", "inverted", "grouped", "dense"]
SEEDS = st.integers(0, 2**32 - 1)


def random_vector(space: Space, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(rng.integers(len(knob.choices))) for knob in space.knobs]


def changed(policy: Policy, channels: dict[str, int] | None = None, **layers: LayerDecision) -> Policy:
    return Policy(policy.network, {**policy.channels, **(channels or {})}, {**policy.layers, **layers})


def assert_widths_are_those_of_the_built_network(space: Space, policies: Iterable[Policy], x: Tensor) -> None:
    for policy in policies:
        network = apply(space, policy).network
        shapes: dict[str, tuple[int, ...]] = {network.input: tuple(x.shape[1:])}
        run(network, x, lambda op, y, shapes=shapes: shapes.update({op.name: tuple(y.shape[1:])}))  # type: ignore[misc]
        widths = space.widths(policy.channels)
        assert widths == {name: shape[0] for name, shape in shapes.items() if "/factor" not in name}
        for shape in space.layer_shapes(policy):
            first = network.node(f"{shape.op.name}/factor" if shape.decision.rank else shape.op.name)
            last = network.node(shape.op.name)
            assert shape.inputs == first.weight.shape[1] * first.groups
            assert shape.outputs == last.weight.shape[0]
            if shape.decision.factorisation == "svd":
                assert shape.decision.rank in (None, first.weight.shape[0])


@pytest.mark.parametrize("name", TOYS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_decode_and_encode_are_inverse(name: str, seed: int, space_of: SpaceOf) -> None:
    space = space_of(name)
    policy = space.decode(random_vector(space, seed))
    again = space.encode(policy)
    assert space.decode(again) == policy
    assert space.encode(space.decode(again)) == again


@pytest.mark.parametrize("name", TOYS)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_widths_are_those_of_the_built_network(
    name: str, seed: int, space_of: SpaceOf, image: Callable[..., Tensor]
) -> None:
    space = space_of(name, factorisations=tuple(FACTORISATIONS))
    assert_widths_are_those_of_the_built_network(space, [space.decode(random_vector(space, seed))], image(1))


def test_widths_are_those_of_the_built_resnet20(space_of: SpaceOf, image: Callable[..., Tensor]) -> None:
    space = space_of("resnet20", channels=16, min_keep=0.05)
    policies = [space.decode(random_vector(space, seed)) for seed in range(8)]
    assert_widths_are_those_of_the_built_network(space, policies, image(1))


def test_widths_are_those_of_the_built_mobilenet_v2() -> None:
    space = build_space(torchvision.models.mobilenet_v2(weights=None), torch.zeros(1, 3, 32, 32))
    policies = [space.decode(random_vector(space, seed)) for seed in range(3)]
    assert_widths_are_those_of_the_built_network(space, policies, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", TOYS)
def test_a_policy_holds_only_ranks_that_are_smaller_than_the_dense_layer(name: str, space_of: SpaceOf) -> None:
    space = space_of(name, ranks=(0.1, 0.5, 0.9), factorisations=tuple(FACTORISATIONS))
    for seed in range(10):
        policy = space.decode(random_vector(space, seed))
        dense = apply(space, changed(policy, **{n: replace(d, rank=None) for n, d in policy.layers.items()})).network
        factorised = apply(space, policy).network
        for layer, decision in policy.layers.items():
            weight = dense.node(layer).weight
            assert weight is not None
            if decision.rank is not None:
                factors = [op.weight.size for op in factorised.layers if layer_of(op.name) == layer]  # type: ignore[union-attr]
                assert len(factors) > 1
                assert sum(factors) < weight.size


@pytest.mark.parametrize("name", TOYS)
def test_the_base_decodes_from_the_last_choices(name: str, space_of: SpaceOf) -> None:
    space = space_of(name)
    last = [len(knob.choices) - 1 for knob in space.knobs]
    assert space.decode(last) == space.base()
    assert space.encode(space.base()) == last
    assert space.uniform() == space.base()


@pytest.mark.parametrize("name", TOYS)
def test_the_smallest_choices_make_a_network_that_runs(
    name: str, space_of: SpaceOf, image: Callable[..., Tensor]
) -> None:
    space = space_of(name, min_keep=0.001, channels=64)
    candidate = apply(space, space.decode([0] * len(space.knobs)))
    assert run(candidate.network, image(2)).shape == (2, 5)


@given(st.integers(2, 600), st.integers(1, 40), st.floats(0.001, 1.0))
def test_channel_steps(size: int, choices: int, min_keep: float) -> None:
    steps = channel_steps(size, choices, min_keep)
    assert list(steps) == sorted(set(steps))
    assert steps[-1] == size
    assert 1 <= len(steps) <= choices
    assert steps[0] >= min(size, max(1, size * min_keep - 1e-9))
    assert len({b - a for a, b in pairwise(steps)}) <= 1


@pytest.mark.parametrize(
    ("size", "choices", "expected"),
    [(16, 8, (4, 6, 8, 10, 12, 14, 16)), (64, 8, (16, 24, 32, 40, 48, 56, 64)), (6, 8, (2, 3, 4, 5, 6)), (5, 1, (5,))],
)
def test_channel_steps_of_common_widths(size: int, choices: int, expected: tuple[int, ...]) -> None:
    assert channel_steps(size, choices, 0.25) == expected


def test_uniform_takes_the_nearest_choices(space_of: SpaceOf) -> None:
    space = space_of("resnet20", channels=8)
    policy = space.uniform(0.5, INT8, "svd 0.5")
    assert policy.channels == {group.name: group.size // 2 for group in space.groups}
    assert {d.format for d in policy.layers.values()} == {INT8}
    assert policy.layers["layer1.0.conv1"].rank == 4
    assert space.decode(space.encode(policy)) == policy


def test_bits_may_be_an_entry_of_the_configuration(space_of: SpaceOf) -> None:
    space = space_of("residual-a")
    assert space.uniform(0.5, (8, 8)) == space.uniform(0.5, INT8)
    with pytest.raises(BadInput, match="4-bit weights with 5-bit"):
        space.uniform(0.5, (4, 5))


def test_bits_that_are_not_offered_stay(space_of: SpaceOf) -> None:
    space = space_of("residual-a", bits=(INT8, FLOAT))
    assert {d.format for d in space.uniform(bits=LayerFormat.of(8, 32)).layers.values()} == {FLOAT}


def test_a_single_width_is_taken_by_every_layer(space_of: SpaceOf) -> None:
    space = space_of("residual-a", bits=(LayerFormat.of(8, 32),), fixed=("conv1",))
    assert not [knob for knob in space.knobs if knob.kind == "bits"]
    policy = space.uniform()
    assert policy.layers["conv1"].format == FLOAT
    assert {str(d.format) for name, d in policy.layers.items() if name != "conv1"} == {"8/32"}


def test_int8_changes_only_the_bits(space_of: SpaceOf) -> None:
    space = space_of("inverted")
    policy = space.int8()
    assert policy.channels == space.base().channels
    assert set(policy.layers.values()) == {LayerDecision(INT8)}
    assert space.decode(space.encode(policy)) == policy


@pytest.mark.parametrize(
    ("name", "fixed"),
    [("residual-a", "conv1"), ("inverted", "first.3"), ("inverted", "head.2"), ("grouped", "grouped.0")],
)
def test_fixed_layers_keep_their_channels_bits_and_rank(name: str, fixed: str, space_of: SpaceOf) -> None:
    space = space_of(name, fixed=(fixed,))
    for seed in range(5):
        policy = space.decode(random_vector(space, seed))
        assert policy.layers[fixed] == LayerDecision()
        assert space.widths(policy.channels)[fixed] == space.network.shapes[fixed][0]


def test_an_unknown_fixed_layer_is_bad_input_with_the_nearest_name(space_of: SpaceOf) -> None:
    with pytest.raises(BadInput, match=r"'conv2'; did you mean 'conv1'"):
        space_of("residual-a", fixed=("conv2",))


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"channels": 65},
        {"min_keep": 0.0},
        {"min_keep": 1.5},
        {"bits": ()},
        {"bits": (LayerFormat.of(4, 5),)},
        {"ranks": (0.0,)},
        {"ranks": (2.0,)},
        {"criterion": "l3"},
        {"factors": "output"},
        {"factorisations": ("svds",)},
    ],
)
def test_options_that_there_are_not_are_bad_input(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(BadInput, match="fit of factors" if name == "factors" else name.removesuffix("s")):
        Options(**options)


@pytest.mark.parametrize("options", [{"patterns": ("kernels 64",)}, {"sharing": ("2:4",)}])
def test_a_form_of_another_kind_is_bad_input(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="is not a"):
        Options(**options)


def test_a_space_without_decisions_is_bad_input(space_of: SpaceOf) -> None:
    with pytest.raises(BadInput, match="the space is empty"):
        space_of("residual-a", channels=1, bits=(FLOAT,), ranks=())


def test_every_knob_has_something_to_decide(space_of: SpaceOf) -> None:
    for options in ({}, {"min_keep": 0.9}, {"channels": 2}):
        space = space_of("residual-a", **options)
        assert all(len(knob.choices) > 1 for knob in space.knobs)
        assert len({knob.name for knob in space.knobs}) == len(space.knobs)
        assert space.size == int(np.prod([float(len(knob.choices)) for knob in space.knobs])) or space.size > 2**53


def test_a_policy_for_another_network_is_bad_input(space_of: SpaceOf) -> None:
    with pytest.raises(BadInput, match="another network"):
        space_of("residual-a").check(space_of("residual-b").base())


def test_the_fingerprint_is_of_the_structure_not_of_the_weights() -> None:
    def make(seed: int, width: int = 4) -> str:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1))
        return build_space(model, torch.zeros(1, 3, 8, 8)).fingerprint

    assert make(0) == make(1)
    assert make(0) != make(0, 5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: changed(p, {"conv1": 0}), "keeps 0 of 6"),
        (lambda p: changed(p, {"conv1": 7}), "keeps 7 of 6"),
        (lambda p: changed(p, {"nothing": 1}), "groups are not the network's: 'nothing'"),
        (lambda p: changed(p, nothing=LayerDecision()), "layers are not the network's: 'nothing'"),
        (lambda p: changed(p, conv1=LayerDecision(LayerFormat.of(4, 5))), "'conv1': 4-bit weights with 5-bit"),
        (lambda p: changed(p, conv1=LayerDecision(LayerFormat.of(32, 8))), "'conv1': 32-bit weights with 8-bit"),
        (lambda p: changed(p, conv1=LayerDecision(rank=7)), "'conv1': rank 7 is not between 1 and 6"),
        (lambda p: changed(p, {"conv1": 3}, conv1=LayerDecision(rank=4)), "rank 4 is not between 1 and 3"),
    ],
)
def test_an_impossible_policy_is_bad_input(change: Callable[[Policy], Policy], text: str, space_of: SpaceOf) -> None:
    space = space_of("residual-a")
    with pytest.raises(BadInput, match=text):
        apply(space, change(space.base()))


def test_a_grouped_layer_with_a_rank_is_bad_input(space_of: SpaceOf) -> None:
    space = space_of("grouped")
    with pytest.raises(BadInput, match=r"'grouped\.0' cannot have the factorisation 'svd'"):
        space.check(changed(space.base(), **{"grouped.0": LayerDecision(rank=1)}))


def test_a_policy_that_empties_a_layer_is_bad_input(space_of: SpaceOf) -> None:
    space = space_of("concat-added")
    with pytest.raises(BadInput, match="at least 2"):
        space.check(changed(space.base(), {"left": 1}))


def test_encoding_a_policy_outside_the_space_is_bad_input(space_of: SpaceOf) -> None:
    space = space_of("residual-a", fixed=("conv1",), bits=(INT8, FLOAT))
    base = space.base()
    outside = [
        space.int8(),  # decides about a fixed layer
        changed(base, {"conv1": 5}),
        changed(base, conv1=LayerDecision(rank=2)),
        changed(base, {"layer3.0.conv1": 23}),
        changed(base, **{"layer3.0.conv1": LayerDecision(LayerFormat.of(8, 32))}),
    ]
    for policy in outside:
        space.check(policy)
        with pytest.raises(BadInput):
            space.encode(policy)


@pytest.mark.parametrize("wrong", [-1, 99])
def test_a_choice_out_of_range_is_bad_input(wrong: int, space_of: SpaceOf) -> None:
    space = space_of("residual-a")
    with pytest.raises(BadInput, match="is not between"):
        space.decode([wrong] * len(space.knobs))
    with pytest.raises(BadInput, match="entries"):
        space.decode([0])


@pytest.mark.parametrize("name", TOYS)
def test_a_layer_s_shape_depends_on_the_knobs_of_its_scope_only(name: str, space_of: SpaceOf) -> None:
    space = space_of(name)
    one, other = random_vector(space, 0), random_vector(space, 1)
    for layer, scope in space.scopes.items():
        mixed = [one[i] if i in scope else other[i] for i in range(len(space.knobs))]
        shapes = [next(s for s in space.layer_shapes(space.decode(v)) if s.op.name == layer) for v in (one, mixed)]
        assert len({(shape.inputs, shape.outputs, shape.decision) for shape in shapes}) == 1
    assert {i for scope in space.scopes.values() for i in scope} == set(range(len(space.knobs)))
