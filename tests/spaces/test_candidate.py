"""Candidates: what a policy does to a network, and what the repair gives back."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trimtab.graph import Array
from trimtab.spaces import (
    Calibration,
    Candidate,
    Graph,
    LayerDecision,
    Policy,
    Repairs,
    Space,
    apply,
    build_space,
    compress,
)
from trimtab.spaces.execute import run
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.repairs.repair import LARGEST_RESCALE

SpaceOf = Callable[..., Space]
Make = Callable[[str], nn.Module]
Image = Callable[..., Tensor]
TOYS = ["residual-a", "residual-b", "concat-flatten", "pre-activation", "inverted", "grouped", "dense"]
TOYS += ["decoder", "signal"]


def built() -> str:
    """Build and repair a candidate from nothing; the text changes with any bit of it. Stands alone: see its test."""
    import hashlib

    import numpy as np
    import torch

    from trimtab.spaces import Calibration, build_space, compress
    from trimtab.spaces.zoo import CifarResNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = build_space(CifarResNet(8, width=6), torch.zeros(1, 3, 16, 16))
    images = np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype(np.float32)
    candidate = compress(space, space.uniform(0.6, (8, 8), "svd 0.5"), Calibration.of(space, images))
    ranges = hashlib.sha256(repr(candidate.ranges).encode()).hexdigest()
    return f"{candidate.policy.id} {candidate.network.weights_hash()} {ranges}"


def mixed(space: Space, keep: float = 0.7) -> Policy:
    """Prune everywhere, factorise every second layer, and take the bits in turn."""
    layers = {}
    pruned = space.uniform(keep, form="svd 0.5")
    for i, (name, decision) in enumerate(pruned.layers.items()):
        bits = ((8, 8), (32, 32), (8, 32))[i % 3]
        layers[name] = LayerDecision(LayerFormat.of(*bits), decision.rank if i % 2 else None)
    return Policy(pruned.network, pruned.channels, layers)


def calibrated(space: Space, images: Tensor) -> Calibration:
    return Calibration.of(space, images.numpy())


def moments_only(space: Space, images: Tensor) -> Calibration:
    return Calibration.of(space, images.numpy(), repairs=Repairs(reconstruct=False))


def outputs(network: Graph, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    run(network, x, lambda op, y: found.update({op.name: y.clone()}))
    return found


def module_outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Every layer's output in PyTorch, behind its batch norm, by the layer's name."""
    found: dict[str, Tensor] = {}
    previous = ""

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(module: nn.Module, _: object, y: Tensor) -> None:
            nonlocal previous
            if isinstance(module, nn.BatchNorm2d):
                found[previous] = y.clone()
            else:
                previous = name
                found[name] = y.clone()

        return record

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def channel_moments(y: Tensor) -> tuple[Array, Array]:
    flat = y.transpose(0, 1).flatten(1).double().numpy()
    return flat.mean(axis=1), flat.std(axis=1)


def channels_left(space: Space, policy: Policy) -> Mapping[str, Array]:
    """What stays of every tensor: recovered from the importance order, without the pruner."""
    left = {}
    for group in space.groups:
        stays = set(space.order[group.name][: policy.channels[group.name]].tolist())
        for name, positions in group.members.items():
            left[name] = np.array([c for c, p in enumerate(positions.tolist()) if p < 0 or p in stays])
    return left


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("count", [1, 5])
def test_the_untouched_policy_is_repaired_to_exactly_itself(
    name: str, count: int, space_of: SpaceOf, image: Image
) -> None:
    space = space_of(name)
    candidate = compress(space, space.base(), calibrated(space, 7 * image(count, 3)))
    assert candidate.network.weights_hash() == space.network.weights_hash()
    assert candidate.int8 == {}
    assert torch.equal(run(candidate.network, image(4)), run(space.network, image(4)))


