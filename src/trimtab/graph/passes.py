"""Rewritings of a program before it is compiled; docs/arithmetic.md defines results after them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from trimtab.graph.node import Node, free_name
from trimtab.graph.operators import OPERATORS
from trimtab.graph.program import Graph, check_graph, is_integer

__all__ = ["Fused", "fuse", "fused_nodes", "legalise", "raise_activations"]


@dataclass(frozen=True, eq=False)
class Fused:
    """A node after fusion, and the `origin`, the name of the node that absorbed what it absorbed."""

    origin: str
    node: Node


def fuse(graph: Graph) -> Graph:
    """Return the graph with activations and additions folded into the layers that feed them.

    An `activation` joins the layer or sum that only it reads; an `add` becomes the residual of a layer that only it
    reads. A tensor with quantisation of its own, or the graph's output, is never folded.
    """
    checked = check_graph(graph)
    return replace(checked, nodes=tuple(fused.node for fused in _fused(checked)))


def fused_nodes(graph: Graph) -> list[Fused]:
    """Return the nodes that `fuse` leaves, in order."""
    return _fused(check_graph(graph))


def _fused(checked: Graph) -> list[Fused]:
    uses = Counter(name for node in checked.nodes for name in node.inputs)
    uses[checked.output] += 1
    private = {node.name for node in checked.nodes if uses[node.name] == 1 and node.name not in checked.quant}
    found: dict[str, Fused] = {}  # by the tensor that they produce
    for node in checked.nodes:
        host = None
        if node.kind == "activation":
            host = _host_of_activation(node, found, private)
        elif node.kind == "add":
            host = _host_of_sum(node, found, private)
        if host is None:
            found[node.name] = Fused(node.name, node)
        else:
            absorbing = found.pop(host)
            found[node.name] = Fused(absorbing.origin, _absorb(absorbing.node, node))
    return list(found.values())


def _absorb(host: Node, node: Node) -> Node:
    """The host, with the activation or the sum that reads it."""
    inputs = host.inputs
    if node.kind == "add":
        inputs = (host.inputs[0], node.inputs[1] if node.inputs[0] == host.name else node.inputs[0])
    return replace(host, name=node.name, inputs=inputs).with_attrs(activation=node.attrs["activation"])


def _host_of_activation(node: Node, found: dict[str, Fused], private: set[str]) -> str | None:
    source = node.inputs[0]
    return source if _is_open(source, found, private) else None


def _host_of_sum(node: Node, found: dict[str, Fused], private: set[str]) -> str | None:
    """The last of the layers that only the sum reads."""
    order = list(found)
    fit = [name for name in node.inputs if _is_open(name, found, private)]
    layers = [name for name in fit if found[name].node.is_layer and len(found[name].node.inputs) == 1]
    return max(layers, key=order.index, default=None)


def _is_open(tensor: str, found: dict[str, Fused], private: set[str]) -> bool:
    """Whether a tensor comes from a node that can take an activation, has none, and is read by one other only."""
    host = found.get(tensor)
    return host is not None and tensor in private and host.node.attrs.get("activation") == "none"


def raise_activations(graph: Graph) -> Graph:
    """Return the graph with activations before the rearrangements of channels to pixels that only they read, so that
    they join the layers there."""
    nodes = list(graph.nodes)
    place = {node.name: i for i, node in enumerate(nodes)}
    for i, node in enumerate(graph.nodes):
        source = node.inputs[0]
        at = place.get(source)
        if node.kind != "activation" or at is None or nodes[at].kind != "depth_to_space":
            continue
        if graph.output != source and graph.readers(source) == (node,):
            nodes[at] = replace(node, name=source, inputs=nodes[at].inputs)
            nodes[i] = replace(graph.node(source), name=node.name, inputs=(source,))
    return replace(graph, nodes=tuple(nodes))


def legalise(graph: Graph) -> Graph:
    """Return the graph in the forms that the kernels have: `quantize` nodes inserted, int8 weights widened.

    Operators that move values get an input stored as their output is; float layers get float32 inputs and weights.
    """
    quant = dict(graph.quant)
    taken = {graph.input, *(node.name for node in graph.nodes)}
    nodes: list[Node] = []
    for node in graph.nodes:
        source = node.inputs[0]
        if node.is_layer:
            if is_integer(graph, node):
                nodes.append(node)
                continue
            stored = None
            node = _widened(node)
        elif OPERATORS[node.kind].moves(node.attrs):
            stored = graph.quant.get(node.name)
        else:
            nodes.append(node)
            continue
        if graph.quant.get(source) != stored:
            name = free_name(f"{node.name}.input", taken)
            taken.add(name)
            nodes.append(Node("quantize", name, (source,)))
            if stored is not None:
                quant[name] = stored
            node = replace(node, inputs=(name, *node.inputs[1:]))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), quant=quant)


def _widened(node: Node) -> Node:
    weights = dict(node.weights)
    scale = weights.pop("weight_scale", None)
    if scale is None:
        return node
    weight = weights["weight"]
    columns = scale.reshape(-1, *([1] * (weight.ndim - 1)))
    return replace(node, weights={**weights, "weight": weight.astype(np.float32) * columns})
