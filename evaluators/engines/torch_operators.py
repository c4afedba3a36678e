"""The operators of a program in PyTorch, on real numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


#: From a node to what computes it on real numbers.
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


#: Operators that only move values, of either storage: from a node and what zero is stored as.
MOVES: Mapping[str, Callable[[Node, int], Compute]] = {
    "concat": lambda node, zero: lambda *inputs: torch.cat(inputs, 1),
    "max_pool2d": _max_pool2d,
    "flatten": lambda node, zero: lambda x: x.flatten(1),
    "channel_map": _channel_map,
    "subsample": _subsample,
}
