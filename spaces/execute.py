"""The interpreter of a `Graph` in PyTorch, operator by operator: the plain reference, and what repairs look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.graph import Array, Graph, Node

__all__ = [
    "LayerGradient",
    "apply_layer",
    "apply_op",
    "channels_last",
    "layer_gradients",
    "per_channel",
    "per_output",
    "run",
]


def run(
    network: Graph,
    x: Tensor,
    observe: Callable[[Node, Tensor], Tensor | None] | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Return the output for `x` (N, C, H, W), (N, C, L) or (N, F), float32; norms that are not folded are applied.

    `observe` sees every operator's output and may return another one in its place. Tensors are dropped after their
    last reader. `differentiable` lets gradients flow back to whatever asks for them.
    """
    last = {name: i for i, op in enumerate(network.nodes) for name in op.inputs}
    values = {network.input: x[..., None] if x.ndim == 3 else x}  # a signal is an image of one column
    with torch.set_grad_enabled(differentiable):
        for i, op in enumerate(network.nodes):
            y = apply_op(op, [values[name] for name in op.inputs])
            if observe is not None:
                replacement = observe(op, y)
                y = y if replacement is None else replacement
            values[op.name] = y
            for name in op.inputs:
                if last[name] == i and name != network.output:
                    values.pop(name, None)
    return values[network.output]


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """A layer's input and output on some images, and the gradient with respect to the output, each (N, ...)."""

    x: Tensor
    y: Tensor
    gradient: Tensor


def layer_gradients(network: Graph, x: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, LayerGradient]:
    """Return for every layer what a scalar loss of the network's output says about its output.

    `loss` is differentiated as it is: a sum over images keeps the gradients of the images apart.
    """
    values = {network.input: x}

    def observe(op: Node, y: Tensor) -> None:
        if op.is_layer and not y.requires_grad:  # nothing before it asks for a gradient
            y.requires_grad_()
        if op.is_layer:
            y.retain_grad()
        values[op.name] = y

    loss(run(network, x, observe, differentiable=True)).backward()  # type: ignore[no-untyped-call]
    found = {}
    for op in network.layers:
        y = values[op.name]
        gradient = torch.zeros_like(y) if y.grad is None else y.grad
        found[op.name] = LayerGradient(values[op.inputs[0]].detach(), y.detach(), gradient)
    return found


def apply_op(op: Node, inputs: list[Tensor]) -> Tensor:
    """Return one operator's output, (N, ...)."""
    return _OPERATORS[op.kind](op, *inputs)


def apply_layer(op: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a layer's output with this weight and bias in place of its own, before any norm."""
    if op.kind == "linear":
        return F.linear(x, weight, bias)
    top, left, bottom, right = op.attrs["padding"]
    symmetric = (top, left) == (bottom, right)
    x = x if symmetric else _pad(x, op.attrs["padding"], 0.0)
    ends = (top, left) if symmetric else 0
    return F.conv2d(x, weight, bias, op.attrs["stride"], ends, op.attrs["dilation"], op.attrs["groups"])


def channels_last(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) with each position's channels side by side in memory, where PyTorch's convolutions are
    up to ten times as fast on one core; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Return values (C,) so that they meet the channels of a tensor (N, C, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 2))


