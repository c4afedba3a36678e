"""Channel groups: which channels must be pruned together.

A walk along the program, in which every operator ties channels by its own rule (`Operator.ties`): sums and products tie
their operands, a grouped convolution the same place in each of its groups, attention in each of its heads. What reaches
the output, or an operator that needs every channel, is never pruned. The dependency graph of Torch-Pruning (Fang et
al. 2023, arXiv:2301.12900) says the same of PyTorch's modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.graph import OPERATORS, Array, Graph, Node
from trimtab.graph.channels import propagate

__all__ = ["ChannelGroup", "channel_groups"]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are kept or pruned together, named after the first layer that produces them.

    `members` maps every producing layer to an int array (O,): the group's channel that each output channel belongs
    to, -1 where it belongs to none and always stays.
    """

    name: str
    size: int
    members: Mapping[str, Array]


def channel_groups(network: Graph) -> tuple[ChannelGroup, ...]:
    """Return the prunable groups of a network, in the order of their first layers."""
    return _Ties(network).groups()


class _Ties:
    """Union-find over all produced channels; `atoms` holds each tensor's channel numbers, -1 for the input's."""

    def __init__(self, network: Graph) -> None:
        self.network = network
        self.producers = [op for op in network if op.makes_channels]
        counts = [network.shapes[op.name][0] for op in self.producers]
        starts = np.cumsum([0, *counts])
        self.parent = list(range(int(starts[-1])))
        self.own = {
            op.name: np.arange(start, start + count)
            for op, start, count in zip(self.producers, starts, counts, strict=False)
        }
        self.atoms = propagate(network, self.own)
        self.frozen = set(self.atoms[network.output].tolist())
        for op in network:
            self._tie_operator(op)

    def _tie_operator(self, op: Node) -> None:
        operator, inputs = OPERATORS[op.kind], [self.atoms[name] for name in op.inputs]
        for left, right in operator.ties(op, inputs, self.atoms[op.name]):
            self._tie(left, right)
        if operator.needs_every_channel(op, self.network.readers(op.name)):
            self.frozen.update(inputs[0].tolist())
        # A residual addition reached over the output's frozen channels is frozen by the union itself.

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Collect the tied channels into groups of the layers that share them."""
        frozen = {self._find(atom) for atom in self.frozen if atom >= 0}
        for op in self.network:
            if op.is_selection:  # one of its channels stays, so that it never becomes empty
                chosen = [self._find(atom) for atom in self.atoms[op.name].tolist() if atom >= 0]
                if len(chosen) == len(self.atoms[op.name]) and frozen.isdisjoint(chosen):
                    frozen.add(chosen[0])
        classes = {op.name: np.array([self._find(atom) for atom in self.own[op.name]]) for op in self.producers}
        open_classes = {
            name: [c for c in dict.fromkeys(labels.tolist()) if c not in frozen] for name, labels in classes.items()
        }
        groups = []
        for names in _components(open_classes):
            numbers = list(dict.fromkeys(c for name in names for c in open_classes[name]))
            position = {c: i for i, c in enumerate(numbers)}
            members = {name: np.array([position.get(c, -1) for c in classes[name].tolist()]) for name in names}
            layers = [name for name in names if self.network.node(name).is_layer]
            if layers and len(numbers) > 1:
                groups.append(ChannelGroup(layers[0], len(numbers), members))
        return tuple(groups)

    def _find(self, atom: int) -> int:
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def _tie(self, left: Array, right: Array) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            if a < 0 or b < 0:  # tied to a channel of the input image, which stays
                self.frozen.add(max(a, b))
                continue
            a, b = sorted((self._find(a), self._find(b)))
            self.parent[b] = a


def _components(classes: Mapping[str, list[int]]) -> list[list[str]]:
    """Layers that share a class, directly or over others; in the order of their first layers."""
    component: dict[str, list[str]] = {}
    owner: dict[int, str] = {}
    position = {name: i for i, name in enumerate(classes)}
    for name, numbers in classes.items():
        if not numbers:
            continue
        component[name] = [name]
        for number in numbers:
            other = owner.setdefault(number, name)
            if component[other] is not component[name]:
                merged = sorted(component[other] + component[name], key=position.__getitem__)
                for member in merged:
                    component[member] = merged
    unique = {id(names): names for names in component.values()}
    return list(unique.values())
