"""Sequences of tokens: norms, attention, class tokens and position embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx, nn

from trimtab.graph import Array, Node
from trimtab.spaces.tracing.converter import (
    Converter,
    UnsupportedNetwork,
    array_of,
    functions,
    layer_weights,
    modules,
    optional_array,
    raw_shape,
)
from trimtab.spaces.tracing.layers import POINTWISE


@modules(nn.LayerNorm)
def layer_norm(c: Converter, node: fx.Node, module: nn.LayerNorm) -> None:
    shape = raw_shape(node)
    if len(shape) > 2 or tuple(module.normalized_shape) != shape[-1:] or (len(shape) == 2 and node in c.signals):
        raise c.unsupported(node, f"LayerNorm of {tuple(module.normalized_shape)} on {shape}")
    ones = np.ones(shape[-1], np.float32)
    weight, bias = optional_array(module.weight), optional_array(module.bias)
    constants = {"weight": ones if weight is None else weight, "bias": 0 * ones if bias is None else bias}
    source = c.tensor(node.args[0])
    c.add(node, "layer_norm", (source,), attrs={"epsilon": float(module.eps)}, weights=constants)


@modules(nn.MultiheadAttention)
def attention(c: Converter, node: fx.Node, module: nn.MultiheadAttention) -> None:
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    itself = given["query"] is given.get("key") is given.get("value")
    masked = given.get("key_padding_mask") is not None or given.get("attn_mask") is not None
    if not itself or masked or not module.batch_first or module.in_proj_weight is None:
        raise c.unsupported(node, "MultiheadAttention but of an unmasked sequence with itself, batch first,")
    if module.bias_k is not None or module.add_zero_attn:
        raise c.unsupported(node, "MultiheadAttention with bias_k or add_zero_attn")
    if given["query"] in c.signals:
        raise c.unsupported(node, "MultiheadAttention of signals")
    source, path = c.tensor(given["query"]), str(node.target)
    weights = np.split(array_of(module.in_proj_weight), 3)
    biases = [None] * 3 if module.in_proj_bias is None else np.split(array_of(module.in_proj_bias), 3)
    attrs = {"heads": module.num_heads, "scale": (module.embed_dim // module.num_heads) ** -0.5}

    def project(name: str, tensor: str, weight: Array, bias: Array | None) -> str:
        arrays = layer_weights(weight[:, :, None, None], bias)
        c.nodes.append(Node("conv2d", f"{path}.{name}", (tensor,), POINTWISE, arrays))
        return f"{path}.{name}"

    inputs = tuple(project(*part) for part in zip("qkv", [source] * 3, weights, biases, strict=True))
    c.nodes.append(Node("attention", f"{path}.attention", inputs, attrs))
    out = module.out_proj
    c.alias(node, project("out_proj", f"{path}.attention", array_of(out.weight), optional_array(out.bias)))


@functions("expand")
def expand(c: Converter, node: fx.Node) -> None:
    constant = c.constants.get(node.args[0])  # type: ignore[arg-type]
    if constant is None or constant.ndim != 3 or raw_shape(node) != constant.shape[1:]:
        raise c.unsupported(node, "expand of anything but a parameter (1, L, F) over the batch")
    c.constants[node] = constant


def prepend(c: Converter, node: fx.Node, source: Any, prefix: Array) -> None:
    """Put a class token (1, P, F) before the tokens that `source` holds."""
    _extend(c, node, source, "prefix", prefix)


def add_position(c: Converter, node: fx.Node, source: Any, position: Array) -> None:
    """Add a position embedding (1, L, F) to the tokens that `source` holds."""
    _extend(c, node, source, "position", position)


def _extend(c: Converter, node: fx.Node, source: Any, what: str, constant: Array) -> None:
    """Put a constant into the operator that makes the tokens."""
    last = c.producer(node, source)
    producer = None if last is None else c.nodes[last]
    fits = constant.ndim == 3 and len(constant) == 1 and (what == "prefix" or constant.shape[1:] == raw_shape(node))
    if (
        last is None
        or producer is None
        or producer.kind != "tokens"
        or "position" in producer.weights
        or node in c.signals
        or not fits
    ):
        raise UnsupportedNetwork(
            f"a parameter is used as a tensor at {node.name!r}: only a class token and a position embedding may be, "
            "right behind the reshape of an image to tokens, and what is the same for all places of a channel"
        )
    c.nodes[last] = producer.with_weights(**{what: constant[0]})
    c.alias(node, producer.name)


def first_token(c: Converter, node: fx.Node, source: fx.Node) -> None:
    """Take the first token as a vector."""
    _, length, _ = c.shape(source)
    c.nodes.append(Node("subsample", c.fresh(f"{node.name}_token"), (c.tensor(source),), {"stride": (length, 1)}))
    c.nodes.append(Node("flatten", c.fresh(node.name), (c.nodes[-1].name,)))
    c.alias(node, c.nodes[-1].name)
