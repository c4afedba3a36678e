"""Operators that look at places around each other: pooling, upsampling, norms of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import BadInput, UnsupportedOperator
from trimtab.graph.node import Node, Shape
from trimtab.graph.operators.base import Operator, check_constants, image_of, windows

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "GlobalAvgPool2d", "GroupNorm", "MaxPool2d", "Upsample"]

MAX_SIDE = 2**20  # of an upsampled image: there is a table of where each row and column comes from


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


class Upsample(Operator):
    """An image of `size` (rows, columns). With `mode` "nearest" row r of n is the input's row floor(r * H / n); with
    "bilinear" it lies at (r + 0.5) * H / n - 0.5, or, where `align_corners`, at r * (H - 1) / (n - 1), between two."""

    attributes = ("size", "mode", "align_corners")
    reads_integers = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        size = node.attrs["size"]
        if node.attrs["align_corners"] and node.attrs["mode"] != "bilinear":
            raise BadInput(f"layer {node.name!r}: only bilinear upsampling may align corners")
        if max(size) > MAX_SIDE:
            raise UnsupportedOperator(
                f"layer {node.name!r}: upsampling to {size} (supported: sides of up to {MAX_SIDE})"
            )
        return (image_of(node, inputs[0])[0], *size)

    def moves(self, attrs: Mapping[str, Any]) -> bool:
        return bool(attrs.get("mode", "nearest") == "nearest")


class GroupNorm(Operator):
    """Each of `groups` groups of channels, normalised over all pixels; with `weights["weight"]` and
    `weights["bias"]`, (C,) float32."""

    attributes = ("groups", "epsilon")
    weights = ("weight", "bias")

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, groups = image_of(node, inputs[0])[0], node.attrs["groups"]
        if channels % groups:
            raise BadInput(f"layer {node.name!r}: {groups} groups do not fit {channels} channels")
        check_constants(node, {"weight": (channels,), "bias": (channels,)})
        return inputs[0]

    def needs_every_channel(self, node: Node, readers: Sequence[Node]) -> bool:
        return bool(node.attrs["groups"] != len(node.weights["weight"]))

    def widens(self, node: Node, source: Shape) -> bool:
        return False

    def with_channels(self, attrs: Mapping[str, Any], before: int, after: int) -> Mapping[str, Any]:
        return {**attrs, "groups": after if attrs["groups"] == before else attrs["groups"]}
