"""Channel groups: which channels must be pruned together.

Torch-Pruning's dependency graph (Fang et al. 2023, arXiv:2301.12900) says which layers' channels are coupled. Its
index bookkeeping is completed by walking our own graph once: additions and products tie their operands, a grouped
convolution ties the same position in each of its groups, attention in each of its heads, and what reaches the output
or a layer norm is never pruned. Channel shuffles and attention lose Torch-Pruning's indices: there, our own walk
decides alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch_pruning as tp
from torch import fx, nn

from trimtab.graph import OPERATORS, Array, Graph, Node
from trimtab.graph.channels import propagate
from trimtab.spaces.zoo import ChannelPad

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


def channel_groups(module: fx.GraphModule, network: Graph, example: torch.Tensor) -> tuple[ChannelGroup, ...]:
    """Return the prunable groups of a traced module and its network, in the order of their first layers."""
    ties = _Ties(network)
    if not any(op.is_selection or op.kind == "attention" for op in network):
        ties.add_dependency_graph(module, example)
    return ties.groups()


class _ChannelPadPruner(tp.function.BasePruningFunc):  # type: ignore[misc]
    """Tells Torch-Pruning that a channel pad's input and output channels are not the same ones."""

    def __init__(self, sizes: Mapping[nn.Module, tuple[int, int]]) -> None:
        super().__init__()
        self.sizes = sizes

    def get_in_channels(self, layer: nn.Module) -> int:
        return self.sizes[layer][0]

    def get_out_channels(self, layer: nn.Module) -> int:
        return self.sizes[layer][1]

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise NotImplementedError("the dependency graph is only read")

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise NotImplementedError("the dependency graph is only read")


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

    def add_dependency_graph(self, module: fx.GraphModule, example: torch.Tensor) -> None:
        """Tie the output channels that Torch-Pruning would prune together with each layer's."""
        names = {layer: name for name, layer in module.named_modules()}
        pads: dict[nn.Module, tuple[int, int]] = {
            layer: (len(self.atoms[self.network.node(name).inputs[0]]), self.network.shapes[name][0])
            for layer, name in names.items()
            if isinstance(layer, ChannelPad)
        }
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(
                module,
                example_inputs=example,
                customized_pruners={ChannelPad: _ChannelPadPruner(pads)},
                verbose=False,
            )
        misled = {self._find(atom) for atom in self._flattened_behind_concat()}
        for op in self.producers:
            layer = module.get_submodule(op.name) if op.is_layer else None
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            if misled.intersection(self._find(atom) for atom in self.own[op.name].tolist()):
                continue
            prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
            root = self.own[op.name]
            for dependency, indices, roots in _outputs(graph, layer, prune, len(root)):
                target = self.atoms.get(names.get(dependency, ""))
                if target is None:
                    continue
                for index, root_index in zip(indices, roots, strict=True):
                    if index < len(target):
                        self._tie(root[root_index : root_index + 1], target[index : index + 1])

    def _flattened_behind_concat(self) -> set[int]:
        """Atoms that are flattened behind a concatenation: there Torch-Pruning loses the offsets.

        It would tie channels of one operand to others of the next; our own walk has all that is tied.
        """
        concatenated: set[str] = set()
        found: set[int] = set()
        for op in self.network:
            if op.kind == "concat" or (op.name not in self.own and not concatenated.isdisjoint(op.inputs)):
                concatenated.add(op.name)
            if op.kind == "flatten" and op.inputs[0] in concatenated:
                found.update(atom for atom in self.atoms[op.inputs[0]].tolist() if atom >= 0)
        return found

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


def _outputs(
    graph: tp.DependencyGraph, layer: nn.Module, prune: object, channels: int
) -> list[tuple[nn.Module, list[int], list[int]]]:
    group = graph.get_pruning_group(layer, prune, idxs=list(range(channels)))
    return [
        (item.dep.target.module, item.idxs, item.root_idxs)
        for item in group.items
        if graph.is_out_channel_pruning_fn(item.dep.handler)
    ]


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
