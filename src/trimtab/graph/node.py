"""A node of a program: one operator with its weights, and the storage of a tensor; NumPy and plain values."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ACTIVATIONS",
    "CURVES",
    "LARGEST_BF16",
    "LAYERS",
    "MODES",
    "NOT_ZERO_AT_ZERO",
    "PRECISIONS",
    "SMALLEST_SCALE",
    "Array",
    "Node",
    "Norm",
    "Quant",
    "Shape",
    "free_name",
]

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

#: The kinds of nodes that have a weight to decide on.
LAYERS = ("conv2d", "linear")

#: Activations that bend what they are given; all others cut it off.
CURVES = ("hard_sigmoid", "hard_swish", "sigmoid", "silu", "gelu", "tanh", "elu")

ACTIVATIONS = ("none", "relu", "relu6", *CURVES)

#: Activations behind which a channel of zeros is a constant, but not zero.
NOT_ZERO_AT_ZERO = ("hard_sigmoid", "sigmoid")

#: What a layer that does not compute in integers multiplies.
PRECISIONS = ("fp32", "bf16")

#: How an image is upsampled.
MODES = ("nearest", "bilinear")

#: Scales are greater: kernels divide by them.
SMALLEST_SCALE = 1e-30

#: The largest bf16 number.
LARGEST_BF16 = (2 - 2**-7) * 2.0**127


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


@dataclass(frozen=True, eq=False)
class Norm:
    """Batch norm in inference form: y = (x - mean) / sqrt(var + eps) * weight + bias, each array (C,)."""

    weight: Array
    bias: Array
    mean: Array
    var: Array
    eps: float

    @property
    def scale(self) -> Array:
        """The factor that folding multiplies onto each output channel, (C,)."""
        return np.asarray(self.weight / np.sqrt(self.var + self.eps), dtype=np.float32)

    def select(self, channels: Array) -> Norm:
        """Return the norm of these channels only."""
        return Norm(self.weight[channels], self.bias[channels], self.mean[channels], self.var[channels], self.eps)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator; `name` is also its output tensor's name, and `kind` one of `trimtab.graph.OPERATORS`.

    A layer, `conv2d` or `linear`, holds `weights["weight"]` (O, I/groups, kh, kw) or (O, I), float32 or int8; with int8
    also `weights["weight_scale"]` (O,) float32; and optionally `weights["bias"]` (O,) float32. It computes in integers
    exactly when the weight is int8 and the first input is stored as uint8, otherwise in float32 (int8 weights and
    uint8 inputs are dequantised first). A second input is a residual that is added before the activation. `norm` is a
    batch norm behind it that is not folded yet, because pruning re-estimates its statistics first.

    `sharing` says in which way (`trimtab.sharing`) the weight may share values, for an artefact to look for.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    sharing: str | None = None
    norm: Norm | None = None

    @property
    def is_layer(self) -> bool:
        """Whether the node has a weight to decide on."""
        return self.kind in LAYERS

    @property
    def weight(self) -> Array:
        """A layer's weight, (O, I/groups, kh, kw) or (O, I)."""
        return self.weights["weight"]

    @property
    def bias(self) -> Array | None:
        """A layer's bias (O,), if it has one."""
        return self.weights.get("bias")

    @property
    def groups(self) -> int:
        """The number of convolution groups; 1 for everything else."""
        return int(self.attrs.get("groups", 1)) if self.is_layer else 1

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.weight.shape[0] and self.weight.shape[1] == 1

    @property
    def is_selection(self) -> bool:
        """Whether the node takes channels of its input, in any order, and adds none."""
        return self.kind == "channel_map" and min(self.attrs["index"]) >= 0

    @property
    def makes_channels(self) -> bool:
        """Whether the output's channels are not its inputs' channels: dense layers and channel maps that pad."""
        return (self.is_layer and not self.is_depthwise) or (self.kind == "channel_map" and not self.is_selection)

    def with_weights(self, **arrays: Array | None) -> Node:
        """Return the node with these arrays in place of its own; None takes one away."""
        weights = {**self.weights, **arrays}
        return replace(self, weights={name: array for name, array in weights.items() if array is not None})

    def with_attrs(self, **attrs: Any) -> Node:
        """Return the node with these attributes in place of its own."""
        return replace(self, attrs={**self.attrs, **attrs})

    def folded(self) -> Node:
        """Return the node with its batch norm folded into weight and bias."""
        if self.norm is None:
            return self
        scale = self.norm.scale
        weight = self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        bias = self.norm.bias - self.norm.mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        plain = replace(self, norm=None)
        return plain.with_weights(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def free_name(name: str, taken: Container[str]) -> str:
    """Return the name, or, where it is taken, that with the fewest underscores behind it that is not."""
    while name in taken:
        name += "_"
    return name
