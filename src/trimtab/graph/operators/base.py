"""The contract of operators: all that a program knows of one kind of node, in one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import numpy as np

from trimtab.errors import BadInput
from trimtab.graph.attributes import MAX_ELEMENTS
from trimtab.graph.node import Array, Node, Shape

__all__ = ["Operator", "Pair", "check_constants", "image_of", "padded", "sized", "windows"]

#: Two arrays with a value per channel, place by place of the same channel.
Pair = tuple[Array, Array]


class Operator:
    """An operator. As it stands, it gives a tensor like its first input, channel by channel, in real numbers.

    Shapes are (C, H, W) or (F,), without the batch.
    """

    attributes: ClassVar[tuple[str, ...]] = ()
    #: The fewest and the most inputs.
    operands: ClassVar[tuple[int, int]] = (1, 1)
    #: The names of its arrays.
    weights: ClassVar[tuple[str, ...]] = ()
    #: Whether it may read uint8 although it computes in real numbers.
    reads_integers: ClassVar[bool] = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        """Return the output's shape for canonical attributes; raises BadInput, with the layer's name, where weights,
        attributes and inputs do not fit."""
        return inputs[0]

    def moves(self, attrs: Mapping[str, Any]) -> bool:
        """Whether, with these attributes, it only hands on values of its inputs: integers need no rounding then."""
        return False

    def asks_for(self, node: Node) -> tuple[str, ...]:
        """Return the inputs that it would rather read as its own output is stored."""
        return node.inputs if self.moves(node.attrs) else ()

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        """Return for every one of its output `channels` what the inputs' arrays, one value per channel, say of the
        channel that it comes from; never called where `Node.makes_channels`."""
        return inputs[0]

    def ties(self, node: Node, inputs: Sequence[Array], output: Array) -> Iterator[Pair]:
        """Yield, of arrays with a value per channel, the parts whose channels have to be kept or pruned together."""
        yield from ()

    def needs_every_channel(self, node: Node, readers: Sequence[Node]) -> bool:
        """Whether a channel of the input cannot go without changing the others, or leaves more than zeros behind for
        the `readers` of the output."""
        return False

    def sliced(self, node: Node, source: Array, out: Array) -> Node:
        """Return the node with only the input channels `source` and the output channels `out`, ascending."""
        weights = {name: array[out] for name, array in node.weights.items()}
        if not weights:
            return node
        before = len(next(iter(node.weights.values())))
        return replace(node, attrs=self.with_channels(node.attrs, before, len(out)), weights=weights)

    def widens(self, node: Node, source: Shape) -> bool:
        """Whether it may be given more channels behind those of its inputs: it then gives as many more, behind what
        it gave before."""
        return True

    def widened(self, node: Node, source: int, out: int) -> Node:
        """Return the node with `source` input and `out` output channels. Those that it has come first, and take nothing
        from the inputs' others."""
        weights = {name: padded(array, out) for name, array in node.weights.items()}
        return replace(node, weights=weights) if weights else node

    def with_channels(self, attrs: Mapping[str, Any], before: int, after: int) -> Mapping[str, Any]:
        """Return the attributes where, of so many channels `before`, so many are left."""
        return attrs

    def macs(self, attrs: Mapping[str, Any], source: Shape, out: Shape) -> int:
        """Return the multiply-accumulates for one image, given the shapes of the first input and of the output."""
        return 0


def padded(array: Array, *shape: int, fill: float = 0) -> Array:
    """Return an array with `fill` behind its values, up to this shape along its first axes; itself where it fits."""
    more = [n - have for n, have in zip(shape, array.shape, strict=False)]
    rest = [0] * (array.ndim - len(shape))
    return np.pad(array, [(0, after) for after in (*more, *rest)], constant_values=fill) if any(more) else array


def sized(name: str, shape: Shape) -> Shape:
    """Return a shape that a tensor may have; raises BadInput where it is too large."""
    if prod(shape) > MAX_ELEMENTS:
        raise BadInput(f"layer {name!r}: a tensor of shape {shape} is too large")
    return shape


def image_of(node: Node, shape: Shape) -> tuple[int, int, int]:
    """Return a shape that is (C, H, W); raises BadInput where it is not."""
    if len(shape) != 3:
        raise BadInput(f"layer {node.name!r}: {node.kind} needs an input of shape (C, H, W), got {shape}")
    return shape[0], shape[1], shape[2]


def windows(node: Node, image: tuple[int, int, int], reach: tuple[int, int]) -> tuple[int, int]:
    """Return how many windows of `reach` fit into the rows and the columns of an image with its padding."""
    top, left, bottom, right = node.attrs["padding"]
    stride_h, stride_w = node.attrs["stride"]
    _, h, w = sized(node.name, (image[0], image[1] + top + bottom, image[2] + left + right))
    return (h - reach[0]) // stride_h + 1, (w - reach[1]) // stride_w + 1


def check_constants(node: Node, shapes: Mapping[str, Shape], optional: bool = False) -> None:
    """Raise BadInput where a node's arrays are not finite float32 numbers of these shapes."""
    for name, shape in shapes.items():
        array = node.weights.get(name)
        if array is None and optional:
            continue
        if array is None or array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise BadInput(f"layer {node.name!r}: weights[{name!r}] must be finite float32 numbers of shape {shape}")
