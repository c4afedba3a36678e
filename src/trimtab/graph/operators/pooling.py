"""Operators that make one pixel of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import BadInput
from trimtab.graph.node import Node, Shape
from trimtab.graph.operators.base import Operator, image_of, windows

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "GlobalAvgPool2d", "MaxPool2d"]


class _Pool(Operator):
    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        image = image_of(node, inputs[0])
        kernel = node.attrs["kernel"]
        if any(p >= kernel[i % 2] for i, p in enumerate(node.attrs["padding"])):
            raise BadInput(f"layer {node.name!r}: padding must be smaller than the kernel")
        return (image[0], *windows(node, image, kernel))


class MaxPool2d(_Pool):
    """The largest value of every window."""

    attributes = ("kernel", "stride", "padding")

    def moves(self, attrs: Mapping[str, Any]) -> bool:
        return True


class AvgPool2d(_Pool):
    """The mean of every window, over the pixels of the image, or over its padding too."""

    attributes = ("kernel", "stride", "padding", "count_include_pad")


class GlobalAvgPool2d(Operator):
    """The mean of every channel, (C, H, W) to (C, 1, 1)."""

    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (image_of(node, inputs[0])[0], 1, 1)


class AdaptiveAvgPool2d(Operator):
    """The means of `size` (rows, columns) windows; of n over l, i is floor(i * l / n) to ceil((i + 1) * l / n)."""

    attributes = ("size",)
    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (image_of(node, inputs[0])[0], *node.attrs["size"])
