"""Checks of a graph, node by node, and the shapes that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite, prod
from typing import Any, TypeVar

import numpy as np

from trimtab.errors import BadInput, unknown_name
from trimtab.kernels.errors import UnsupportedOperator
from trimtab.kernels.graph import ACTIVATIONS, MODES, OPERATORS, PRECISIONS, Array, Graph, Node, Quant

__all__ = ["Shape", "check_graph", "is_integer", "with_defaults"]

Shape = tuple[int, ...]
_AnyShape = TypeVar("_AnyShape", bound=Shape)

MAX_ELEMENTS = 2**30  # of one tensor or weight, so that every index fits 32 bits
MAX_INTEGER_INPUTS = 32768  # of one output: 255 * 128 * 32768 < 2^30, and the bias is within 2^30 too
MAX_INTEGER_WINDOW = 2**23  # pixels under an average of integers: 255 * 2^23 < 2^31
MAX_SIDE = 2**20  # of an upsampled image: there is a table of where each row and column comes from
MAX_NODES = 2**13  # planning memory takes time quadratic in them

_DEFAULTS: Mapping[str, Any] = {
    "stride": (1, 1),
    "padding": (0, 0, 0, 0),
    "dilation": (1, 1),
    "groups": 1,
    "activation": "none",
    "precision": "fp32",
    "count_include_pad": True,
    "epsilon": 1e-5,
    "scale": 1.0,
    "mode": "nearest",
    "align_corners": False,
    "crop": (0, 0),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {"activation": ACTIVATIONS, "precision": PRECISIONS, "mode": MODES}
_AVERAGES = ("avg_pool2d", "global_avg_pool2d", "adaptive_avg_pool2d")
_INPUTS = {
    "conv2d": (1, 2),
    "linear": (1, 2),
    "add": (2, 2),
    "mul": (2, 2),
    "concat": (1, 1024),
    "attention": (3, 3),
}
_WEIGHTS = {
    "conv2d": ("weight", "weight_scale", "bias"),
    "linear": ("weight", "weight_scale", "bias"),
    "layer_norm": ("weight", "bias"),
    "tokens": ("prefix", "position"),
    "prelu": ("slope",),
    "channel_affine": ("weight", "bias"),
    "group_norm": ("weight", "bias"),
}


def check_graph(graph: Graph) -> tuple[Graph, dict[str, Shape]]:
    """Return the graph with every attribute present and canonical, and the shape of every tensor.

    Raises BadInput, or UnsupportedOperator, with the name of the layer that is wrong.
    """
    if not isinstance(graph.input, str) or not graph.nodes:
        raise BadInput("a graph needs a named input and at least one node")
    if len(graph.nodes) > MAX_NODES:
        raise BadInput(f"a graph of {len(graph.nodes)} layers is too large (at most {MAX_NODES})")
    shape = tuple(graph.input_shape)
    if len(shape) not in (1, 3) or not all(_is_int(n) and n > 0 for n in shape):
        raise BadInput(f"input shape must be (C, H, W) or (F,) of positive integers, got {shape!r}")
    shapes: dict[str, Shape] = {graph.input: _sized("input", shape)}
    nodes = []
    for node in graph.nodes:
        checked = with_defaults(node)
        if checked.name in shapes:
            raise BadInput(f"layer {checked.name!r}: the name is used twice")
        for name in checked.inputs:
            if name not in shapes:
                raise BadInput(f"layer {checked.name!r}: input {name!r} is not produced before it")
        result = _SHAPES[checked.op](checked, [shapes[name] for name in checked.inputs])
        if min(result) < 1:
            raise BadInput(f"layer {checked.name!r}: its output would be empty: {result}")
        shapes[checked.name] = _sized(checked.name, result)
        nodes.append(checked)
    if graph.output not in shapes:
        raise BadInput(f"output {graph.output!r} is not produced by any layer")
    _check_quants(graph.quant, shapes)
    checked_graph = replace(graph, nodes=tuple(nodes), input_shape=shape)
    for node in checked_graph.nodes:
        _check_integer_size(checked_graph, node, shapes)
    return checked_graph, shapes


def is_integer(graph: Graph, node: Node) -> bool:
    """Return whether the node is a convolution or linear layer that computes in integers."""
    weight = node.weights.get("weight")
    return weight is not None and weight.dtype == np.int8 and node.inputs[0] in graph.quant


def with_defaults(node: Node) -> Node:
    """Return the node with all attributes of its operator, canonical; raises where one is unknown or wrong."""
    if node.op not in OPERATORS:
        known = ", ".join(sorted(OPERATORS))
        raise UnsupportedOperator(f"layer {node.name!r}: operator {node.op!r} is not supported (supported: {known})")
    if not isinstance(node.name, str) or not node.name:
        raise BadInput(f"a {node.op} layer has no name")
    if any("\ud800" <= letter <= "\udfff" for letter in node.name):
        raise BadInput(f"layer {node.name!r}: the name is not valid Unicode")
    low, high = _INPUTS.get(node.op, (1, 1))
    if not low <= len(node.inputs) <= high:
        raise BadInput(f"layer {node.name!r}: {node.op} takes {low} to {high} inputs, got {len(node.inputs)}")
    for name in node.attrs:
        if name not in OPERATORS[node.op]:
            raise unknown_name(f"attribute of {node.op} layer {node.name!r}:", name, OPERATORS[node.op])
    for name in node.weights:
        if name not in _WEIGHTS.get(node.op, ()):
            raise BadInput(f"layer {node.name!r}: {node.op} has no weight {name!r}")
    attrs = {name: _attribute(node, name) for name in OPERATORS[node.op]}
    return replace(node, attrs=attrs, inputs=tuple(node.inputs))


def _attribute(node: Node, name: str) -> Any:
    default = node.attrs.get("kernel") if name == "stride" and "kernel" in node.attrs else _DEFAULTS.get(name)
    value = node.attrs.get(name, default)
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise unknown_name(f"{name} of layer {node.name!r}:", str(value), _CHOICES[name])
        return value
    if name in ("count_include_pad", "align_corners"):
        return bool(value)
    if name == "size" and value is None and node.op == "depth_to_space":
        return None
    if name in ("groups", "heads"):
        return _ints(node, name, [value], 1, 1)[0]
    if name in ("epsilon", "scale"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise BadInput(f"layer {node.name!r}: {name} must be a number above 0, got {value!r}")
        return float(value)
    if name == "index":
        return _ints(node, name, value, None, -1)
    if name == "padding":
        return _ints(node, name, value, 4, 0)
    if name == "crop":
        return _ints(node, name, value, 2, 0)
    return _ints(node, name, value, 2, 1)


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _ints(node: Node, name: str, value: Any, count: int | None, least: int) -> tuple[int, ...]:
    items = value.tolist() if isinstance(value, np.ndarray) else value
    fits = isinstance(items, list | tuple) and len(items) == (len(items) if count is None else count)
    if not fits or not items or not all(_is_int(i) and least <= i < MAX_ELEMENTS for i in items):
        raise BadInput(
            f"layer {node.name!r}: {name} must be {count or 'some'} integers of at least {least}, got {value!r}"
        )
    return tuple(int(i) for i in items)


def _sized(name: str, shape: _AnyShape) -> _AnyShape:
    if prod(shape) > MAX_ELEMENTS:
        raise BadInput(f"layer {name!r}: a tensor of shape {shape} is too large")
    return shape


def _check_quants(quants: Mapping[str, Quant], shapes: Mapping[str, Shape]) -> None:
    for name, quant in quants.items():
        if name not in shapes:
            raise BadInput(f"quantisation of {name!r}: no such tensor")
        scale = float(np.float32(quant.scale)) if abs(quant.scale) < 1e38 else float("inf")
        if not (isfinite(scale) and 1e-30 < scale < 1e30):
            raise BadInput(f"quantisation of {name!r}: scale must be in (1e-30, 1e30), got {quant.scale!r}")
        if not _is_int(quant.bits) or not 1 <= quant.bits <= 8:
            raise BadInput(f"quantisation of {name!r}: bits must be 1 to 8, got {quant.bits!r}")
        if not _is_int(quant.zero_point) or not 0 <= quant.zero_point <= quant.top:
            raise BadInput(f"quantisation of {name!r}: zero point must be 0 to {quant.top}, got {quant.zero_point!r}")


def _check_integer_size(graph: Graph, node: Node, shapes: Mapping[str, Shape]) -> None:
    if node.op in _AVERAGES and node.inputs[0] in graph.quant:
        pixels = prod(node.attrs.get("kernel") or shapes[node.inputs[0]][1:])
        if pixels > MAX_INTEGER_WINDOW:
            raise UnsupportedOperator(
                f"layer {node.name!r}: an average over {pixels} integers could overflow 32 bits "
                f"(supported: up to {MAX_INTEGER_WINDOW})"
            )
    if not is_integer(graph, node):
        return
    inputs = prod(node.weights["weight"].shape[1:])
    if inputs > MAX_INTEGER_INPUTS:
        raise UnsupportedOperator(
            f"layer {node.name!r}: integer {node.op} over {inputs} inputs could overflow 32 bits "
            f"(supported: up to {MAX_INTEGER_INPUTS})"
        )


def _check_weights(node: Node, rank: int) -> None:
    weights = node.weights
    weight = weights.get("weight")
    if not isinstance(weight, np.ndarray) or weight.ndim != rank or weight.size == 0:
        raise BadInput(f"layer {node.name!r}: {node.op} needs weights['weight'] of {rank} dimensions")
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
        if name == "weight_scale" and not (vector > 1e-30).all():
            raise BadInput(f"layer {node.name!r}: weight scales must be greater than 1e-30")
    if node.attrs["precision"] == "bf16":
        _check_bf16(node, weight)


def _check_bf16(node: Node, weight: Array) -> None:
    if weight.dtype != np.float32 or (np.ascontiguousarray(weight).view(np.uint32) & 0xFFFF).any():
        raise BadInput(f"layer {node.name!r}: bf16 products need float32 weights that were rounded to bf16")
    groups = node.attrs.get("groups", 1)
    if groups > 1 and weight.shape[:2] == (groups, 1):
        raise UnsupportedOperator(f"layer {node.name!r}: a depthwise convolution has no bf16 products")


def _residual_fits(node: Node, result: Shape, inputs: list[Shape]) -> Shape:
    if len(inputs) == 2 and inputs[1] != result:
        raise BadInput(f"layer {node.name!r}: residual of shape {inputs[1]} is added to {result}")
    return result


def _image(node: Node, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise BadInput(f"layer {node.name!r}: {node.op} needs an input of shape (C, H, W), got {shape}")
    return shape[0], shape[1], shape[2]


def _windows(node: Node, image: tuple[int, int, int], reach: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the output; the image with its padding must be no larger than a tensor may be."""
    top, left, bottom, right = node.attrs["padding"]
    stride_h, stride_w = node.attrs["stride"]
    _, h, w = _sized(node.name, (image[0], image[1] + top + bottom, image[2] + left + right))
    return (h - reach[0]) // stride_h + 1, (w - reach[1]) // stride_w + 1


