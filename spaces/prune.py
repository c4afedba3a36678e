"""Pruning by channel group: which channels a policy keeps, and the network without the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.spaces.groups import ChannelGroup
from trimtab.spaces.network import Array, Network, Op

__all__ = [
    "importance_order",
    "kept_channels",
    "prune",
    "selected_channels",
    "sliced",
    "smallest_kept",
]


def importance_order(group: ChannelGroup, score: Array) -> Array:
    """Return the group's channels by their scores (size,), highest first: (size,) ints. Ties go to the lower channel.

    Members may hold only a part of the group (the operands of a concatenation that is added to something): the best
    channel of each comes before all others, so that the first `smallest_kept` channels leave no layer empty.
    """
    order = np.argsort(-score, kind="stable")
    uncovered = _uncovered(group)
    first = []
    for channel in order.tolist():
        covered = {name for name in uncovered if channel in uncovered[name]}
        if covered:
            first.append(channel)
            uncovered = {name: channels for name, channels in uncovered.items() if name not in covered}
    return np.array(first + [channel for channel in order.tolist() if channel not in set(first)])


def smallest_kept(group: ChannelGroup, order: Array) -> int:
    """Return how many channels of `importance_order` have to stay so that no member loses all of its channels."""
    rank = {channel: i for i, channel in enumerate(order.tolist())}
    return max((min(rank[channel] for channel in channels) + 1 for channels in _uncovered(group).values()), default=1)


def _uncovered(group: ChannelGroup) -> dict[str, set[int]]:
    """The group channels of every member that has no channel that always stays."""
    return {name: set(positions.tolist()) for name, positions in group.members.items() if (positions >= 0).all()}


def kept_channels(groups: Sequence[ChannelGroup], kept: Mapping[str, Array]) -> dict[str, Array]:
    """Return for every producing layer the output channels that stay, ascending.

    `kept` maps a group's name to the group channels that stay.
    """
    channels = {}
    for group in groups:
        stays = np.zeros(group.size + 1, dtype=bool)  # the last place answers for position -1: always kept
        stays[kept[group.name]] = True
        stays[-1] = True
        for name, positions in group.members.items():
            channels[name] = np.flatnonzero(stays[positions])
    return channels


def prune(network: Network, kept: Mapping[str, Array]) -> tuple[Network, dict[str, Array]]:
    """Return the network with only the kept output channels of each producer, and what stays of every tensor.

    `kept` maps producing layers and channel maps to ascending channel indices; absent ones stay whole. Inputs follow.
    The second value holds every tensor's channels (C,) in the unpruned network's numbering.
    """
    selected = selected_channels(network, kept)
    ops = tuple(sliced(op, selected[op.inputs[0]], selected[op.name]) for op in network)
    return replace(network, ops=ops), selected


def selected_channels(network: Network, kept: Mapping[str, Array]) -> dict[str, Array]:
    """Return what `prune` leaves of every tensor: its channels (C,), ascending, in the unpruned network's numbering."""
    selected = {network.input: np.arange(network.input_shape[0])}
    for op in network:
        selected[op.name] = _selection(network, op, [selected[name] for name in op.inputs], kept)
    return selected


def _selection(network: Network, op: Op, sources: list[Array], kept: Mapping[str, Array]) -> Array:
    source = sources[0]
    if op.is_depthwise or op.kind == "flatten":
        factor = op.shape[0] // network.shape_of(op.inputs[0])[0]
        return np.asarray((source[:, None] * factor + np.arange(factor)).ravel())
    if op.is_selection:
        return np.flatnonzero(np.isin(op.attrs["index"], source))
    if op.kind == "attention":
        return sources[2]
    if op.makes_channels:
        return kept.get(op.name, np.arange(op.shape[0]))
    if op.kind == "concat":
        sizes = [network.shape_of(name)[0] for name in op.inputs]
        starts = np.cumsum([0, *sizes[:-1]])
        return np.concatenate([start + part for start, part in zip(starts, sources, strict=True)])
    if op.kind in ("add", "mul") and not np.array_equal(source, sources[1]):
        raise TrimtabError(f"the operands of {op.name!r} keep different channels: the channel groups are wrong")
    return source


def sliced(op: Op, source: Array, out: Array) -> Op:
    """Return an operator with only the input channels `source` and the output channels `out`, ascending."""
    shape = (len(out), *op.shape[1:])
    if op.kind == "channel_map":
        position = {int(channel): i for i, channel in enumerate(source)}
        index = tuple(position.get(op.attrs["index"][channel], -1) for channel in out)
        return replace(op, shape=shape, attrs={**op.attrs, "index": index})
    if op.weight is None:
        return replace(op, shape=shape)
    attrs = op.attrs
    weight = op.weight if len(out) == op.weight.shape[0] else op.weight[out]
    if op.is_depthwise:
        attrs = {**attrs, "groups": len(source)}
    else:
        # The groups of a convolution keep the same positions, so the first group's serve for all.
        inputs = source[: len(source) // op.groups]
        if len(inputs) != weight.shape[1]:
            weight = weight[:, inputs]
    bias = op.bias if op.bias is None else op.bias[out]
    norm = op.norm if op.norm is None else op.norm.select(out)
    return replace(op, shape=shape, attrs=attrs, weight=weight, bias=bias, norm=norm)
