"""A plain interpreter of graphs with the arithmetic of docs/arithmetic.md: exact integers, float32 step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from trimtab.kernels import Graph, Node, Quant, fuse

Array = Any
F32 = np.float32


def interpret(graph: Graph, x: Array) -> dict[str, Array]:
    """Return the real value, float32 (N, ...), of every tensor that is left after fusion."""
    graph = fuse(graph)
    stored: dict[str, Array] = {graph.input: store(x, graph.quant.get(graph.input))}
    for node in graph.nodes:
        inputs = [stored[name] for name in node.inputs]
        quants = [graph.quant.get(name) for name in node.inputs]
        stored[node.name] = evaluate(node, inputs, quants, graph.quant.get(node.name))
    return {name: real(value, graph.quant.get(name)) for name, value in stored.items()}


def output(graph: Graph, x: Array) -> Array:
    return interpret(graph, x)[graph.output]


def store(x: Array, quant: Quant | None) -> Array:
    if quant is None:
        return np.asarray(x, F32)
    inverse = F32(1.0 / float(F32(quant.scale)))
    z = quant.zero_point
    return (np.rint(np.clip(np.asarray(x, F32) * inverse, F32(-z), F32(quant.top - z))) + F32(z)).astype(np.uint8)


def real(q: Array, quant: Quant | None) -> Array:
    if quant is None:
        return q
    return (q.astype(np.int32) - quant.zero_point).astype(F32) * F32(quant.scale)


def to_bf16(x: Array) -> Array:
    """Eight significant bits, fewer below 2^-126; halves to even. What is not a number becomes the lowest."""
    largest = 255 * 2.0**120
    wide = np.clip(np.where(np.isnan(x), -largest, x).astype(np.float64), -largest, largest)
    step = np.ldexp(1.0, np.maximum(np.frexp(wide)[1], -125) - 8)
    return (np.rint(wide / step) * step).astype(F32)


def activate(x: Array, name: str) -> Array:
    if name == "none":
        return x
    if name in CURVES:
        return CURVES[name](x)
    x = np.maximum(x, F32(0))
    return np.minimum(x, F32(6)) if name == "relu6" else x


def polynomial(x: Array, *coefficients: float) -> Array:
    """Horner's rule in float32, the highest power first."""
    y = F32(coefficients[0])
    for c in coefficients[1:]:
        y = y * x + F32(c)
    return y


def split_exponential(x: Array) -> tuple[Array, Array]:
    """e^x = power * (1 + rest)."""
    x = np.clip(x, F32(-87), F32(88))
    n = np.rint(x * F32(1.44269504))
    r = x - n * F32(0.693359375) - n * F32(-2.12194440e-4)
    p = polynomial(r, 0.00831205, 0.0418945, 0.16667133, 0.49999202, 1)
    return np.ldexp(F32(1), np.where(np.isfinite(n), n, 0).astype(int)).astype(F32), p * r


def exponential(x: Array) -> Array:
    power, rest = split_exponential(x)
    return (rest + F32(1)) * power


def exponential_less_one(x: Array) -> Array:
    power, rest = split_exponential(x)
    return power * rest + (power - F32(1))


def hard_sigmoid(x: Array) -> Array:
    return np.clip(x + F32(3), F32(0), F32(6)) * F32(1 / 6)


def gelu(x: Array) -> Array:
    t = np.abs(x)
    k = F32(1) / (F32(1) + F32(0.34) * t)
    p = polynomial(k, -0.10640304, 0.33097511, -0.04015033, 0.18624173, 0.12933419)
    bounded = np.minimum(t, F32(13))
    tail = bounded * (p * k) * exponential(F32(-0.5) * bounded * bounded)
    return np.maximum(x, F32(0)) - tail


def tanh(x: Array) -> Array:
    m = exponential_less_one(F32(-2) * np.abs(x))
    return np.copysign(m / (m + F32(2)), x)


CURVES = {
    "hard_sigmoid": hard_sigmoid,
    "hard_swish": lambda x: x * hard_sigmoid(x),
    "sigmoid": lambda x: F32(1) / (F32(1) + exponential(-x)),
    "silu": lambda x: x / (F32(1) + exponential(-x)),
    "gelu": gelu,
    "tanh": tanh,
    "elu": lambda x: np.maximum(x, F32(0)) + exponential_less_one(np.minimum(x, F32(0))),
}


def move(x: Array, quant: Quant | None, to: Quant | None) -> Array:
    return x if quant == to else store(real(x, quant), to)


def channels(vector: Array, like: Array) -> Array:
    return np.asarray(vector).reshape(1, -1, *([1] * (like.ndim - 2)))


def product(node: Node, x: Array, weight: Array) -> Array:
    """Return conv2d or linear without bias, in float64: exact for integers."""
    a, w = torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weight.astype(np.float64))
    if node.kind == "linear":
        return (a @ w.T).numpy()
    top, left, bottom, right = node.attrs["padding"]
    a = functional.pad(a, (left, right, top, bottom))
    attrs = node.attrs
    return functional.conv2d(a, w, None, tuple(attrs["stride"]), 0, tuple(attrs["dilation"]), attrs["groups"]).numpy()