def _conv_shape(node: Node, inputs: list[Shape]) -> Shape:
    _check_weights(node, 4)
    c, h, w = _image(node, inputs[0])
    out, per_group, kh, kw = node.weights["weight"].shape
    groups = node.attrs["groups"]
    if c % groups or out % groups or per_group * groups != c:
        raise BadInput(
            f"layer {node.name!r}: weights {(out, per_group, kh, kw)} with {groups} groups do not fit {c} channels"
        )
    dilation_h, dilation_w = node.attrs["dilation"]
    reach = ((kh - 1) * dilation_h + 1, (kw - 1) * dilation_w + 1)
    rows, columns = _windows(node, (c, h, w), reach)
    return _residual_fits(node, (out, rows, columns), inputs)


def _linear_shape(node: Node, inputs: list[Shape]) -> Shape:
    _check_weights(node, 2)
    out, features = node.weights["weight"].shape
    if inputs[0] != (features,):
        raise BadInput(f"layer {node.name!r}: takes {features} features, its input has shape {inputs[0]}")
    return _residual_fits(node, (out,), inputs)


def _pool_shape(node: Node, inputs: list[Shape]) -> Shape:
    c, h, w = _image(node, inputs[0])
    kernel = node.attrs["kernel"]
    if any(p >= kernel[i % 2] for i, p in enumerate(node.attrs["padding"])):
        raise BadInput(f"layer {node.name!r}: padding must be smaller than the kernel")
    rows, columns = _windows(node, (c, h, w), kernel)
    return (c, rows, columns)


