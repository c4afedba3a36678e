"""Layers: the operators whose weight is decided on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from trimtab.errors import BadInput, UnsupportedOperator
from trimtab.graph.attributes import MAX_ELEMENTS
from trimtab.graph.node import SMALLEST_SCALE, Array, Node, Shape
from trimtab.graph.operators.base import Operator, Pair, image_of, padded, windows

__all__ = ["Conv2d", "Linear"]


class _Layer(Operator):
    """A layer: its output channels are its own."""

    operands = (1, 2)
    weights = ("weight", "weight_scale", "bias")
    reads_integers = True
    rank = 2

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        _check_weights(node, self.rank)
        result = self.result(node, inputs[0])
        if len(inputs) == 2 and inputs[1] != result:
            raise BadInput(f"layer {node.name!r}: residual of shape {inputs[1]} is added to {result}")
        return result

    def result(self, node: Node, source: Shape) -> Shape:
        """Return the output's shape; the weight is sound."""
        raise NotImplementedError

    def sliced(self, node: Node, source: Array, out: Array) -> Node:
        weight = node.weight if len(out) == len(node.weight) else node.weight[out]
        if node.is_depthwise:
            node = node.with_attrs(groups=len(source))
        else:
            # The groups of a convolution keep the same positions, so the first group's serve for all.
            inputs = source[: len(source) // node.groups]
            if len(inputs) != weight.shape[1]:
                weight = weight[:, inputs]
        bias = None if node.bias is None else node.bias[out]
        norm = None if node.norm is None else node.norm.select(out)
        return replace(node, norm=norm).with_weights(weight=weight, bias=bias)

    def widens(self, node: Node, source: Shape) -> bool:
        return node.groups == 1 or node.is_depthwise

    def widened(self, node: Node, source: int, out: int) -> Node:
        inputs = source // node.groups
        if node.is_depthwise:
            node, inputs = node.with_attrs(groups=source), 1
        scale = node.weights.get("weight_scale")
        return node.with_weights(
            weight=padded(node.weight, out, inputs),
            weight_scale=None if scale is None else padded(scale, out, fill=scale[-1]),
            bias=None if node.bias is None else padded(node.bias, out),
        )


class Conv2d(_Layer):
    """A convolution, (C, H, W) to (O, H', W'). With `precision` "bf16" instead of "fp32" the first input is rounded to
    bf16 and the products of bf16 numbers are added in float32; the weight is float32 and holds bf16 numbers only, and
    depthwise convolutions have no such precision."""

    attributes = ("stride", "padding", "dilation", "groups", "activation", "precision")
    rank = 4

    def result(self, node: Node, source: Shape) -> Shape:
        c, h, w = image_of(node, source)
        out, per_group, kh, kw = node.weight.shape
        groups = node.attrs["groups"]
        if c % groups or out % groups or per_group * groups != c:
            raise BadInput(
                f"layer {node.name!r}: weights {(out, per_group, kh, kw)} with {groups} groups do not fit {c} channels"
            )
        dilation_h, dilation_w = node.attrs["dilation"]
        rows, columns = windows(node, (c, h, w), ((kh - 1) * dilation_h + 1, (kw - 1) * dilation_w + 1))
        return (out, rows, columns)

    def carry(self, node: Node, inputs: Sequence[Array], channels: int) -> Array:
        return np.repeat(inputs[0], channels // len(inputs[0]))  # depthwise

    def ties(self, node: Node, inputs: Sequence[Array], output: Array) -> Iterator[Pair]:
        if node.groups > 1 and not node.is_depthwise:
            for channels in (inputs[0], output):
                yield from tied_parts(channels, node.groups)

    def macs(self, attrs: Mapping[str, Any], source: Shape, out: Shape) -> int:
        return prod(out) * source[0] // int(attrs["groups"]) * int(prod(attrs["kernel"]))


class Linear(_Layer):
    """A linear layer, (F,) to (O,); its precisions are those of a convolution."""

    attributes = ("activation", "precision")
    rank = 2

    def result(self, node: Node, source: Shape) -> Shape:
        out, features = node.weight.shape
        if source != (features,):
            raise BadInput(f"layer {node.name!r}: takes {features} features, its input has shape {source}")
        return (out,)

    def macs(self, attrs: Mapping[str, Any], source: Shape, out: Shape) -> int:
        return source[0] * out[0]


def tied_parts(channels: Array, parts: int) -> Iterator[Pair]:
    """Tie the same place in each of so many parts of an array."""
    first, *others = channels.reshape(parts, -1)
    yield from ((first, other) for other in others)


def _check_weights(node: Node, rank: int) -> None:
    weights = node.weights
    weight = weights.get("weight")
    if not isinstance(weight, np.ndarray) or weight.ndim != rank or weight.size == 0:
        raise BadInput(f"layer {node.name!r}: {node.kind} needs weights['weight'] of {rank} dimensions")
    if weight.size > MAX_ELEMENTS:
        raise BadInput(f"layer {node.name!r}: weights of shape {weight.shape} are too large")
    if weight.dtype not in (np.float32, np.int8):
        raise BadInput(f"layer {node.name!r}: weights must be float32 or int8, got {weight.dtype}")
    if (weight.dtype == np.int8) != ("weight_scale" in weights):
        raise BadInput(f"layer {node.name!r}: int8 weights, and only they, need weights['weight_scale']")
    for name in ("weight_scale", "bias"):
        vector = weights.get(name)
        if vector is None:
            continue
        if vector.dtype != np.float32 or vector.shape != weight.shape[:1] or not np.isfinite(vector).all():
            raise BadInput(f"layer {node.name!r}: {name} must be {weight.shape[0]} finite float32 numbers")
        if name == "weight_scale" and not (vector > SMALLEST_SCALE).all():
            raise BadInput(f"layer {node.name!r}: weight scales must be greater than 1e-30")
    if node.attrs["precision"] == "bf16":
        _check_bf16(node, weight)


def _check_bf16(node: Node, weight: Array) -> None:
    if weight.dtype != np.float32 or (np.ascontiguousarray(weight).view(np.uint32) & 0xFFFF).any():
        raise BadInput(f"layer {node.name!r}: bf16 products need float32 weights that were rounded to bf16")
    groups = node.attrs.get("groups", 1)
    if groups > 1 and weight.shape[:2] == (groups, 1):
        raise UnsupportedOperator(f"layer {node.name!r}: a depthwise convolution has no bf16 products")
