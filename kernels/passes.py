"""Rewritings of a graph before it is compiled; docs/arithmetic.md defines results after them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from trimtab.kernels.graph import Graph, Node, moves
from trimtab.kernels.validate import check_graph, is_integer

__all__ = ["fuse", "legalise"]


def fuse(graph: Graph) -> Graph:
    """Return the graph with activations and additions folded into the layers that feed them.

    An `activation` joins the conv2d, linear or add that only it reads; an `add` becomes the residual of a conv2d
    or linear that only it reads. A tensor with quantisation of its own, or the graph's output, is never folded.
    """
    checked, _ = check_graph(graph)
    uses = Counter(name for node in checked.nodes for name in node.inputs)
    uses[checked.output] += 1
    nodes: dict[str, Node] = {}  # by the tensor they produce, in order
    for node in checked.nodes:
        folded = None
        if node.op == "activation":
            folded = _fold_activation(checked, node, nodes, uses)
        elif node.op == "add":
            folded = _fold_add(checked, node, nodes, uses)
        nodes[node.name] = folded or node
    return replace(checked, nodes=tuple(nodes.values()))


def _private(graph: Graph, name: str, uses: Counter[str]) -> bool:
    return uses[name] == 1 and name not in graph.quant


def _fold_activation(graph: Graph, node: Node, nodes: dict[str, Node], uses: Counter[str]) -> Node | None:
    source = nodes.get(node.inputs[0])
    if source is None or source.op not in ("conv2d", "linear", "add") or source.attrs["activation"] != "none":
        return None
    if not _private(graph, source.name, uses):
        return None
    del nodes[source.name]
    return replace(source, name=node.name, attrs={**source.attrs, "activation": node.attrs["activation"]})


def _fold_add(graph: Graph, node: Node, nodes: dict[str, Node], uses: Counter[str]) -> Node | None:
    order = list(nodes)
    candidates = [
        name
        for name in node.inputs
        if (source := nodes.get(name)) is not None
        and source.op in ("conv2d", "linear")
        and len(source.inputs) == 1
        and source.attrs["activation"] == "none"
        and _private(graph, name, uses)
    ]
    if not candidates:
        return None
    last = max(candidates, key=order.index)
    other = node.inputs[1] if node.inputs[0] == last else node.inputs[0]
    source = nodes.pop(last)
    return replace(
        source,
        name=node.name,
        inputs=(source.inputs[0], other),
        attrs={**source.attrs, "activation": node.attrs["activation"]},
    )


def legalise(graph: Graph) -> Graph:
    """Return the graph in the forms that the kernels have: `quantize` nodes inserted, int8 weights widened.

    Operators that move values get an input stored as their output is; float layers get float32 inputs and weights.
    """
    quant = dict(graph.quant)
    taken = {graph.input, *(node.name for node in graph.nodes)}
    nodes: list[Node] = []
    for node in graph.nodes:
        source = node.inputs[0]
        if node.op in ("conv2d", "linear"):
            if is_integer(graph, node):
                nodes.append(node)
                continue
            stored = None
            node = _widened(node)
        elif moves(node.op, node.attrs):
            stored = graph.quant.get(node.name)
        else:
            nodes.append(node)
            continue
        if graph.quant.get(source) != stored:
            name = _fresh(f"{node.name}.input", taken)
            nodes.append(Node("quantize", name, (source,)))
            if stored is not None:
                quant[name] = stored
            node = replace(node, inputs=(name, *node.inputs[1:]))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), quant=quant)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _widened(node: Node) -> Node:
    weights = dict(node.weights)
    scale = weights.pop("weight_scale", None)
    if scale is None:
        return node
    weight = weights["weight"]
    columns = scale.reshape(-1, *([1] * (weight.ndim - 1)))
    return replace(node, weights={**weights, "weight": weight.astype(np.float32) * columns})
