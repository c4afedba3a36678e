"""Small graphs with random weights, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.kernels import Graph, Node, Quant

IN = Quant(0.02, 119)
OUT = Quant(0.05, 87)


def conv(
    rng: np.random.Generator,
    source: str,
    channels: int,
    out: int,
    kernel: tuple[int, int] = (3, 3),
    *,
    name: str = "conv",
    integer: bool = True,
    bias: bool = True,
    residual: str | None = None,
    **attrs: Any,
) -> Node:
    """Return a conv2d node with random weights over `channels` input channels."""
    shape = (out, channels // attrs.get("groups", 1), *kernel)
    weights = random_weights(rng, shape, integer, bias)
    inputs = (source,) if residual is None else (source, residual)
    return Node("conv2d", name, inputs, attrs, weights)


def linear(
    rng: np.random.Generator, source: str, features: int, out: int, *, name: str = "linear", integer: bool = True
) -> Node:
    """Return a linear node with random weights."""
    return Node("linear", name, (source,), {}, random_weights(rng, (out, features), integer, True))


def random_weights(
    rng: np.random.Generator, shape: tuple[int, ...], integer: bool, bias: bool
) -> dict[str, np.ndarray]:
    """Return random `weight`, with its scale where integer, and `bias`."""
    fan_in = int(np.prod(shape[1:]))
    weights: dict[str, np.ndarray] = {}
    if integer:
        weights["weight"] = rng.integers(-128, 128, shape, dtype=np.int8)
        weights["weight_scale"] = (rng.uniform(0.5, 1.5, shape[0]) / (74 * fan_in**0.5)).astype(np.float32)
    else:
        weights["weight"] = (rng.standard_normal(shape) / fan_in**0.5).astype(np.float32)
    if bias:
        weights["bias"] = rng.standard_normal(shape[0]).astype(np.float32)
    return weights


def graph(shape: tuple[int, ...], *nodes: Node, quant: dict[str, Quant] | None = None) -> Graph:
    """Return a graph that reads "x" and gives the last node's tensor."""
    return Graph("x", shape, nodes, nodes[-1].name, quant or {})


def images(rng: np.random.Generator, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return random float32 images that use most of the range of IN."""
    return (rng.standard_normal((count, *shape)) * 1.5).astype(np.float32)


def resnet20(rng: np.random.Generator, integer: bool) -> Graph:
    """Return a network shaped as CIFAR's ResNet-20, quantised throughout or in float32."""
    nodes: list[Node] = []
    quant = {"x": IN} if integer else {}

    def add(node: Node, stored: bool) -> str:
        nodes.append(node)
        if stored and integer:
            quant[node.name] = OUT
        return node.name

    pad = {"padding": (1, 1, 1, 1)}
    last = add(conv(rng, "x", 3, 16, name="stem", integer=integer, activation="relu", **pad), True)
    width = 16
    for stage in (16, 32, 64):
        for block in range(3):
            stride = 2 if stage > 16 and block == 0 else 1
            tag = f"{stage}.{block}"
            a = conv(rng, last, width, stage, name=f"{tag}.a", integer=integer, stride=(stride,) * 2,
                     activation="relu", **pad)  # fmt: skip
            first = add(a, True)
            second = add(conv(rng, first, stage, stage, name=f"{tag}.b", integer=integer, **pad), False)
            short = last
            if stride == 2:
                half = add(Node("subsample", f"{tag}.half", (last,), {"stride": (2, 2)}), True)
                index = (-1,) * (width // 2) + tuple(range(width)) + (-1,) * (width // 2)
                short = add(Node("channel_map", f"{tag}.short", (half,), {"index": index}), True)
            joined = add(Node("add", f"{tag}.add", (second, short)), False)
            last = add(Node("activation", f"{tag}.relu", (joined,), {"activation": "relu"}), True)
            width = stage
    pooled = add(Node("global_avg_pool2d", "pool", (last,)), True)
    flat = add(Node("flatten", "flat", (pooled,)), True)
    add(linear(rng, flat, 64, 10, name="fc", integer=integer), False)
    return Graph("x", (3, 32, 32), tuple(nodes), "fc", quant)
