"""The operators of a program in PyTorch, on real numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import frexp

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.errors import UnsupportedOperator
from trimtab.graph import LARGEST_BF16, Node

__all__ = ["FLOAT_OPERATORS", "MOVES", "Compute", "activate_in_place", "padding_of", "to_bf16"]

Compute = Callable[..., Tensor]


def to_bf16(x: Tensor) -> Tensor:
    """Return float32 numbers rounded to bf16, those beyond its range to the largest one (docs/arithmetic.md)."""
    return x.clamp(-LARGEST_BF16, LARGEST_BF16).to(torch.bfloat16).to(torch.float32)


def padding_of(node: Node) -> tuple[list[int], tuple[int, int, int, int] | None]:
    """Return the padding (height, width) that a convolution does itself, or the margin to add before it."""
    top, left, bottom, right = node.attrs["padding"]
    if (top, left) == (bottom, right):
        return [top, left], None
    return [0, 0], (left, right, top, bottom)


def activate_in_place(kind: str) -> Compute:
    """Return an activation that may overwrite what it is given."""
    return {
        "none": lambda x: x,
        "relu": torch.relu_,
        "relu6": lambda x: x.clamp_(0, 6),
        "hard_sigmoid": lambda x: F.hardsigmoid(x, inplace=True),
        "hard_swish": lambda x: F.hardswish(x, inplace=True),
        "sigmoid": torch.sigmoid_,
        "silu": lambda x: F.silu(x, inplace=True),
        "gelu": F.gelu,
        "tanh": torch.tanh_,
        "elu": lambda x: F.elu(x, inplace=True),
    }[kind]


def _conv2d(node: Node) -> Compute:
    weight = _float_weight(node).contiguous(memory_format=torch.channels_last)
    padding, margin = padding_of(node)
    window = (list(node.attrs["stride"]), padding, list(node.attrs["dilation"]), int(node.attrs["groups"]))
    bias = _bias(node)
    pad = (lambda x: x) if margin is None else (lambda x: F.pad(x, margin))
    return _with_residual(node, lambda x: torch.conv2d(pad(x), weight, bias, *window))


def _linear(node: Node) -> Compute:
    weight, bias = _float_weight(node), _bias(node)
    return _with_residual(node, lambda x: F.linear(x, weight, bias))


def _with_residual(node: Node, layer: Compute) -> Compute:
    activate = activate_in_place(node.attrs["activation"])
    if len(node.inputs) == 1:
        return lambda x: activate(layer(x))
    return lambda x, residual: activate(layer(x).add_(residual))


def _float_weight(node: Node) -> Tensor:
    weight = torch.from_numpy(np.array(node.weights["weight"])).to(torch.float32)
    if "weight_scale" not in node.weights:
        return weight
    scale = torch.from_numpy(np.array(node.weights["weight_scale"]))
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def _bias(node: Node) -> Tensor | None:
    return torch.from_numpy(np.array(node.weights["bias"])) if "bias" in node.weights else None


def _activation(node: Node) -> Compute:
    activate = activate_in_place(node.attrs["activation"])
    return lambda x: activate(x.clone())


def _add(node: Node) -> Compute:
    activate = activate_in_place(node.attrs["activation"])
    return lambda a, b: activate(torch.add(a, b))


def _avg_pool2d(node: Node) -> Compute:
    attrs = node.attrs
    padding, margin = padding_of(node)
    if margin is not None:
        raise UnsupportedOperator(f"layer {node.name!r}: the engine torch has no average pool with uneven padding")
    kernel, stride, include = list(attrs["kernel"]), list(attrs["stride"]), bool(attrs["count_include_pad"])
    return lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include)


def _adaptive_avg_pool2d(node: Node) -> Compute:
    size = tuple(node.attrs["size"])
    return lambda x: F.adaptive_avg_pool2d(x, size)


def _layer_norm(node: Node) -> Compute:
    weight, bias = (torch.from_numpy(np.array(node.weights[name])) for name in ("weight", "bias"))
    shape, epsilon = [len(weight)], float(node.attrs["epsilon"])
    # Channels last, so that the permutations are views.
    return lambda x: F.layer_norm(x.movedim(1, -1), shape, weight, bias, epsilon).movedim(-1, 1)


def _group_norm(node: Node) -> Compute:
    weight, bias = (torch.from_numpy(np.array(node.weights[name])) for name in ("weight", "bias"))
    groups, epsilon = int(node.attrs["groups"]), float(node.attrs["epsilon"])
    return lambda x: F.group_norm(x, groups, weight, bias, epsilon)


def _prelu(node: Node) -> Compute:
    slope = torch.from_numpy(np.array(node.weights["slope"]))
    return lambda x: F.prelu(x, slope)


def _channel_affine(node: Node) -> Compute:
    numbers = {name: torch.from_numpy(np.array(array)) for name, array in node.weights.items()}

    def compute(x: Tensor) -> Tensor:
        shaped = {name: array.reshape(-1, *[1] * (x.ndim - 2)) for name, array in numbers.items()}
        if len(shaped) == 2:
            return torch.addcmul(shaped["bias"], x, shaped["weight"])
        return x * shaped["weight"] if "weight" in shaped else x + shaped["bias"]

    return compute


def _bilinear(node: Node) -> Compute:
    size, align_corners = list(node.attrs["size"]), bool(node.attrs["align_corners"])
    return lambda x: F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _tokens(node: Node) -> Compute:
    prefix, position = (
        torch.from_numpy(np.array(node.weights[name]).T[None, :, :, None]) if name in node.weights else None
        for name in ("prefix", "position")
    )

    def compute(x: Tensor) -> Tensor:
        sequence = x.flatten(2).unsqueeze(-1)
        if prefix is not None:
            sequence = torch.cat([prefix.expand(len(x), -1, -1, -1), sequence], 2)
        return sequence if position is None else sequence + position

    return compute


def _attention(node: Node) -> Compute:
    heads, scale = int(node.attrs["heads"]), float(node.attrs["scale"])

    def compute(*inputs: Tensor) -> Tensor:
        q, k, v = (x.reshape(len(x), heads, -1, x.shape[2]).transpose(2, 3) for x in inputs)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return mixed.transpose(2, 3).flatten(1, 2).unsqueeze(-1)

    return compute


#: From a node to what computes it on real numbers; upsampling is here only where it is bilinear.
FLOAT_OPERATORS: Mapping[str, Callable[[Node], Compute]] = {
    "quantize": lambda node: lambda x: x,
    "conv2d": _conv2d,
    "linear": _linear,
    "activation": _activation,
    "add": _add,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool2d": lambda node: lambda x: x.mean((2, 3), keepdim=True),
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mul": lambda node: torch.mul,
    "layer_norm": _layer_norm,
    "tokens": _tokens,
    "attention": _attention,
    "prelu": _prelu,
    "channel_affine": _channel_affine,
    "group_norm": _group_norm,
    "upsample": _bilinear,
}


def _max_pool2d(node: Node, zero: int) -> Compute:
    padding, margin = padding_of(node)
    if margin is not None:
        raise UnsupportedOperator(f"layer {node.name!r}: the engine torch has no max pool with uneven padding")
    kernel, stride = list(node.attrs["kernel"]), list(node.attrs["stride"])

    def pool(x: Tensor) -> Tensor:
        # max_pool2d takes images only up to the largest number of their type: uint8 ones up to 255 elements.
        return F.max_pool2d(x.to(torch.float32), kernel, stride, padding).to(x.dtype)

    return pool


def _channel_map(node: Node, zero: int) -> Compute:
    index = torch.tensor(node.attrs["index"])
    missing = torch.nonzero(index < 0).flatten()
    taken = index.clamp(min=0)
    if len(missing) == 0:
        return lambda x: x.index_select(1, taken)
    return lambda x: x.index_select(1, taken).index_fill_(1, missing, zero)


def _subsample(node: Node, zero: int) -> Compute:
    rows, columns = node.attrs["stride"]
    return lambda x: x[:, :, ::rows, ::columns]


def _nearest(node: Node, zero: int) -> Compute:
    size = list(node.attrs["size"])

    def compute(x: Tensor) -> Tensor:
        sides = list(zip(size, x.shape[2:], strict=True))
        # interpolate divides by the factor in float32, which is exact for powers of two only.
        if all(frexp(new / old)[0] == 0.5 for new, old in sides):
            return F.interpolate(x, size, mode="nearest")
        rows, columns = (torch.arange(new) * old // new for new, old in sides)
        return x.index_select(2, rows).index_select(3, columns)

    return compute


def _depth_to_space(node: Node, zero: int) -> Compute:
    block, (top, left), size = tuple(node.attrs["block"]), node.attrs["crop"], node.attrs["size"]

    def compute(x: Tensor) -> Tensor:
        split = x.reshape(len(x), -1, *block, *x.shape[2:])
        whole = split.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
        rows, columns = size or whole.shape[2:]
        return whole[:, :, top : top + rows, left : left + columns]

    return compute


#: Operators that only move values, of either storage: from a node and what zero is stored as.
MOVES: Mapping[str, Callable[[Node, int], Compute]] = {
    "concat": lambda node, zero: lambda *inputs: torch.cat(inputs, 1),
    "max_pool2d": _max_pool2d,
    "flatten": lambda node, zero: lambda x: x.flatten(1),
    "channel_map": _channel_map,
    "subsample": _subsample,
    "upsample": _nearest,
    "depth_to_space": _depth_to_space,
}