def layer(node: Node, inputs: list[Array], quants: list[Quant | None], to: Quant | None) -> Array:
    weights = node.weights
    weight = weights["weight"]
    bias = weights.get("bias", np.zeros(len(weight), F32))
    activation = node.attrs["activation"]
    if weight.dtype == np.int8 and quants[0] is not None:
        scale = float(F32(quants[0].scale)) * weights["weight_scale"].astype(np.float64)
        acc = product(node, inputs[0].astype(np.int64) - quants[0].zero_point, weight)
        acc = acc + channels(np.clip(np.rint(bias.astype(np.float64) / scale), -(2**30), 2**30), acc)
        assert np.abs(acc).max() < 2**31
        if len(inputs) == 1 and to is not None and activation not in CURVES:
            return requantize(acc.astype(np.int32), scale, activation, to)
        value = acc.astype(np.int32).astype(F32) * channels(scale.astype(F32), acc)
    else:
        if weight.dtype == np.int8:
            weight = weight.astype(F32) * weights["weight_scale"].reshape(-1, *([1] * (weight.ndim - 1)))
        x = real(inputs[0], quants[0])
        value = product(node, to_bf16(x) if node.attrs["precision"] == "bf16" else x, weight)
        value = (value + channels(bias, value)).astype(F32)
    if len(inputs) == 2:
        value = value + real(inputs[1], quants[1])
    return store(activate(value, activation), to)


def requantize(acc: Array, scale: Array, activation: str, to: Quant) -> Array:
    out_scale, z = float(F32(to.scale)), to.zero_point
    low = z if activation != "none" else 0
    high = min(to.top, np.rint(6.0 / out_scale) + z) if activation == "relu6" else to.top
    scaled = acc.astype(F32) * channels((scale / out_scale).astype(F32), acc)
    return (np.rint(np.clip(scaled, F32(low - z), F32(high - z))) + F32(z)).astype(np.uint8)


def windows(node: Node, x: Array, pad: Any) -> list[tuple[Array, Array]]:
    """Return for every tap of a pool: its values, and whether each lies inside the image."""
    (kh, kw), (sh, sw), (top, left, bottom, right) = (node.attrs[n] for n in ("kernel", "stride", "padding"))
    width = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(x, width, constant_values=pad)
    inside = np.pad(np.ones_like(x, dtype=bool), width)
    rows, columns = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
    taps = []
    for i in range(kh):
        for j in range(kw):
            at = (slice(None), slice(None), slice(i, i + rows * sh, sh), slice(j, j + columns * sw, sw))
            taps.append((padded[at][:, :, :rows, :columns], inside[at][:, :, :rows, :columns]))
    return taps


def max_pool(node: Node, x: Array) -> Array:
    least = 0 if x.dtype == np.uint8 else -np.inf
    return np.max([values for values, _ in windows(node, x, least)], axis=0)


def avg_pool(node: Node, x: Array, quant: Quant | None) -> Array:
    if node.kind == "global_avg_pool2d":
        kernel = x.shape[2:]
        attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "count_include_pad": True}
        node = Node("avg_pool2d", node.name, node.inputs, attrs)
    values = x.astype(np.float64) if quant is None else x.astype(np.int64) - quant.zero_point
    taps = windows(node, values, 0)
    total = sum(v for v, _ in taps)
    count = len(taps) if node.attrs["count_include_pad"] else sum(inside.astype(int) for _, inside in taps)
    if quant is None:
        return (total / count).astype(F32)
    return total.astype(F32) * (float(F32(quant.scale)) / np.asarray(count)).astype(F32)


def adaptive_avg_pool(node: Node, x: Array, quant: Quant | None) -> Array:
    values = x.astype(np.float64) if quant is None else x.astype(np.int64) - quant.zero_point
    (rows, columns), (h, w) = node.attrs["size"], x.shape[2:]
    out = np.empty((*x.shape[:2], rows, columns), F32)
    for i in range(rows):
        for j in range(columns):
            window = values[
                :, :, i * h // rows : -(-(i + 1) * h // rows), j * w // columns : -(-(j + 1) * w // columns)
            ]
            total, count = window.sum((2, 3)), window.shape[2] * window.shape[3]
            if quant is None:
                out[:, :, i, j] = total / count
            else:
                out[:, :, i, j] = total.astype(F32) * F32(float(F32(quant.scale)) / count)
    return out


def layer_norm(node: Node, x: Array) -> Array:
    x = x.astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(1, keepdims=True) + node.attrs["epsilon"])
    return (y * channels(node.weights["weight"], y) + channels(node.weights["bias"], y)).astype(F32)


def group_norm(node: Node, x: Array) -> Array:
    grouped = x.astype(np.float64).reshape(len(x), node.attrs["groups"], -1)
    centred = grouped - grouped.mean(2, keepdims=True)
    y = (centred / np.sqrt((centred**2).mean(2, keepdims=True) + node.attrs["epsilon"])).reshape(x.shape)
    return (y * channels(node.weights["weight"], y) + channels(node.weights["bias"], y)).astype(F32)