def per_output(values: Tensor, like: Tensor) -> Tensor:
    """Return values (O,) so that they meet the outputs of a weight (O, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _layer(op: Node, x: Tensor) -> Tensor:
    y = apply_layer(op, x, _tensor(op.weight), _tensor(op.bias))
    if op.norm is not None:
        mean, var = _tensor(op.norm.mean), _tensor(op.norm.var)
        y = F.batch_norm(y, mean, var, _tensor(op.norm.weight), _tensor(op.norm.bias), eps=op.norm.eps)
    return y


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "elu": F.elu,
}


def _affine(op: Node, x: Tensor) -> Tensor:
    numbers = {name: per_channel(_tensor(array), x) for name, array in op.weights.items()}
    return x * numbers.get("weight", 1) + numbers.get("bias", 0)


def _upsample(op: Node, x: Tensor) -> Tensor:
    size = op.attrs["size"]
    if op.attrs["mode"] == "bilinear":
        return F.interpolate(x, size, mode="bilinear", align_corners=op.attrs["align_corners"])
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, x.shape[2:], strict=True))
    return x[:, :, rows[:, None], columns]


def _depth_to_space(op: Node, x: Tensor) -> Tensor:
    (top, left), size = op.attrs.get("crop", (0, 0)), op.attrs.get("size")
    split = x.reshape(len(x), -1, *op.attrs["block"], *x.shape[2:])
    whole = split.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    rows, columns = size or whole.shape[2:]
    return whole[:, :, top : top + rows, left : left + columns]


def _subsample(op: Node, x: Tensor) -> Tensor:
    rows, columns = op.attrs["stride"]
    return x[:, :, ::rows, ::columns]


def _max_pool(op: Node, x: Tensor) -> Tensor:
    return F.max_pool2d(_pad(x, op.attrs["padding"], -torch.inf), op.attrs["kernel"], op.attrs["stride"])


def _layer_norm(op: Node, x: Tensor) -> Tensor:
    weight, bias = (_tensor(op.weights[name]) for name in ("weight", "bias"))
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias, op.attrs["epsilon"]).movedim(-1, 1)


def _group_norm(op: Node, x: Tensor) -> Tensor:
    weight, bias = (_tensor(op.weights[name]) for name in ("weight", "bias"))
    return F.group_norm(x, op.attrs["groups"], weight, bias, op.attrs["epsilon"])


def _tokens(op: Node, x: Tensor) -> Tensor:
    sequence = x.flatten(2)
    if "prefix" in op.weights:
        prefix = _tensor(op.weights["prefix"]).T
        sequence = torch.cat([prefix.expand(len(x), *prefix.shape), sequence], 2)
    if "position" in op.weights:
        sequence = sequence + _tensor(op.weights["position"]).T
    return sequence[..., None]


def _attention(op: Node, *inputs: Tensor) -> Tensor:
    q, k, v = (x.reshape(len(x), op.attrs["heads"], -1, x.shape[2]).mT for x in inputs)
    y = F.scaled_dot_product_attention(q, k, v, scale=op.attrs["scale"])
    return y.mT.flatten(1, 2)[..., None]


def _avg_pool(op: Node, x: Tensor) -> Tensor:
    top, left, bottom, right = op.attrs["padding"]
    kernel, stride, include = op.attrs["kernel"], op.attrs["stride"], op.attrs["count_include_pad"]
    if (top, left) == (bottom, right):
        return F.avg_pool2d(x, kernel, stride, (top, left), count_include_pad=include)
    mean = F.avg_pool2d(_pad(x, op.attrs["padding"], 0.0), kernel, stride)
    if include:
        return mean
    inside = _pad(torch.ones_like(x[:1, :1]), op.attrs["padding"], 0.0)
    return mean / F.avg_pool2d(inside, kernel, stride)


def _channel_map(op: Node, x: Tensor) -> Tensor:
    positions = torch.tensor(op.attrs["index"])
    y = x[:, positions.clamp(min=0)]
    y[:, positions < 0] = 0
    return y


def _pad(x: Tensor, padding: tuple[int, int, int, int], value: float) -> Tensor:
    top, left, bottom, right = padding
    return x if not any(padding) else F.pad(x, (left, right, top, bottom), value=value)


def _tensor(array: Array | None) -> Tensor:
    # F.conv2d and F.linear take None for "no bias", which their stubs allow only as Tensor | None.
    # Arrays that Ray's object store holds are read-only, which torch warns of.
    if array is not None and not array.flags.writeable:
        array = array.copy()
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))  # type: ignore[return-value]


#: By kind, an operator's output for its inputs.
_OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "conv2d": _layer,
    "linear": _layer,
    "quantize": lambda op, x: x,  # whoever observes it rounds it
    "activation": lambda op, x: _ACTIVATIONS[op.attrs["activation"]](x),
    "add": lambda op, x, y: x + y,
    "mul": lambda op, x, y: x * y,
    "prelu": lambda op, x: F.prelu(x, _tensor(op.weights["slope"])),
    "channel_affine": _affine,
    "concat": lambda op, *inputs: torch.cat(inputs, 1),
    "flatten": lambda op, x: x.flatten(1),
    "subsample": _subsample,
    "channel_map": _channel_map,
    "depth_to_space": _depth_to_space,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "global_avg_pool2d": lambda op, x: x.mean((2, 3), keepdim=True),
    "adaptive_avg_pool2d": lambda op, x: F.adaptive_avg_pool2d(x, op.attrs["size"]),
    "upsample": _upsample,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "tokens": _tokens,
    "attention": _attention,
}