def _add_shape(node: Node, inputs: list[Shape]) -> Shape:
    if inputs[0] != inputs[1]:
        raise BadInput(f"layer {node.name!r}: adds tensors of shapes {inputs[0]} and {inputs[1]}")
    return inputs[0]


def _mul_shape(node: Node, inputs: list[Shape]) -> Shape:
    left, right = inputs
    if right != left and not (len(left) == 3 and right == (left[0], 1, 1)):
        raise BadInput(f"layer {node.name!r}: multiplies tensors of shapes {left} and {right}")
    return left


def _check_constants(node: Node, shapes: Mapping[str, Shape], optional: bool) -> None:
    for name, shape in shapes.items():
        array = node.weights.get(name)
        if array is None and optional:
            continue
        if array is None or array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise BadInput(f"layer {node.name!r}: weights[{name!r}] must be finite float32 numbers of shape {shape}")


def _norm_shape(node: Node, inputs: list[Shape]) -> Shape:
    c = inputs[0][0]
    _check_constants(node, {"weight": (c,), "bias": (c,)}, optional=False)
    return inputs[0]


def _tokens_shape(node: Node, inputs: list[Shape]) -> Shape:
    c, h, w = _image(node, inputs[0])
    prefix = node.weights.get("prefix")
    first = 0 if prefix is None or prefix.ndim != 2 else len(prefix)
    _check_constants(node, {"prefix": (first, c), "position": (first + h * w, c)}, optional=True)
    return (c, first + h * w, 1)