@pytest.mark.parametrize("option", ["a", "b"])
@pytest.mark.parametrize("bits", [(32, 32), (8, 8)])
def test_a_repaired_layer_has_the_moments_of_the_pytorch_module(
    option: str, bits: tuple[int, int], space_of: SpaceOf, make: Make, image: Image
) -> None:
    name = f"residual-{option}"
    space, x = space_of(name), image(24, 5)
    policy = space.uniform(0.7, bits, "svd 0.5")
    expected = module_outputs(make(name), x)
    found = outputs(compress(space, policy, moments_only(space, x)).network, x)
    bare = outputs(apply(space, policy).network, x)
    left = channels_left(space, policy)
    checked = 0
    for op in space.network.layers:
        kept = left.get(op.name, np.arange(space.network.shapes[op.name][0]))
        mean, std = channel_moments(expected[op.name][:, torch.from_numpy(kept)])
        found_mean, found_std = channel_moments(found[op.name])
        assert np.allclose(found_mean, mean, atol=1e-4)
        if op.name in space.normalised:
            assert np.allclose(found_std, std, rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked == len(space.network.layers) - 1
    # The test would be empty if pruning had left the moments alone.
    last = "layer3.0.conv2"
    assert not np.allclose(channel_moments(bare[last])[1], channel_moments(found[last])[1], rtol=0.01)


@pytest.mark.parametrize("name", TOYS)
def test_a_repaired_layer_has_the_means_of_the_untouched_network(name: str, space_of: SpaceOf, image: Image) -> None:
    space, x = space_of(name), image(24, 5)
    policy = mixed(space)
    expected = outputs(space.network, x)
    candidate = compress(space, policy, moments_only(space, x))
    found = outputs(candidate.network, x)
    left = channels_left(space, policy)
    for op in space.network.layers:
        if op.is_depthwise:
            continue
        kept = torch.from_numpy(left.get(op.name, np.arange(space.network.shapes[op.name][0])))
        mean, std = channel_moments(expected[op.name][:, kept])
        assert np.allclose(channel_moments(found[op.name])[0], mean, atol=1e-4 * max(1.0, float(std.max())))


@pytest.mark.parametrize("name", TOYS)
def test_the_repair_reduces_the_error_on_fresh_images(name: str, space_of: SpaceOf, image: Image) -> None:
    space = space_of(name)
    policy = space.uniform(0.75, INT8)
    fresh = image(64, 11)
    expected = run(space.network, fresh)
    bare = run(apply(space, policy).network, fresh)
    repaired = run(compress(space, policy, calibrated(space, image(64, 12))).network, fresh)
    assert float((repaired - expected).square().mean()) < 0.8 * float((bare - expected).square().mean())


@pytest.mark.parametrize("name", TOYS)
def test_float_weights_are_what_the_int8_weights_stand_for(name: str, space_of: SpaceOf, image: Image) -> None:
    space = space_of(name)
    policy = mixed(space)
    for candidate in (apply(space, policy), compress(space, policy, calibrated(space, image(8)))):
        narrow = {op.name for op in candidate.network.layers if candidate.decisions[op.name].format.weight.bits <= 8}
        assert set(candidate.int8) == narrow
        assert narrow
        for layer, (quantised, scale) in candidate.int8.items():
            weight = candidate.network.node(layer).weight
            assert weight is not None
            assert weight.dtype == np.float32
            assert quantised.dtype == np.int8
            assert (scale > 0).all()
            expected = quantised.astype(np.float32) * scale.reshape(-1, *[1] * (quantised.ndim - 1))
            assert np.array_equal(weight, expected)


@pytest.mark.parametrize("name", TOYS)
def test_every_layer_of_the_network_has_its_decision(name: str, space_of: SpaceOf) -> None:
    space = space_of(name)
    policy = mixed(space)
    candidate = apply(space, policy)
    assert set(candidate.decisions) == {op.name for op in candidate.network.layers}
    for layer, decision in policy.layers.items():
        assert candidate.decisions[layer] == decision
        assert (f"{layer}/factor" in candidate.decisions) == (decision.rank is not None)


@pytest.mark.parametrize("name", TOYS)
def test_ranges_are_the_mean_extremes_of_every_tensor(name: str, space_of: SpaceOf, image: Image) -> None:
    space, x = space_of(name), image(40, 2)
    candidate = compress(space, mixed(space), calibrated(space, x))
    found = {candidate.network.input: x, **outputs(candidate.network, x)}
    assert set(candidate.ranges) == set(found)
    for tensor, (low, high) in candidate.ranges.items():
        slices = [found[tensor][start : start + 16].double().numpy() for start in (0, 16, 32)]
        scale = max(abs(low), abs(high), 1.0)
        assert low == pytest.approx(np.mean([part.min() for part in slices]), abs=1e-3 * scale)
        assert high == pytest.approx(np.mean([part.max() for part in slices]), abs=1e-3 * scale)


def test_a_repair_without_a_bit_of_signal_stays_finite(space_of: SpaceOf) -> None:
    space = space_of("residual-a")
    images = np.zeros((3, 3, 16, 16), np.float32)
    candidate = compress(space, mixed(space), Calibration.of(space, images))
    assert all(np.isfinite(op.weight).all() for op in candidate.network.layers if op.is_layer)
    assert all(np.isfinite(bounds).all() for bounds in candidate.ranges.values())


def test_a_dead_channel_is_not_blown_up(image: Image) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[3].weight[0] = 0
    space = build_space(nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), image(1))
    policy = space.uniform(0.5, INT8)
    bare, repaired = apply(space, policy), compress(space, policy, moments_only(space, image(8)))
    for op in bare.network.layers:
        weight = repaired.network.node(op.name).weight
        assert op.is_layer
        assert weight is not None
        assert (np.abs(weight) <= LARGEST_RESCALE * np.abs(op.weight) * (1 + 1e-5) + 1e-12).all()


def same(a: Candidate, b: Candidate) -> bool:
    return (a.network.weights_hash(), a.ranges, a.policy) == (b.network.weights_hash(), b.ranges, b.policy)


@pytest.mark.parametrize("name", TOYS)
def test_the_same_policy_gives_the_same_candidate(name: str, space_of: SpaceOf, image: Image) -> None:
    space = space_of(name)
    calibration = calibrated(space, image(20))
    assert same(compress(space, mixed(space), calibration), compress(space, mixed(space), calibration))


def test_another_process_builds_the_same_candidate_bit_for_bit() -> None:
    code = f"from __future__ import annotations\n{inspect.getsource(built)}\nprint(built())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with torch.random.fork_rng():
        assert done.stdout.strip() == built()


def test_applying_a_policy_changes_neither_the_space_nor_the_calibration(space_of: SpaceOf, image: Image) -> None:
    space = space_of("residual-a")
    calibration = calibrated(space, image(8))
    before = space.network.weights_hash(), calibration.images.clone()
    compress(space, mixed(space), calibration)
    assert space.network.weights_hash() == before[0]
    assert torch.equal(calibration.images, before[1])


def test_a_calibration_owns_its_images(space_of: SpaceOf) -> None:
    images = np.ones((2, 3, 16, 16), np.float32)
    calibration = Calibration.of(space_of("residual-a"), images)
    images[:] = 0
    assert bool((calibration.images == 1).all())
