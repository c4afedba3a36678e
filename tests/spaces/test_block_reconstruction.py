"""Residual blocks fitted as a whole: where they begin, and what that gains over their layers one by one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.spaces import Calibration, LayerDecision, Policy, Repairs, Space, compress
from trimtab.spaces.candidate import reshape_network
from trimtab.spaces.execute import run
from trimtab.spaces.numbers.formats import INT8
from trimtab.spaces.repairs.block_reconstruction import block_of, run_block, tune

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("name", "last", "layers"),
    [
        ("residual-a", "layer2.0.conv2", ["layer2.0.conv1", "layer2.0.conv2"]),
        ("inverted", "second.6", ["second.0", "second.3", "second.6"]),
        ("pre-activation", "conv1b", ["conv1a", "conv1b"]),
    ],
)
def test_a_block_reaches_back_to_what_others_read_too(
    name: str, last: str, layers: list[str], space_of: SpaceOf
) -> None:
    network = space_of(name).network
    block = block_of(network, last)
    found = [op.name for op in block if op.is_layer]
    assert found[-len(layers) :] == layers
    source = block[0].inputs[0]
    assert len(network.readers(source)) > 1
    for before, after in pairwise(block):
        assert network.readers(before.name) == (after,)


def test_a_block_that_is_right_stays_as_it_is(space_of: SpaceOf) -> None:
    network = space_of("residual-a").network
    block = block_of(network, "layer1.0.conv2")
    x = torch.randn(20, *network.shapes[block[0].inputs[0]])
    y = run_block(block, x)[-1]
    tuned = tune(block, x, torch.zeros_like(y), y, True, 5)
    for before, after in zip(block, tuned, strict=True):
        if before.is_layer:
            assert np.array_equal(before.weight, after.weight)


@pytest.mark.parametrize("name", ["residual-a", "residual-b", "inverted", "pre-activation"])
def test_fitting_a_block_as_a_whole_brings_its_sum_nearer(name: str, space_of: SpaceOf, image: Image) -> None:
    space, images = space_of(name), image(96, 12)
    sums: dict[str, Tensor] = {}
    run(space.network, images, lambda op, y: sums.update({op.name: y.clone()}) if op.kind == "add" else None)
    first = next(op.name for op in space.network if op.kind == "add")
    errors = []
    for steps in (0, 60, 60):
        calibration = Calibration.of(space, images.numpy(), Repairs(block_steps=steps))
        candidate = compress(space, space.uniform(0.5), calibration)
        found: dict[str, Tensor] = {}
        run(candidate.network, images, lambda op, y, to=found: to.update({op.name: y.clone()}))  # type: ignore[misc]
        behind = candidate.network.readers(first)[0]
        kept = reshape_network(space, space.uniform(0.5))[1][first]
        wanted, y = sums[first][:, torch.from_numpy(kept)], found[first]
        if behind.kind == "activation":
            wanted, y = wanted.relu(), y.relu()
        errors.append(float((y - wanted).square().mean()))
    assert errors[1] == errors[2]
    assert errors[1] < 0.99 * errors[0]


def test_blocks_with_a_layer_in_few_bits_are_left_to_their_layers(space_of: SpaceOf, image: Image) -> None:
    space, images = space_of("residual-a"), image(32, 1).numpy()
    pruned = space.uniform(0.5)
    layers = {name: LayerDecision(INT8) if name.endswith("conv2") else d for name, d in pruned.layers.items()}
    policy = Policy(pruned.network, pruned.channels, layers)
    found = [
        compress(space, policy, Calibration.of(space, images, Repairs(block_steps=steps))).network.weights_hash()
        for steps in (0, 3)
    ]
    assert found[0] == found[1]


def test_the_untouched_policy_is_repaired_to_exactly_itself(space_of: SpaceOf, image: Image) -> None:
    space = space_of("residual-a")
    calibration = Calibration.of(space, image(16, 1).numpy(), Repairs(block_steps=3))
    assert compress(space, space.base(), calibration).network.weights_hash() == space.network.weights_hash()
