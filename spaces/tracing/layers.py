"""Layers, and the batch norms behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import fx, nn

from trimtab.graph import Array, Node, Norm
from trimtab.spaces.tracing.converter import (
    Converter,
    array_of,
    layer_weights,
    modules,
    optional_array,
    pair,
    raw_shape,
)

__all__ = ["POINTWISE", "transposed_macs"]

#: The attributes of a convolution that looks at one pixel.
POINTWISE = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


@modules(nn.Conv2d, nn.Conv1d)
def conv(c: Converter, node: fx.Node, module: nn.Conv2d | nn.Conv1d) -> None:
    kind, rows_only = type(module).__name__, isinstance(module, nn.Conv1d)
    if module.padding_mode != "zeros" or isinstance(module, nn.LazyConv2d | nn.LazyConv1d):
        raise c.unsupported(node, f"{kind} with padding_mode={module.padding_mode!r}")
    padding = _padding(module, rows_only)
    source = c.names.get(node.args[0])  # type: ignore[arg-type]
    if source in c.pads:
        source, outer = c.pads[source]
        padding = tuple(a + b for a, b in zip(padding, outer, strict=True))  # type: ignore[assignment]
    else:
        source = c.tensor(node.args[0])
    attrs = {
        "stride": pair(module.stride, rows_only),
        "padding": padding,
        "dilation": pair(module.dilation, rows_only),
        "groups": module.groups,
    }
    weight = array_of(module.weight)
    weight = weight.reshape(*weight.shape, *[1] * (4 - weight.ndim))
    c.add(node, "conv2d", (source,), attrs=attrs, weights=layer_weights(weight, optional_array(module.bias)))


def _padding(module: nn.Conv2d | nn.Conv1d, rows_only: bool) -> tuple[int, int, int, int]:
    """Pixels above, on the left, below and on the right."""
    if module.padding == "same":
        kernel, dilation = pair(module.kernel_size, rows_only), pair(module.dilation, rows_only)
        rows, columns = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        return (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)
    pad_h, pad_w = (0, 0) if module.padding == "valid" else pair(module.padding, rows_only, 0)
    return (pad_h, pad_w, pad_h, pad_w)


@modules(nn.ConvTranspose2d)
def conv_transpose(c: Converter, node: fx.Node, module: nn.ConvTranspose2d) -> None:
    """Turn it into a convolution that makes all pixels of a stride as channels, and a rearrangement of those.

    With stride s, pixel s * i + r of the output is the sum over j of x[i - j] w[s * j + r]: for every r a convolution
    of ceil(k / s) taps (the sub-pixel convolution of Shi et al. 2016, arXiv:1609.07009). Nothing is multiplied by zeros
    that were not there but where s does not divide k, and at the borders, which are cut off.
    """
    if pair(module.dilation) != (1, 1):
        raise c.unsupported(node, "ConvTranspose2d with dilation")
    weight, bias, source = array_of(module.weight), optional_array(module.bias), c.tensor(node.args[0])
    block, before = pair(module.stride), pair(module.padding)
    sizes = list(zip(c.shape(node.args[0])[1:], c.shape(node)[1:], weight.shape[2:], block, before, strict=True))
    rows, columns = (_phases(*each) for each in sizes)
    weight = _phase_kernels(weight, block, module.groups)
    if bias is not None:
        bias = np.repeat(bias, block[0] * block[1])
    padding = (rows[0], columns[0], rows[1], columns[1])
    attrs = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": module.groups}
    crop, size = (rows[2], columns[2]), c.shape(node)[1:]
    c.add(node, "conv2d", (source,), attrs=attrs, weights=layer_weights(weight, bias))
    if block != (1, 1) or crop != (0, 0):
        attrs = {"block": block, "crop": crop, "size": size}
        c.nodes.append(Node("depth_to_space", c.fresh(f"{c.names[node]}.pixels"), (c.names[node],), attrs))
        c.alias(node, c.nodes[-1].name)


def _phases(given: int, wanted: int, kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """Zeros before and after a line of `given` pixels, and pixels to cut off before the `wanted` ones."""
    taps = -(-kernel // stride)
    first = min(padding // stride, taps - 1)
    last = (padding + wanted - 1) // stride
    before = taps - 1 - first
    return before, max(last - first + taps - given - before, 0), padding - stride * first


def _phase_kernels(weight: Array, block: tuple[int, int], groups: int) -> Array:
    """The kernels (O * sh * sw, I / groups, th, tw) of a stride's pixels, from a weight (I, O / groups, kh, kw)."""
    inputs, per_group, *kernel = weight.shape
    (sh, sw), (kh, kw) = block, kernel
    th, tw = -(-kh // sh), -(-kw // sw)
    padded = np.zeros((inputs, per_group, th * sh, tw * sw), np.float32)
    padded[:, :, :kh, :kw] = weight
    # Tap j of pixel r lies at s * j + r; a convolution reads its taps the other way round.
    parts = padded.reshape(groups, inputs // groups, per_group, th, sh, tw, sw)[:, :, :, ::-1, :, ::-1, :]
    ordered = parts.transpose(0, 2, 4, 6, 1, 3, 5)  # groups, outputs, pixels of the stride, inputs, taps
    return np.ascontiguousarray(ordered.reshape(groups * per_group * sh * sw, inputs // groups, th, tw))


def transposed_macs(module: nn.ConvTranspose2d, given: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return the multiply-accumulates of what a transposed convolution becomes, for one image."""
    kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    pixels = 1
    for line in zip(given, wanted, kernel, stride, padding, strict=True):
        before, after, _ = _phases(*line)
        taps = -(-line[2] // line[3])
        pixels *= (line[0] + before + after - taps + 1) * taps * line[3]
    return pixels * module.in_channels * module.out_channels // module.groups


@modules(nn.Linear)
def linear(c: Converter, node: fx.Node, module: nn.Linear) -> None:
    source, weight, bias = c.tensor(node.args[0]), array_of(module.weight), optional_array(module.bias)
    rank = len(raw_shape(node))
    if rank == 1:
        c.add(node, "linear", (source,), weights=layer_weights(weight, bias))
    elif rank == 2 and node not in c.signals:
        c.add(node, "conv2d", (source,), attrs=POINTWISE, weights=layer_weights(weight[:, :, None, None], bias))
    else:
        raise c.unsupported(node, f"Linear over the last axis of {'signals' if rank == 2 else 'images'}")


@modules(nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
def norm(c: Converter, node: fx.Node, module: nn.BatchNorm2d) -> None:
    if module.running_mean is None or module.running_var is None:
        raise c.unsupported(node, "batch norm without running statistics")
    ones = np.ones(module.num_features, np.float32)
    found = Norm(
        weight=array_of(module.weight) if module.affine else ones,
        bias=array_of(module.bias) if module.affine else 0 * ones,
        mean=array_of(module.running_mean),
        var=array_of(module.running_var),
        eps=module.eps,
    )
    name, last = c.tensor(node.args[0]), c.layer_behind(node, node.args[0])
    if last is not None and c.nodes[last[0]].norm is None:
        each = np.repeat(np.arange(module.num_features), last[1])
        c.nodes[last[0]] = replace(c.nodes[last[0]], norm=found.select(each))
        c.alias(node, name)
        return
    if len(raw_shape(node)) != 3 and node not in c.signals:
        raise c.unsupported(node, "BatchNorm1d that does not follow a layer")
    # Behind anything but a layer (pre-activation networks, DenseNet), batch norm is a depthwise 1x1 convolution.
    scale = found.scale
    bias = (found.bias - found.mean * scale).astype(np.float32)
    attrs = {**POINTWISE, "groups": module.num_features}
    c.add(node, "conv2d", (name,), attrs=attrs, weights=layer_weights(scale.reshape(-1, 1, 1, 1), bias))
