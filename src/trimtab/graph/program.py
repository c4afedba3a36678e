"""The program: operators over named tensors, in NumPy and plain values.

It is what a network is traced to, what pruning, quantisation and factorisation rewrite, and what engines compile. A
tensor carries the name of the node that produces it (or of the program's input) and has the shape (C, H, W) or (F,) per
image. It is stored as float32, or, where `Graph.quant` has an entry for it, as uint8 with one scale and one zero point:
real = (q - zero_point) * scale, q of 1 to 8 bits. `docs/arithmetic.md` specifies every rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite, prod

import numpy as np

from trimtab.errors import BadInput, UnsupportedOperator, unknown_name
from trimtab.graph.attributes import attribute, is_int
from trimtab.graph.node import SMALLEST_SCALE, Node, Quant, Shape
from trimtab.graph.operators import OPERATORS
from trimtab.graph.operators.base import sized

__all__ = ["MAX_INTEGER_INPUTS", "Graph", "check_graph", "is_integer", "with_defaults"]

MAX_INTEGER_INPUTS = 32768  # of one output: 255 * 128 * 32768 < 2^30, and the bias is within 2^30 too
MAX_INTEGER_WINDOW = 2**23  # pixels under an average of integers: 255 * 2^23 < 2^31
MAX_NODES = 2**13  # planning memory takes time quadratic in them

_AVERAGES = ("avg_pool2d", "global_avg_pool2d", "adaptive_avg_pool2d")


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a program: nodes in an order in which every input is produced before it is read.

    The input is given as float32 (N, C, H, W) and the output is returned as float32 (N, ...), whatever their storage.
    """

    input: str
    input_shape: Shape
    nodes: tuple[Node, ...]
    output: str
    quant: Mapping[str, Quant] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @cached_property
    def layers(self) -> tuple[Node, ...]:
        """The nodes with weights to decide on, in order."""
        return tuple(node for node in self.nodes if node.is_layer)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor, the input's included, without the batch; BadInput where nodes do not fit."""
        shapes = {self.input: sized("input", tuple(self.input_shape))}
        for node in self.nodes:
            shapes[node.name] = _output_shape(with_defaults(node), shapes)
        return shapes

    def node(self, name: str) -> Node:
        """Return the node of this name."""
        return self._index[name]

    def readers(self, tensor: str) -> tuple[Node, ...]:
        """Return the nodes that read a tensor."""
        return self._readers.get(tensor, ())

    @cached_property
    def _index(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _readers(self) -> dict[str, tuple[Node, ...]]:
        readers: dict[str, tuple[Node, ...]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                readers[tensor] = (*readers.get(tensor, ()), node)
        return readers

    def folded(self) -> Graph:
        """Return the program with every batch norm folded into its layer."""
        return replace(self, nodes=tuple(node.folded() for node in self.nodes))

    def fingerprint(self) -> str:
        """Return a hash of the structure (operators, names, shapes), not of the weights: 16 hex digits."""
        digest = hashlib.sha256()
        for node in self.nodes:
            weight_shape = node.weight.shape if node.is_layer else None
            attrs = sorted(node.attrs.items())
            digest.update(
                repr((node.kind, node.name, node.inputs, self.shapes[node.name], attrs, weight_shape)).encode()
            )
        return digest.hexdigest()[:16]

    def weights_hash(self) -> str:
        """Return a hash of every weight, bias and norm: 16 hex digits."""
        digest = hashlib.sha256()
        for node in self.nodes:
            names = ("weight", "bias") if node.is_layer else sorted(node.weights)
            arrays = [node.weights[name] for name in names if name in node.weights]
            if node.norm is not None:
                arrays += [node.norm.weight, node.norm.bias, node.norm.mean, node.norm.var]
            for array in arrays:
                digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]


def check_graph(graph: Graph) -> Graph:
    """Return the graph with every attribute present and canonical.

    Raises BadInput, or UnsupportedOperator, with the name of the layer that is wrong.
    """
    if not isinstance(graph.input, str) or not graph.nodes:
        raise BadInput("a graph needs a named input and at least one node")
    if len(graph.nodes) > MAX_NODES:
        raise BadInput(f"a graph of {len(graph.nodes)} layers is too large (at most {MAX_NODES})")
    shape = tuple(graph.input_shape)
    if len(shape) not in (1, 3) or not all(is_int(n) and n > 0 for n in shape):
        raise BadInput(f"input shape must be (C, H, W) or (F,) of positive integers, got {shape!r}")
    checked = replace(graph, nodes=tuple(with_defaults(node) for node in graph.nodes), input_shape=shape)
    shapes = checked.shapes
    if graph.output not in shapes:
        raise BadInput(f"output {graph.output!r} is not produced by any layer")
    _check_quants(graph.quant, shapes)
    for node in checked.nodes:
        _check_integer_size(checked, node)
    return checked


def is_integer(graph: Graph, node: Node) -> bool:
    """Return whether the node is a layer that computes in integers."""
    weight = node.weights.get("weight")
    return weight is not None and weight.dtype == np.int8 and node.inputs[0] in graph.quant


def with_defaults(node: Node) -> Node:
    """Return the node with all attributes of its operator, canonical; raises where one is unknown or wrong."""
    operator = OPERATORS.get(node.kind)
    if operator is None:
        known = ", ".join(sorted(OPERATORS))
        raise UnsupportedOperator(f"layer {node.name!r}: operator {node.kind!r} is not supported (supported: {known})")
    if not isinstance(node.name, str) or not node.name:
        raise BadInput(f"a {node.kind} layer has no name")
    if any("\ud800" <= letter <= "\udfff" for letter in node.name):
        raise BadInput(f"layer {node.name!r}: the name is not valid Unicode")
    low, high = operator.operands
    if not low <= len(node.inputs) <= high:
        raise BadInput(f"layer {node.name!r}: {node.kind} takes {low} to {high} inputs, got {len(node.inputs)}")
    for name in node.attrs:
        if name not in operator.attributes:
            raise unknown_name(f"attribute of {node.kind} layer {node.name!r}:", name, operator.attributes)
    for name in node.weights:
        if name not in operator.weights:
            raise BadInput(f"layer {node.name!r}: {node.kind} has no weight {name!r}")
    attrs = {name: attribute(node, name) for name in operator.attributes}
    return replace(node, attrs=attrs, inputs=tuple(node.inputs))


def _output_shape(node: Node, shapes: Mapping[str, Shape]) -> Shape:
    if node.name in shapes:
        raise BadInput(f"layer {node.name!r}: the name is used twice")
    for name in node.inputs:
        if name not in shapes:
            raise BadInput(f"layer {node.name!r}: input {name!r} is not produced before it")
    result = OPERATORS[node.kind].shape(node, [shapes[name] for name in node.inputs])
    if min(result) < 1:
        raise BadInput(f"layer {node.name!r}: its output would be empty: {result}")
    return sized(node.name, result)


def _check_quants(quants: Mapping[str, Quant], shapes: Mapping[str, Shape]) -> None:
    for name, quant in quants.items():
        if name not in shapes:
            raise BadInput(f"quantisation of {name!r}: no such tensor")
        scale = float(np.float32(quant.scale)) if abs(quant.scale) < 1e38 else float("inf")
        if not (isfinite(scale) and SMALLEST_SCALE < scale < 1e30):
            raise BadInput(f"quantisation of {name!r}: scale must be in (1e-30, 1e30), got {quant.scale!r}")
        if not is_int(quant.bits) or not 1 <= quant.bits <= 8:
            raise BadInput(f"quantisation of {name!r}: bits must be 1 to 8, got {quant.bits!r}")
        if not is_int(quant.zero_point) or not 0 <= quant.zero_point <= quant.top:
            raise BadInput(f"quantisation of {name!r}: zero point must be 0 to {quant.top}, got {quant.zero_point!r}")


def _check_integer_size(graph: Graph, node: Node) -> None:
    if node.kind in _AVERAGES and node.inputs[0] in graph.quant:
        pixels = prod(node.attrs.get("kernel") or graph.shapes[node.inputs[0]][1:])
        if pixels > MAX_INTEGER_WINDOW:
            raise UnsupportedOperator(
                f"layer {node.name!r}: an average over {pixels} integers could overflow 32 bits "
                f"(supported: up to {MAX_INTEGER_WINDOW})"
            )
    if not is_integer(graph, node):
        return
    inputs = prod(node.weight.shape[1:])
    if inputs > MAX_INTEGER_INPUTS:
        raise UnsupportedOperator(
            f"layer {node.name!r}: integer {node.kind} over {inputs} inputs could overflow 32 bits "
            f"(supported: up to {MAX_INTEGER_INPUTS})"
        )