def prelu(node: Node, x: Array) -> Array:
    return np.maximum(x, F32(0)) + channels(node.weights["slope"], x) * np.minimum(x, F32(0))


def channel_affine(node: Node, x: Array) -> Array:
    scaled = x * channels(node.weights["weight"], x) if "weight" in node.weights else x
    return scaled + channels(node.weights["bias"], x) if "bias" in node.weights else scaled


def bilinear(node: Node, x: Array) -> Array:
    for axis, new in zip((2, 3), node.attrs["size"], strict=True):
        old, i = x.shape[axis], np.arange(new)
        if node.attrs["align_corners"]:
            first, rest = np.divmod(i * (old - 1), divisor := max(new - 1, 1))
        else:
            first, rest = np.divmod(np.maximum((2 * i + 1) * old - new, 0), divisor := 2 * new)
        share = (rest / divisor).astype(F32).reshape([-1 if a == axis else 1 for a in range(4)])
        x = x.take(first, axis) * (F32(1) - share) + x.take(np.minimum(first + 1, old - 1), axis) * share
    return x


def nearest(node: Node, x: Array) -> Array:
    rows, columns = (np.arange(new) * old // new for new, old in zip(node.attrs["size"], x.shape[2:], strict=True))
    return x[:, :, rows[:, None], columns]


def depth_to_space(node: Node, x: Array) -> Array:
    (bh, bw), (top, left) = node.attrs["block"], node.attrs["crop"]
    n, c, h, w = x.shape
    whole = x.reshape(n, c // (bh * bw), bh, bw, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * bh, w * bw)
    rows, columns = node.attrs["size"] or whole.shape[2:]
    return whole[:, :, top : top + rows, left : left + columns]


def tokens(node: Node, x: Array) -> Array:
    sequence = x.reshape(*x.shape[:2], -1)
    prefix = node.weights.get("prefix", np.zeros((0, x.shape[1]), F32)).T
    sequence = np.concatenate([np.broadcast_to(prefix, (len(x), *prefix.shape)), sequence], 2)
    return (sequence + node.weights.get("position", np.zeros((1, 1), F32)).T)[..., None]


def attention(node: Node, inputs: list[Array]) -> Array:
    heads = node.attrs["heads"]
    q, k, v = (x.astype(np.float64).reshape(len(x), heads, -1, x.shape[2]) for x in inputs)
    scores = node.attrs["scale"] * np.einsum("nhdi,nhdj->nhij", q, k)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhij,nhdj->nhdi", weights, v).reshape(inputs[2].shape).astype(F32)


def channel_map(node: Node, x: Array, zero: int) -> Array:
    index = np.asarray(node.attrs["index"])
    out = x[:, np.maximum(index, 0)].copy()
    out[:, index < 0] = zero
    return out


def evaluate(node: Node, inputs: list[Array], quants: list[Quant | None], to: Quant | None) -> Array:
    x, quant = inputs[0], quants[0]
    if node.kind in ("conv2d", "linear"):
        return layer(node, inputs, quants, to)
    if node.kind == "add":
        return store(activate(real(x, quant) + real(inputs[1], quants[1]), node.attrs["activation"]), to)
    if node.kind == "activation":
        return store(activate(real(x, quant), node.attrs["activation"]), to)
    if node.kind == "mul":
        return store(real(x, quant) * real(inputs[1], quants[1]), to)
    if node.kind in ("avg_pool2d", "global_avg_pool2d"):
        return store(avg_pool(node, x, quant), to)
    if node.kind == "adaptive_avg_pool2d":
        return store(adaptive_avg_pool(node, x, quant), to)
    if node.kind == "layer_norm":
        return store(layer_norm(node, real(x, quant)), to)
    if node.kind == "group_norm":
        return store(group_norm(node, real(x, quant)), to)
    if node.kind == "prelu":
        return store(prelu(node, real(x, quant)), to)
    if node.kind == "channel_affine":
        return store(channel_affine(node, real(x, quant)), to)
    if node.kind == "upsample" and node.attrs["mode"] == "bilinear":
        return store(bilinear(node, real(x, quant)), to)
    if node.kind == "tokens":
        return store(tokens(node, real(x, quant)), to)
    if node.kind == "attention":
        return store(attention(node, [real(*pair) for pair in zip(inputs, quants, strict=True)]), to)
    moved = [move(x, q, to) if q != to else x for x, q in zip(inputs, quants, strict=True)]
    if node.kind == "concat":
        return np.concatenate(moved, axis=1)
    x = moved[0]
    if node.kind == "max_pool2d":
        return max_pool(node, x)
    if node.kind == "flatten":
        return x.reshape(len(x), -1)
    if node.kind == "subsample":
        return x[:, :, :: node.attrs["stride"][0], :: node.attrs["stride"][1]]
    if node.kind == "upsample":
        return nearest(node, x)
    if node.kind == "depth_to_space":
        return depth_to_space(node, x)
    if node.kind == "channel_map":
        return channel_map(node, x, 0 if to is None else to.zero_point)
    assert node.kind == "quantize"
    return x
