"""The geometry of a layer: all of it but the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trimtab.graph import Node

__all__ = ["Geometry", "total_macs"]


@dataclass(frozen=True)
class Geometry:
    """A convolution or, with the empty kernel, a linear layer, without its weight.

    `stride` and `dilation` are (rows, columns), `padding` is (top, left, bottom, right).
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, op: Node, inputs: int | None = None, outputs: int | None = None) -> Geometry:
        """Return a layer's geometry, with so many input and output channels where they are given."""
        if not op.is_layer:
            raise ValueError(f"{op.name} is not a layer")
        inputs = op.weight.shape[1] * op.groups if inputs is None else inputs
        outputs = op.weight.shape[0] if outputs is None else outputs
        if op.kind == "linear":
            return cls(inputs, outputs)
        stride, padding, dilation = (tuple(op.attrs[name]) for name in ("stride", "padding", "dilation"))
        groups = inputs if op.is_depthwise else op.groups
        return cls(inputs, outputs, tuple(op.weight.shape[2:]), stride, padding, dilation, groups)

    @property
    def kind(self) -> str:
        """The operator: "conv2d" or "linear"."""
        return "conv2d" if self.kernel else "linear"

    @property
    def attrs(self) -> dict[str, Any]:
        """The operator's attributes."""
        if not self.kernel:
            return {}
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, I / groups, kh, kw) or (O, I)."""
        return self.outputs, self.inputs // self.groups, *self.kernel

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.outputs == self.inputs

    @property
    def taps(self) -> int:
        """Pixels that one output sees."""
        return math.prod(self.kernel)

    @property
    def weights(self) -> int:
        """Weight elements, without bias."""
        return math.prod(self.weight_shape)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the output's shape (O, H, W) or (O,) for an input (C, H, W) or (F,)."""
        if not self.kernel:
            return (self.outputs, *in_shape[1:])
        ends = (self.padding[0] + self.padding[2], self.padding[1] + self.padding[3])
        sizes = zip(in_shape[1:], ends, self.kernel, self.stride, self.dilation, strict=True)
        return (self.outputs, *((n + end - d * (k - 1) - 1) // s + 1 for n, end, k, s, d in sizes))

    def macs(self, in_shape: tuple[int, ...]) -> int:
        """Return the multiply-accumulates for one input (C, H, W) or (F,)."""
        return self.weights * math.prod(self.out_shape(in_shape)[1:])


def total_macs(layers: tuple[Geometry, ...], in_shape: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of layers that follow each other, for one input (C, H, W) or (F,)."""
    total = 0
    for layer in layers:
        total += layer.macs(in_shape)
        in_shape = layer.out_shape(in_shape)
    return total
