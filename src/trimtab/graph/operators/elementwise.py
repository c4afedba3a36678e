"""Operators that compute every place of a tensor on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimtab.errors import BadInput
from trimtab.graph.node import NOT_ZERO_AT_ZERO, Array, Node, Shape
from trimtab.graph.operators.base import Operator, Pair, check_constants

__all__ = ["Activation", "Add", "ChannelAffine", "Mul", "PReLU", "Quantize"]


class Quantize(Operator):
    """A change of storage: its output is stored as the program says."""


class Activation(Operator):
    """An activation of its own, behind anything that has none."""

    attributes = ("activation",)

    def needs_every_channel(self, node: Node, readers: Sequence[Node]) -> bool:
        # Only a product takes a constant back to zero.
        constant = node.attrs["activation"] in NOT_ZERO_AT_ZERO
        return constant and not all(reader.kind == "mul" for reader in readers)


class PReLU(Operator):
    """The activation max(x, 0) + slope * min(x, 0), with `weights["slope"]`, (C,) float32."""

    weights = ("slope",)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        check_constants(node, {"slope": inputs[0][:1]})
        return inputs[0]


class ChannelAffine(Operator):
    """The product with `weights["weight"]` plus `weights["bias"]`, each (C,) float32, or one of the two."""

    weights = ("weight", "bias")

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if not node.weights:
            raise BadInput(f"layer {node.name!r}: channel_affine needs weights['weight'], weights['bias'] or both")
        check_constants(node, {"weight": inputs[0][:1], "bias": inputs[0][:1]}, optional=True)
        return inputs[0]


class Add(Operator):
    """The sum of two tensors of one shape."""

    attributes = ("activation",)
    operands = (2, 2)
    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if inputs[0] != inputs[1]:
            raise BadInput(f"layer {node.name!r}: adds tensors of shapes {inputs[0]} and {inputs[1]}")
        return inputs[0]

    def ties(self, node: Node, inputs: Sequence[Array], output: Array) -> Iterator[Pair]:
        yield inputs[0], inputs[1]


class Mul(Operator):
    """The product of two tensors of one shape, or of (C, H, W) with a gate (C, 1, 1)."""

    operands = (2, 2)
    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        left, right = inputs
        if right != left and not (len(left) == 3 and right == (left[0], 1, 1)):
            raise BadInput(f"layer {node.name!r}: multiplies tensors of shapes {left} and {right}")
        return left

    def asks_for(self, node: Node) -> tuple[str, ...]:
        return node.inputs[:1]  # the second may be a gate, which is small

    def ties(self, node: Node, inputs: Sequence[Array], output: Array) -> Iterator[Pair]:
        yield inputs[0], inputs[1]
