"""Operators of sequences: L tokens with F features each are the tensor (F, L, 1).

A token is a pixel, so a linear layer over tokens is a 1x1 convolution, and memory holds the features of one token side
by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.errors import BadInput
from trimtab.graph.node import Array, Node, Shape
from trimtab.graph.operators.base import Operator, Pair, check_constants, image_of
from trimtab.graph.operators.layers import tied_parts

__all__ = ["Attention", "LayerNorm", "Tokens"]


class LayerNorm(Operator):
    """The channels of every pixel, normalised; with `weights["weight"]` and `weights["bias"]`, (C,) float32."""

    attributes = ("epsilon",)
    weights = ("weight", "bias")

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels = inputs[0][0]
        check_constants(node, {"weight": (channels,), "bias": (channels,)})
        return inputs[0]

    def needs_every_channel(self, node: Node, readers: Sequence[Node]) -> bool:
        return True

    def widens(self, node: Node, source: Shape) -> bool:
        return False


class Tokens(Operator):
    """An image (C, H, W) as a sequence (C, P + H * W, 1), row by row: the P tokens of `weights["prefix"]` (P, C) come
    first, and `weights["position"]` (P + H * W, C) is added; both are float32 and optional."""

    weights = ("prefix", "position")

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        c, h, w = image_of(node, inputs[0])
        prefix = node.weights.get("prefix")
        first = 0 if prefix is None or prefix.ndim != 2 else len(prefix)
        check_constants(node, {"prefix": (first, c), "position": (first + h * w, c)}, optional=True)
        return (c, first + h * w, 1)

    def needs_every_channel(self, node: Node, readers: Sequence[Node]) -> bool:
        return bool(node.weights)

    def sliced(self, node: Node, source: Array, out: Array) -> Node:
        return node

    def widens(self, node: Node, source: Shape) -> bool:
        return False

    def widened(self, node: Node, source: int, out: int) -> Node:
        return node


class Attention(Operator):
    """Attention: queries and keys (heads * D, L, 1) and values (heads * E, L, 1), head after head, to
    (heads * E, L, 1), softmax(scale * q k^T) v of every head."""

    attributes = ("heads", "scale")
    operands = (3, 3)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        query, key, value = (image_of(node, shape) for shape in inputs)
        heads = node.attrs["heads"]
        if query != key or query[1:] != value[1:] or query[2] != 1 or query[0] % heads or value[0] % heads:
            raise BadInput(f"layer {node.name!r}: attention of {heads} heads over tensors of shapes {list(inputs)}")
        return inputs[2]

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        return inputs[2]

    def ties(self, node: Node, inputs: Sequence[Array], output: Array) -> Iterator[Pair]:
        # Queries and keys meet feature by feature; all heads are of one size.
        query, key, value = inputs
        yield query, key
        for channels in (query, value):
            yield from tied_parts(channels, node.attrs["heads"])

    def macs(self, attrs: Mapping[str, Any], source: Shape, out: Shape) -> int:
        return source[1] ** 2 * (source[0] + out[0])

    def widens(self, node: Node, source: Shape) -> bool:
        return False
