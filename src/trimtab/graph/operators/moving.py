"""Operators that put values elsewhere and change none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.graph.node import Array, Node, Shape
from trimtab.graph.operators.base import Operator, Pair, image_of

__all__ = ["ChannelMap", "Concat", "DepthToSpace", "Flatten", "Subsample"]


class _Move(Operator):
    reads_integers = True

    def moves(self, attrs: Mapping[str, Any]) -> bool:
        return True


class Flatten(_Move):
    """All of a tensor as a vector, in (C, H, W) order, as in PyTorch."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (prod(inputs[0]),)

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        return np.repeat(inputs[0], channels // len(inputs[0]))

    def widens(self, node: Node, source: Shape) -> bool:
        return prod(source[1:]) == 1


class Subsample(_Move):
    """Every stride-th row and column, from the first."""

    attributes = ("stride",)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        c, h, w = image_of(node, inputs[0])
        stride_h, stride_w = node.attrs["stride"]
        return (c, -(-h // stride_h), -(-w // stride_w))


class ChannelMap(_Move):
    """A choice of channels: output channel c is input channel `index[c]`, or zero where that is -1.

    Where there are zeros, as in the shortcuts of option A, either side keeps channels of its own.
    """

    attributes = ("index",)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        index = node.attrs["index"]
        if max(index) >= inputs[0][0]:
            raise BadInput(f"layer {node.name!r}: index {max(index)} of {inputs[0][0]} channels")
        return (len(index), *inputs[0][1:])

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        return np.asarray(inputs[0][np.asarray(node.attrs["index"])])

    def sliced(self, node: Node, source: Array, out: Array) -> Node:
        position = {int(channel): i for i, channel in enumerate(source)}
        return node.with_attrs(index=tuple(position.get(node.attrs["index"][channel], -1) for channel in out))

    def widened(self, node: Node, source: int, out: int) -> Node:
        index = node.attrs["index"]
        return node.with_attrs(index=(*index, *[-1] * (out - len(index))))


class DepthToSpace(_Move):
    """A rearrangement of channels to pixels by a `block` (h, w): with (y, x) moved by the `crop` (top, left), output
    (c, y, x) is input ((c * h + y % h) * w + x % w, y // h, x // w). Its `size` (rows, columns), where that is None, is
    as far as the input reaches."""

    attributes = ("block", "crop", "size")

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        c, h, w = image_of(node, inputs[0])
        block, (top, left) = node.attrs["block"], node.attrs["crop"]
        if c % prod(block):
            raise BadInput(f"layer {node.name!r}: blocks of {block} do not fit {c} channels")
        below, right = h * block[0] - top, w * block[1] - left
        rows, columns = node.attrs["size"] or (below, right)
        if not (0 < rows <= below and 0 < columns <= right):
            raise BadInput(
                f"layer {node.name!r}: {(rows, columns)} pixels from {(top, left)} are not all inside of "
                f"{(h * block[0], w * block[1])}"
            )
        return (c // prod(block), rows, columns)

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        return inputs[0].reshape(channels, -1)[:, 0]

    def ties(self, node: Node, inputs: Sequence[Array], output: Array) -> Iterator[Pair]:
        first, *others = inputs[0].reshape(-1, prod(node.attrs["block"])).T
        yield from ((first, other) for other in others)

    def widens(self, node: Node, source: Shape) -> bool:
        return False


class Concat(Operator):
    """Tensors side by side, their channels one after the other; each may be stored with a scale of its own."""

    operands = (1, 1024)
    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if any(len(s) != len(inputs[0]) or s[1:] != inputs[0][1:] for s in inputs):
            raise BadInput(f"layer {node.name!r}: joins tensors of shapes {list(inputs)}")
        return (sum(s[0] for s in inputs), *inputs[0][1:])

    def asks_for(self, node: Node) -> tuple[str, ...]:
        return node.inputs

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        return np.concatenate(inputs)

    def widens(self, node: Node, source: Shape) -> bool:
        return False
