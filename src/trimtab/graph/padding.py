"""Padding of channels: tensors stored with more channels than they have, where that makes vectors and tiles whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np

from trimtab.graph.node import Node, free_name
from trimtab.graph.operators import OPERATORS
from trimtab.graph.program import Graph

__all__ = ["Channels", "isolate", "pad_channels"]

#: Kernels look up weights of at most so many distinct values; zeros beside them would be one more.
FEW_VALUES = 16


class Channels(NamedTuple):
    """The channels that some tensors have in common, as far as they decide how many are best stored.

    There are `width` of them. `integer` says whether all of the tensors are stored as uint8, `depthwise` whether
    depthwise layers read them, and `filters` how many columns the filters of the dense layers have that do.
    """

    width: int
    integer: bool
    depthwise: bool
    filters: tuple[int, ...]


def pad_channels(graph: Graph, stored: Callable[[Channels], int]) -> Graph:
    """Return a legalised graph whose images have as many channels as `stored` says, which are never fewer than now.

    Values stay what they are: weights that read what lies behind a tensor's own channels are zero. The graph's input
    and output stay as they are, and so does whatever shares its channels with them.
    """
    widths = {name: shape[0] for name, shape in graph.shapes.items()}
    for tensors in _paddable(graph):
        widths.update(dict.fromkeys(tensors, stored(_channels(graph, tensors))))
    nodes = (OPERATORS[node.kind].widened(node, widths[node.inputs[0]], widths[node.name]) for node in graph)
    return replace(graph, nodes=tuple(nodes))


def isolate(graph: Graph) -> Graph:
    """Return the graph between two copies of channels, so that its tensors are padded as those inside of a network."""
    taken = {graph.input, *(node.name for node in graph)}
    first, last = free_name(f"{graph.input}.copy", taken), free_name(f"{graph.output}.copy", taken)
    inside = (
        replace(node, inputs=tuple(first if name == graph.input else name for name in node.inputs)) for node in graph
    )
    quant = dict(graph.quant)
    for copy, copied in ((first, graph.input), (last, graph.output)):
        if copied in quant:
            quant[copy] = quant[copied]
    nodes = (_copy(graph, graph.input, first), *inside, _copy(graph, graph.output, last))
    return replace(graph, nodes=nodes, output=last, quant=quant)


def _copy(graph: Graph, tensor: str, name: str) -> Node:
    return Node("channel_map", name, (tensor,), {"index": tuple(range(graph.shapes[tensor][0]))})


def _paddable(graph: Graph) -> Iterator[Sequence[str]]:
    """Yield the tensors that can have more channels, together those that have to have the same."""
    sets = {name: {name} for name in graph.shapes}
    fixed = {graph.input, graph.output}
    for node in graph:
        if not OPERATORS[node.kind].widens(node, graph.shapes[node.inputs[0]]) or _has_few_values(node):
            fixed.update((*node.inputs, node.name))
        for name in _sharing(node):
            if sets[name] is not sets[node.name]:
                joined = sets[name] | sets[node.name]
                sets.update(dict.fromkeys(joined, joined))
    for tensors in {min(tensors): tensors for tensors in sets.values()}.values():
        # Beside the weights, what a single pixel takes is nothing.
        if fixed.isdisjoint(tensors) and any(prod(graph.shapes[name][1:]) > 1 for name in tensors):
            yield sorted(tensors)


def _sharing(node: Node) -> tuple[str, ...]:
    """The inputs that have the channels of the node's output."""
    if node.kind == "channel_map":
        return ()
    return node.inputs[1:] if node.is_layer and not node.is_depthwise else node.inputs


def _has_few_values(node: Node) -> bool:
    return node.is_layer and bool(node.weight.all()) and len(np.unique(node.weight)) <= FEW_VALUES


def _channels(graph: Graph, tensors: Sequence[str]) -> Channels:
    readers = [node for name in tensors for node in graph.readers(name) if node.is_layer and node.inputs[0] == name]
    dense = [node for node in readers if not node.is_depthwise]
    return Channels(
        graph.shapes[tensors[0]][0],
        all(name in graph.quant for name in tensors),
        len(dense) < len(readers),
        tuple(node.weight.shape[-1] if node.kind == "conv2d" else 1 for node in dense),
    )
