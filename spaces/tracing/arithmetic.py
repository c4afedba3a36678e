"""Activations, sums, products, and constants per channel."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from trimtab.graph import Array
from trimtab.spaces.tracing.converter import (
    Converter,
    array_of,
    functions,
    modules,
    operands,
    optional_array,
    raw_shape,
)
from trimtab.spaces.tracing.tokens import add_position

#: Modules, functions and methods -> activations of a program.
ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((nn.ReLU6, F.relu6), "relu6"),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), "hard_sigmoid"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "hard_swish"),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((nn.Tanh, F.tanh, torch.tanh, "tanh", "tanh_"), "tanh"),
    **dict.fromkeys((nn.SiLU, F.silu), "silu"),
    **dict.fromkeys((nn.GELU, F.gelu), "gelu"),
    **dict.fromkeys((nn.ELU, F.elu, F.elu_), "elu"),
}


@modules(*(kind for kind in ACTIVATIONS if isinstance(kind, type)))
@functions(*(kind for kind in ACTIVATIONS if not isinstance(kind, type)))
def activation(c: Converter, node: fx.Node, module: nn.Module | None = None) -> None:
    kind = ACTIVATIONS[node.target if module is None else type(module)]
    approximate = getattr(module, "approximate", node.kwargs.get("approximate", "none"))
    if kind == "gelu" and approximate != "none":
        raise c.unsupported(node, f"GELU with approximate={approximate!r}")
    alpha = getattr(module, "alpha", _argument(node, 1, "alpha", 1.0)) if kind == "elu" else 1.0
    if alpha != 1.0:
        raise c.unsupported(node, f"ELU with alpha={alpha}")
    c.add(node, "activation", (c.tensor(node.args[0]),), attrs={"activation": kind})


#: Bounds that a clamp may have -> what it is then.
_CLAMPS = {(0.0, 6.0): "relu6", (0.0, np.inf): "relu"}


@functions(torch.clamp, torch.clamp_, torch.clip, "clamp", "clamp_", "clip", F.hardtanh)
def clamp(c: Converter, node: fx.Node) -> None:
    names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
    given = [_argument(node, place, name, None) for place, name in enumerate(names, 1)]
    if not all(bound is None or isinstance(bound, int | float) for bound in given):
        raise c.unsupported(node, "clamp to tensors")
    usual = (-1.0, 1.0) if node.target is F.hardtanh else (-np.inf, np.inf)
    low, high = (default if bound is None else float(bound) for bound, default in zip(given, usual, strict=True))
    _clamped(c, node, "clamp to ", low, high)


@modules(nn.Hardtanh)
def hard_tanh(c: Converter, node: fx.Node, module: nn.Hardtanh) -> None:
    _clamped(c, node, "Hardtanh", module.min_val, module.max_val)


def _clamped(c: Converter, node: fx.Node, what: str, low: float, high: float) -> None:
    if (low, high) not in _CLAMPS:
        raise c.unsupported(node, f"{what}({low}, {high})")
    c.add(node, "activation", (c.tensor(node.args[0]),), attrs={"activation": _CLAMPS[low, high]})


@modules(nn.LeakyReLU, nn.PReLU)
def leaky_relu(c: Converter, node: fx.Node, module: nn.LeakyReLU | nn.PReLU) -> None:
    slope = array_of(module.weight) if isinstance(module, nn.PReLU) else np.float32(module.negative_slope)
    _leaky(c, node, np.asarray(slope, np.float32))


@functions(F.leaky_relu, F.leaky_relu_)
def functional_leaky_relu(c: Converter, node: fx.Node) -> None:
    _leaky(c, node, np.asarray(_argument(node, 1, "negative_slope", 0.01), np.float32))


@functions(F.prelu, torch.prelu, "prelu")
def functional_prelu(c: Converter, node: fx.Node) -> None:
    weight = _argument(node, 1, "weight", None)
    if weight not in c.constants:
        raise c.unsupported(node, "prelu with slopes that are computed")
    _leaky(c, node, c.constants[weight])


def _leaky(c: Converter, node: fx.Node, slope: Array) -> None:
    if c.channel_axis(node) != 1 and slope.size > 1:
        raise c.unsupported(node, "PReLU of a sequence of tokens")
    channels = c.shape(node)[0]
    slopes = np.broadcast_to(slope.reshape(-1), (channels,)).copy()
    c.add(node, "prelu", (c.tensor(node.args[0]),), weights={"slope": slopes})


@modules(nn.GroupNorm)
def group_norm(c: Converter, node: fx.Node, module: nn.GroupNorm) -> None:
    _normalise(c, node, module.num_groups, module.eps, optional_array(module.weight), optional_array(module.bias))


@modules(nn.InstanceNorm2d, nn.InstanceNorm1d)
def instance_norm(c: Converter, node: fx.Node, module: nn.InstanceNorm2d) -> None:
    if module.track_running_stats:
        raise c.unsupported(node, "InstanceNorm with running statistics")
    weight, bias = (optional_array(module.weight), optional_array(module.bias)) if module.affine else (None, None)
    _normalise(c, node, module.num_features, module.eps, weight, bias)


def _normalise(
    c: Converter, node: fx.Node, groups: int, epsilon: float, weight: Array | None, bias: Array | None
) -> None:
    shape = c.shape(node)
    if len(shape) != 3 or c.channel_axis(node) != 1:
        raise c.unsupported(node, f"normalisation of groups of channels of {raw_shape(node)}")
    ones = np.ones(shape[0], np.float32)
    constants = {"weight": ones if weight is None else weight, "bias": 0 * ones if bias is None else bias}
    attrs = {"groups": groups, "epsilon": float(epsilon)}
    c.add(node, "group_norm", (c.tensor(node.args[0]),), attrs=attrs, weights=constants)


@functions(operator.add, operator.iadd, torch.add, "add", "add_")
def add(c: Converter, node: fx.Node) -> None:
    left, right = operands(node)
    if node.kwargs.get("alpha", 1) != 1:
        raise c.unsupported(node, "add with alpha")
    if _is_tensor(c, left) and _is_tensor(c, right):
        _sum(c, node, left, right)
        return
    source, constant = (left, right) if _is_tensor(c, left) else (right, left)
    values = _per_channel(c, node, constant)
    if values is not None:
        _affine(c, node, source, np.ones_like(values), values)
    elif constant in c.constants:
        add_position(c, node, source, c.constants[constant])
    else:
        raise c.unsupported(node, f"adding {constant!r}")


def _sum(c: Converter, node: fx.Node, left: fx.Node, right: fx.Node) -> None:
    if c.shape(left) != c.shape(right):
        raise c.unsupported(node, f"add that broadcasts {c.shape(left)} and {c.shape(right)}")
    c.add(node, "add", (c.tensor(left), c.tensor(right)))


@functions(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def subtract(c: Converter, node: fx.Node) -> None:
    left, right = operands(node)
    if node.kwargs.get("alpha", 1) != 1 or (_is_tensor(c, left) and _is_tensor(c, right)):
        raise c.unsupported(node, "sub of two tensors")
    source, constant = (left, right) if _is_tensor(c, left) else (right, left)
    values = _constant(c, node, constant)
    ones = np.ones_like(values)
    if source is left:
        _affine(c, node, source, ones, -values)
    else:
        _affine(c, node, source, -ones, values)


@functions(operator.neg, torch.neg, "neg")
def negate(c: Converter, node: fx.Node) -> None:
    ones = np.ones(c.shape(node)[0], np.float32)
    _affine(c, node, node.args[0], -ones, 0 * ones)


@functions(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def multiply(c: Converter, node: fx.Node) -> None:
    left, right = operands(node)
    if not (_is_tensor(c, left) and _is_tensor(c, right)):
        source, constant = (left, right) if _is_tensor(c, left) else (right, left)
        values = _constant(c, node, constant)
        _affine(c, node, source, values, 0 * values)
        return
    if c.shape(left) != c.shape(node):
        left, right = right, left
    if c.shape(left) != c.shape(node) or c.shape(right) not in (c.shape(left), (c.shape(left)[0], 1, 1)):
        raise c.unsupported(node, f"mul that broadcasts {c.shape(left)} and {c.shape(right)}")
    c.add(node, "mul", (c.tensor(left), c.tensor(right)))


@functions(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def divide(c: Converter, node: fx.Node) -> None:
    left, right = operands(node)
    if _is_tensor(c, right) or node.kwargs.get("rounding_mode") is not None:
        raise c.unsupported(node, "division by a tensor, or rounded,")
    values = _constant(c, node, right)
    if not values.all():
        raise c.unsupported(node, "division by zero")
    _affine(c, node, left, 1 / values, 0 * values)


def _is_tensor(c: Converter, value: Any) -> bool:
    return isinstance(value, fx.Node) and value not in c.constants


def _constant(c: Converter, node: fx.Node, value: Any) -> Array:
    values = _per_channel(c, node, value)
    if values is None:
        raise c.unsupported(node, f"{getattr(node.target, '__name__', node.target)} with {value!r}")
    return values


def _per_channel(c: Converter, node: fx.Node, value: Any) -> Array | None:
    """A number, or a parameter that is constant on all axes but that of channels, as (C,); None for anything else."""
    found = c.constants.get(value, value)
    if not isinstance(found, int | float | np.ndarray) or isinstance(found, bool):
        return None
    array = np.asarray(found, np.float32)
    if not np.isfinite(array).all():
        raise c.unsupported(node, "a constant that is not finite")
    rank, axis, channels = len(raw_shape(node)) + 1, c.channel_axis(node), c.shape(node)[0]
    shape = (1,) * (rank - array.ndim) + array.shape
    others = [size for i, size in enumerate(shape) if i != axis]
    if len(shape) != rank or any(size != 1 for size in others) or shape[axis] not in (1, channels):
        return None
    values: Array = np.broadcast_to(array.reshape(-1), (channels,)).copy()
    return values


def _affine(c: Converter, node: fx.Node, source: Any, weight: Array, bias: Array) -> None:
    """Multiply and add constants per channel: in the layer that they follow, where nothing else reads it."""
    last = c.layer_behind(node, source)
    if last is None:
        constants = {"weight": weight, "bias": bias}
        kept = {name: array for name, array in constants.items() if (array != (name == "weight")).any()}
        if kept:
            c.add(node, "channel_affine", (c.tensor(source),), weights=kept)
        else:
            c.alias(node, c.tensor(source))
        return
    index, times = last
    layer, weight, bias = c.nodes[index], np.repeat(weight, times), np.repeat(bias, times)
    if layer.norm is not None:
        norm = replace(layer.norm, weight=layer.norm.weight * weight, bias=layer.norm.bias * weight + bias)
        c.nodes[index] = replace(layer, norm=norm)
    else:
        own = 0 * bias if layer.bias is None else layer.bias
        scaled = layer.weight * weight.reshape(-1, *[1] * (layer.weight.ndim - 1))
        c.nodes[index] = layer.with_weights(weight=scaled, bias=own * weight + bias)
    c.alias(node, c.tensor(source))


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
