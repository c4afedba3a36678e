"""Pruned networks at full width: what pruning must equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from trimtab.spaces.network import Array, Network, Op
from trimtab.spaces.prune import selected_channels


def zero_channels(network: Network, kept: Mapping[str, Array]) -> Network:
    """Return the folded network at full width, with every pruned channel producing zero.

    Depthwise layers behind a pruned channel would revive it by their bias, and channel maps by their input: they
    produce zeros there too.
    """
    selected = selected_channels(network, kept)
    return replace(network, ops=tuple(_zero(op, selected[op.name]) for op in network))


def _zero(op: Op, stays: Array) -> Op:
    if op.kind == "channel_map":
        kept = set(stays.tolist())
        index = tuple(source if channel in kept else -1 for channel, source in enumerate(op.attrs["index"]))
        return replace(op, attrs={**op.attrs, "index": index})
    if op.weight is None:
        return op
    mask = np.zeros(op.weight.shape[0], np.float32)
    mask[stays] = 1
    weight = op.weight * mask.reshape(-1, *[1] * (op.weight.ndim - 1))
    return replace(op, weight=weight, bias=None if op.bias is None else op.bias * mask)
