"""The program that a `Session` compiles: operators over named tensors, in NumPy and plain values.

A tensor carries the name of the node that produces it (or of the graph's input) and has the shape (C, H, W) or (F,)
per image. It is stored as float32, or, where `Graph.quant` has an entry for it, as uint8 with one scale and one
zero point: real = (q - zero_point) * scale, q of 1 to 8 bits. `docs/arithmetic.md` specifies every rounding.

A sequence of L tokens with F features each is the tensor (F, L, 1): a token is a pixel, so a linear layer over tokens
is a 1x1 convolution, and memory holds the features of one token side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

__all__ = ["ACTIVATIONS", "LARGEST_BF16", "MODES", "OPERATORS", "PRECISIONS", "Graph", "Node", "Quant", "moves"]

Array = npt.NDArray[Any]

ACTIVATIONS = ("none", "relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "silu", "gelu", "tanh", "elu")

#: The largest bf16 number.
LARGEST_BF16 = (2 - 2**-7) * 2.0**127

#: What a layer that does not compute in integers multiplies.
PRECISIONS = ("fp32", "bf16")

#: How an image is upsampled.
MODES = ("nearest", "bilinear")

#: Operator -> its attributes. Spatial pairs are (height, width); padding is (top, left, bottom, right).
OPERATORS: Mapping[str, tuple[str, ...]] = {
    "quantize": (),
    "conv2d": ("stride", "padding", "dilation", "groups", "activation", "precision"),
    "linear": ("activation", "precision"),
    "activation": ("activation",),
    "add": ("activation",),
    "mul": (),
    "concat": (),
    "max_pool2d": ("kernel", "stride", "padding"),
    "avg_pool2d": ("kernel", "stride", "padding", "count_include_pad"),
    "global_avg_pool2d": (),
    "adaptive_avg_pool2d": ("size",),
    "flatten": (),
    "channel_map": ("index",),
    "subsample": ("stride",),
    "layer_norm": ("epsilon",),
    "tokens": (),
    "attention": ("heads", "scale"),
    "prelu": (),
    "channel_affine": (),
    "group_norm": ("groups", "epsilon"),
    "upsample": ("size", "mode", "align_corners"),
    "depth_to_space": ("block", "crop", "size"),
}


def moves(op: str, attrs: Mapping[str, Any]) -> bool:
    """Whether an operator only moves values of its one input, so that they can be stored as they were."""
    if op == "upsample":
        return bool(attrs.get("mode", "nearest") == "nearest")
    return op in ("max_pool2d", "flatten", "channel_map", "subsample", "depth_to_space")


@dataclass(frozen=True)
class Quant:
    """The storage of a tensor as uint8: real = (q - zero_point) * scale, with scale > 0.

    q and the zero point are 0 to `top`: fewer than 8 bits still take one byte each.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def top(self) -> int:
        """The largest integer that is stored, 2^bits - 1."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Node:
    """One operator.

    `conv2d` and `linear` hold `weights["weight"]` (O, I/groups, kh, kw) or (O, I), float32 or int8; with int8 also
    `weights["weight_scale"]` (O,) float32; and optionally `weights["bias"]` (O,) float32. They compute in integers
    exactly when the weight is int8 and the first input is stored as uint8, otherwise in float32 (int8 weights and
    uint8 inputs are dequantised first). A second input is a residual that is added before the activation.

    With `precision` "bf16" instead of "fp32" the first input is rounded to bf16 and the products of bf16 numbers are
    added in float32. The weight is float32 and holds bf16 numbers only; depthwise convolutions have no such precision.

    `channel_map` output channel c is input channel `index[c]`, or zero where that is -1. `subsample` keeps every
    stride-th row and column, from the first. `flatten` is in (C, H, W) order, as in PyTorch. Any operator may read
    and write either storage.

    `mul` multiplies two tensors of one shape, or (C, H, W) by a gate (C, 1, 1). `adaptive_avg_pool2d` gives `size`
    (rows, columns): window i of n over l is [floor(i * l / n), ceil((i + 1) * l / n)). `layer_norm` normalises the
    channels of every pixel with `weights["weight"]` and `weights["bias"]`, (C,) float32.

    `tokens` makes (C, H, W) a sequence (C, P + H * W, 1), row by row: the P tokens of `weights["prefix"]` (P, C) come
    first, and `weights["position"]` (P + H * W, C) is added; both are float32 and optional. `attention` reads queries
    and keys (heads * D, L, 1) and values (heads * E, L, 1), head after head, and gives (heads * E, L, 1):
    softmax(scale * q k^T) v of every head.

    `prelu` gives max(x, 0) + slope * min(x, 0), with `weights["slope"]`, and `channel_affine` x * weight + bias, with
    `weights["weight"]`, `weights["bias"]` or both. `group_norm` normalises each of `groups` groups of channels over all
    pixels, with `weights["weight"]` and `weights["bias"]`. All of these are (C,) float32.

    `upsample` gives `size` (rows, columns). With `mode` "nearest" row r of n is the input's row floor(r * H / n); with
    "bilinear" it lies at (r + 0.5) * H / n - 0.5, or, where `align_corners`, at r * (H - 1) / (n - 1), between two.
    `depth_to_space` makes pixels of channels by a `block` (h, w): with (y, x) moved by the `crop` (top, left), output
    (c, y, x) is input ((c * h + y % h) * w + x % w, y // h, x // w). Its `size` (rows, columns), where that is None, is
    as far as the input reaches.

    `sharing` says in which way (`trimtab.sharing`) the weight may share values, for an artefact to look for.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    sharing: str | None = None


@dataclass(frozen=True)
class Graph:
    """A network as a program: nodes in an order in which every input is produced before it is read.

    The input is given as float32 (N, C, H, W) and the output is returned as float32 (N, ...), whatever their storage.
    """

    input: str
    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    output: str
    quant: Mapping[str, Quant] = field(default_factory=dict)
