"""Operators that put values elsewhere and change none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.graph.node import Array, Node, Shape
from trimtab.graph.operators.base import Operator, image_of

__all__ = ["ChannelMap", "Concat", "Flatten", "Subsample"]


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


class Subsample(_Move):
    """Every stride-th row and column, from the first."""

    attributes = ("stride",)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        c, h, w = image_of(node, inputs[0])
        stride_h, stride_w = node.attrs["stride"]
        return (c, -(-h // stride_h), -(-w // stride_w))


class ChannelMap(_Move):
    """A choice of channels: output channel c is input channel `index[c]`, or zero where that is -1."""

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
