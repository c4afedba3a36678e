"""Pruned networks at full width: what pruning must equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from trimtab.graph import Array, Graph, Node
from trimtab.spaces.channels.prune import selected_channels


def zero_channels(network: Graph, kept: Mapping[str, Array]) -> Graph:
    """Return the folded network at full width, with every pruned channel producing zero.

    Depthwise layers, norms and constants behind a pruned channel would revive it by their bias, and channel maps by
    their input: they produce zeros there too.
    """
    selected = selected_channels(network, kept)
    return replace(network, nodes=tuple(_zero(op, selected[op.name]) for op in network))


def _zero(op: Node, stays: Array) -> Node:
    if op.kind == "channel_map":
        kept = set(stays.tolist())
        index = tuple(source if channel in kept else -1 for channel, source in enumerate(op.attrs["index"]))
        return op.with_attrs(index=index)
    if not op.is_layer and op.kind not in ("channel_affine", "group_norm"):
        return op
    mask = np.zeros(len(next(iter(op.weights.values()))), np.float32)
    mask[stays] = 1
    if not op.is_layer:
        return op.with_weights(**{name: array * mask for name, array in op.weights.items()})
    weight = op.weight * mask.reshape(-1, *[1] * (op.weight.ndim - 1))
    return op.with_weights(weight=weight, bias=None if op.bias is None else op.bias * mask)
