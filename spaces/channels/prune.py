"""Pruning by channel group: which channels a policy keeps, and the network without the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.graph import OPERATORS, Array, Graph
from trimtab.graph.channels import propagate
from trimtab.spaces.channels.groups import ChannelGroup

__all__ = [
    "importance_order",
    "kept_channels",
    "prune",
    "selected_channels",
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


def prune(network: Graph, kept: Mapping[str, Array]) -> tuple[Graph, dict[str, Array]]:
    """Return the network with only the kept output channels of each producer, and what stays of every tensor.

    `kept` maps producing layers and channel maps to ascending channel indices; absent ones stay whole. Inputs follow.
    The second value holds every tensor's channels (C,) in the unpruned network's numbering.
    """
    selected = selected_channels(network, kept)
    nodes = [OPERATORS[node.kind].sliced(node, selected[node.inputs[0]], selected[node.name]) for node in network]
    return replace(network, nodes=tuple(nodes)), selected


def selected_channels(network: Graph, kept: Mapping[str, Array]) -> dict[str, Array]:
    """Return what `prune` leaves of every tensor: its channels (C,), ascending, in the unpruned network's numbering."""
    produced = {}
    for node in network:
        if node.makes_channels:
            channels = np.arange(network.shapes[node.name][0])
            produced[node.name] = np.isin(channels, kept.get(node.name, channels))
    stays = propagate(network, produced, fixed=True)
    for node in network:
        ties = OPERATORS[node.kind].ties(node, [stays[name] for name in node.inputs], stays[node.name])
        if not all(np.array_equal(left, right) for left, right in ties):
            raise TrimtabError(f"the operands of {node.name!r} keep different channels: the channel groups are wrong")
    return {tensor: np.flatnonzero(mask) for tensor, mask in stays.items()}
