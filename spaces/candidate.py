"""A candidate: the network under a policy, ready for an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trimtab.spaces.lowrank import factorise
from trimtab.spaces.network import Array, Network
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.quantise import dequantise, quantise_weight
from trimtab.spaces.select import kept_channels, prune
from trimtab.spaces.space import Space

__all__ = ["Candidate", "apply", "int8_weights", "layer_decisions", "reshape_network"]


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


def reshape_network(space: Space, policy: Policy) -> tuple[Network, dict[str, Array]]:
    """Return the pruned and factorised network, and which of the space's channels each tensor keeps."""
    kept = {group.name: space.order[group.name][: policy.channels[group.name]] for group in space.groups}
    pruned, channels = prune(space.network, kept_channels(space.groups, kept))
    ranks = {name: decision.rank for name, decision in policy.layers.items() if decision.rank is not None}
    return factorise(pruned, ranks), channels


def apply(space: Space, policy: Policy) -> Candidate:
    """Apply a policy without looking at any image: no repair, and no activation ranges."""
    space.check(policy)
    network, _ = reshape_network(space, policy)
    decisions = layer_decisions(network, policy)
    int8 = int8_weights(network, decisions)
    return Candidate(policy, _with_int8(network, int8), decisions, int8, {})


def int8_weights(network: Network, decisions: Mapping[str, LayerDecision]) -> dict[str, tuple[Array, Array]]:
    """Quantise the weight of every layer that has 8-bit weights."""
    return {
        op.name: quantise_weight(op.weight)
        for op in network.layers
        if op.weight is not None and decisions[op.name].w_bits == 8
    }


def layer_decisions(network: Network, policy: Policy) -> dict[str, LayerDecision]:
    """Return each layer's decision; both factors of a factorised layer share theirs."""
    return {op.name: policy.layers[op.name.removesuffix("/factor")] for op in network.layers}


def _with_int8(network: Network, int8: Mapping[str, tuple[Array, Array]]) -> Network:
    ops = tuple(replace(op, weight=dequantise(*int8[op.name])) if op.name in int8 else op for op in network)
    return replace(network, ops=ops)
