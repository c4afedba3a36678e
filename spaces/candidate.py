"""A candidate: the network under a policy, repaired and ready for an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trimtab.spaces.execute import run
from trimtab.spaces.lowrank import factorise
from trimtab.spaces.network import Array, Network, Op
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.quantise import dequantise, quantise_weight
from trimtab.spaces.select import kept_channels, prune
from trimtab.spaces.space import Space

__all__ = ["Calibration", "Candidate", "apply", "compress", "int8_weights", "reshape_network"]

#: Images per slice when activation ranges are taken: the range is the mean over slices of each slice's extremes,
#: which one outlier moves little.
RANGE_SLICE = 16

#: Batch-norm re-estimation changes a channel's scale by at most this factor.
LARGEST_RESCALE = 8.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """The network under a policy.

    `network` is folded, pruned and factorised, its weights in float32; `decisions` has one entry per layer of it
    (both factors of a factorised layer share theirs); `int8` holds (weight int8, scale (O,)) of every layer with
    8-bit weights, whose float32 weight in `network` is exactly what they stand for; `ranges` holds (low, high) of
    every tensor on the calibration images.
    """

    policy: Policy
    network: Network
    decisions: Mapping[str, LayerDecision]
    int8: Mapping[str, tuple[Array, Array]]
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images (N, C, H, W) for repairs, and the untouched network's moments on them: per layer (mean, std), (O,)."""

    images: Tensor
    moments: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, space: Space, images: Array) -> Calibration:
        """Record the moments of the untouched network on float32 images (N, C, H, W)."""
        moments: dict[str, tuple[Tensor, Tensor]] = {}

        def observe(op: Op, y: Tensor) -> None:
            if op.is_layer:
                moments[op.name] = _moments(y)

        x = torch.from_numpy(np.array(images, dtype=np.float32))
        run(space.network, x, observe)
        return cls(x, moments)


def reshape_network(space: Space, policy: Policy) -> tuple[Network, dict[str, Array]]:
    """Return the pruned and factorised network, and which of the space's channels each tensor keeps."""
    kept = {group.name: space.order[group.name][: policy.channels[group.name]] for group in space.groups}
    pruned, channels = prune(space.network, kept_channels(space.groups, kept))
    ranks = {name: decision.rank for name, decision in policy.layers.items() if decision.rank is not None}
    return factorise(pruned, ranks), channels


def apply(space: Space, policy: Policy) -> Candidate:
    """Apply a policy without looking at any image: no repair, and no activation ranges."""
    return _apply(space, policy)[0]


def _apply(space: Space, policy: Policy) -> tuple[Candidate, dict[str, Array]]:
    space.check(policy)
    network, channels = reshape_network(space, policy)
    decisions = _decisions(network, policy)
    int8 = int8_weights(network, decisions)
    return Candidate(policy, _with_int8(network, int8), decisions, int8, {}), channels


def compress(space: Space, policy: Policy, calibration: Calibration) -> Candidate:
    """Apply a policy and repair it in one pass over the calibration images, from input to output.

    Every layer's output gets the mean that the untouched network had there (bias correction; Nagel et al. 2019,
    arXiv:1906.04721, section 4.2). Where the layer had a batch norm, it gets the standard deviation too, which is
    batch-norm re-estimation relative to the untouched network's statistics *on the same images*: so a policy that
    changes nothing is repaired to exactly what it was, whatever the images.
    """
    bare, channels = _apply(space, policy)
    untouched = policy.id == space.base().id
    ops = {op.name: op for op in bare.network}
    int8 = dict(bare.int8)
    ranges = {bare.network.input: _range(calibration.images)}

    def repair(op: Op, y: Tensor) -> Tensor:
        if op.name in calibration.moments and not untouched:
            factor, shift = _correction(op.name, y, channels[op.name], calibration, op.name in space.normalised)
            y = y * _per_channel(factor, y) + _per_channel(shift, y)
            ops[op.name], scale = _corrected(ops[op.name], factor.numpy(), shift.numpy(), int8.get(op.name))
            if scale is not None:
                int8[op.name] = (int8[op.name][0], scale)
        ranges[op.name] = _range(y)
        return y

    run(bare.network, calibration.images, repair)
    network = replace(bare.network, ops=tuple(ops[op.name] for op in bare.network))
    return replace(bare, network=network, int8=int8, ranges=ranges)


def int8_weights(network: Network, decisions: Mapping[str, LayerDecision]) -> dict[str, tuple[Array, Array]]:
    """Quantise the weight of every layer that has 8-bit weights."""
    return {
        op.name: quantise_weight(op.weight)
        for op in network.layers
        if op.weight is not None and decisions[op.name].w_bits == 8
    }


def _decisions(network: Network, policy: Policy) -> dict[str, LayerDecision]:
    return {op.name: policy.layers[op.name.removesuffix("/factor")] for op in network.layers}


def _with_int8(network: Network, int8: Mapping[str, tuple[Array, Array]]) -> Network:
    ops = tuple(replace(op, weight=dequantise(*int8[op.name])) if op.name in int8 else op for op in network)
    return replace(network, ops=ops)


def _correction(
    name: str, y: Tensor, channels: Array, calibration: Calibration, normalised: bool
) -> tuple[Tensor, Tensor]:
    """Per-channel factor and shift that bring the output's moments to the untouched network's."""
    mean, std = _moments(y)
    target_mean, target_std = (moment[torch.from_numpy(channels)] for moment in calibration.moments[name])
    factor = torch.ones_like(mean)
    if normalised:
        alive = (std > 1e-6) & (target_std > 1e-6)
        ratio = (target_std / std.clamp(min=1e-12)).clamp(1 / LARGEST_RESCALE, LARGEST_RESCALE)
        factor = torch.where(alive, ratio, factor)
    return factor, target_mean - mean * factor


def _corrected(op: Op, factor: Array, shift: Array, int8: tuple[Array, Array] | None) -> tuple[Op, Array | None]:
    """The layer with the correction folded in, and its new int8 scale (the int8 values themselves stay)."""
    bias = shift if op.bias is None else op.bias * factor + shift
    scale = None
    if int8 is None:
        weight = op.weight * factor.reshape(-1, *[1] * (op.weight.ndim - 1))  # type: ignore[union-attr,operator]
    else:
        scale = (int8[1] * factor).astype(np.float32)
        weight = dequantise(int8[0], scale)
    return replace(op, weight=weight.astype(np.float32), bias=bias.astype(np.float32)), scale


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    axes = (0, 2, 3) if y.ndim == 4 else (0,)
    std, mean = torch.std_mean(y, axes, correction=0)
    return mean, std


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _range(y: Tensor) -> tuple[float, float]:
    slices = [y[start : start + RANGE_SLICE].aminmax() for start in range(0, len(y), RANGE_SLICE)]
    low = float(torch.stack([part.min for part in slices]).mean())
    high = float(torch.stack([part.max for part in slices]).mean())
    return low, high