def _attention_shape(node: Node, inputs: list[Shape]) -> Shape:
    query, key, value = (_image(node, shape) for shape in inputs)
    heads = node.attrs["heads"]
    if query != key or query[1:] != value[1:] or query[2] != 1 or query[0] % heads or value[0] % heads:
        raise BadInput(f"layer {node.name!r}: attention of {heads} heads over tensors of shapes {inputs}")
    return inputs[2]


def _prelu_shape(node: Node, inputs: list[Shape]) -> Shape:
    _check_constants(node, {"slope": inputs[0][:1]}, optional=False)
    return inputs[0]


def _affine_shape(node: Node, inputs: list[Shape]) -> Shape:
    if not node.weights:
        raise BadInput(f"layer {node.name!r}: channel_affine needs weights['weight'], weights['bias'] or both")
    _check_constants(node, {"weight": inputs[0][:1], "bias": inputs[0][:1]}, optional=True)
    return inputs[0]


def _group_norm_shape(node: Node, inputs: list[Shape]) -> Shape:
    c, groups = _image(node, inputs[0])[0], node.attrs["groups"]
    if c % groups:
        raise BadInput(f"layer {node.name!r}: {groups} groups do not fit {c} channels")
    return _norm_shape(node, inputs)


def _upsample_shape(node: Node, inputs: list[Shape]) -> Shape:
    c, size = _image(node, inputs[0])[0], node.attrs["size"]
    if node.attrs["align_corners"] and node.attrs["mode"] != "bilinear":
        raise BadInput(f"layer {node.name!r}: only bilinear upsampling may align corners")
    if max(size) > MAX_SIDE:
        raise UnsupportedOperator(f"layer {node.name!r}: upsampling to {size} (supported: sides of up to {MAX_SIDE})")
    return (c, *size)


def _depth_to_space_shape(node: Node, inputs: list[Shape]) -> Shape:
    c, h, w = _image(node, inputs[0])
    block, (top, left) = node.attrs["block"], node.attrs["crop"]
    if c % prod(block):
        raise BadInput(f"layer {node.name!r}: blocks of {block} do not fit {c} channels")
    below, right = h * block[0] - top, w * block[1] - left
    rows, columns = node.attrs["size"] or (below, right)
    if not (0 < rows <= below and 0 < columns <= right):
        raise BadInput(
            f"layer {node.name!r}: {(rows, columns)} pixels from {(top, left)} are not all inside of "
            f"{(h * block[0], w * block[1])}"
        )
    return (c // prod(block), rows, columns)


def _concat_shape(node: Node, inputs: list[Shape]) -> Shape:
    if any(len(s) != len(inputs[0]) or s[1:] != inputs[0][1:] for s in inputs):
        raise BadInput(f"layer {node.name!r}: joins tensors of shapes {inputs}")
    return (sum(s[0] for s in inputs), *inputs[0][1:])


def _map_shape(node: Node, inputs: list[Shape]) -> Shape:
    index = node.attrs["index"]
    if max(index) >= inputs[0][0]:
        raise BadInput(f"layer {node.name!r}: index {max(index)} of {inputs[0][0]} channels")
    return (len(index), *inputs[0][1:])


def _subsample_shape(node: Node, inputs: list[Shape]) -> Shape:
    c, h, w = _image(node, inputs[0])
    stride_h, stride_w = node.attrs["stride"]
    return (c, -(-h // stride_h), -(-w // stride_w))


def _adaptive_shape(node: Node, inputs: list[Shape]) -> Shape:
    return (_image(node, inputs[0])[0], *node.attrs["size"])


def _global_shape(node: Node, inputs: list[Shape]) -> Shape:
    return (_image(node, inputs[0])[0], 1, 1)


def _same_shape(node: Node, inputs: list[Shape]) -> Shape:
    return inputs[0]


_SHAPES: Mapping[str, Callable[[Node, list[Shape]], Shape]] = {
    "quantize": _same_shape,
    "conv2d": _conv_shape,
    "linear": _linear_shape,
    "activation": _same_shape,
    "add": _add_shape,
    "mul": _mul_shape,
    "concat": _concat_shape,
    "max_pool2d": _pool_shape,
    "avg_pool2d": _pool_shape,
    "global_avg_pool2d": _global_shape,
    "adaptive_avg_pool2d": _adaptive_shape,
    "flatten": lambda node, inputs: (prod(inputs[0]),),
    "channel_map": _map_shape,
    "subsample": _subsample_shape,
    "layer_norm": _norm_shape,
    "tokens": _tokens_shape,
    "attention": _attention_shape,
    "prelu": _prelu_shape,
    "channel_affine": _affine_shape,
    "group_norm": _group_norm_shape,
    "upsample": _upsample_shape,
    "depth_to_space": _depth_to_space_shape,
}
