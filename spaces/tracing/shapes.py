"""Changes of shape: what leaves values as they are, and zero padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from trimtab.spaces.tracing.channels import pad_channels, select
from trimtab.spaces.tracing.converter import Converter, as_tuple, functions, modules, raw_shape


@modules(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
@functions(F.dropout, F.dropout1d, F.dropout2d, "contiguous", "torchvision.ops.stochastic_depth.stochastic_depth")
def identity(c: Converter, node: fx.Node, module: Any = None) -> None:
    if node.args[0] in c.shuffles:
        c.shuffles[node] = c.shuffles[node.args[0]]  # type: ignore[index]
    elif node.args[0] in c.planes:
        c.planes[node] = c.planes[node.args[0]]  # type: ignore[index]
    else:
        c.alias(node)


@modules(nn.Flatten)
@functions(torch.flatten, "flatten", "view", "reshape", torch.reshape, torch.squeeze, "squeeze")
def reshape(c: Converter, node: fx.Node, module: Any = None) -> None:
    source: Any = node.args[0]
    before, after = raw_shape(source), raw_shape(node)
    whole = len(after) == 1 and math.prod(before) == after[0]
    if source in c.shuffles:
        tensor, index = c.shuffles[source]
        if len(after) != 3 or after[0] != index.size:
            raise c.unsupported(node, f"reshaping {before} to {after}")
        select(c, node, tensor, index.ravel().tolist())
    elif before == after:
        c.alias(node)
    elif len(before) == 3 and len(after) == 4 and after[2:] == before[1:]:
        c.shuffles[node] = c.tensor(source), np.arange(before[0]).reshape(after[:2])
    elif len(before) == 3 and after == (before[0], before[1] * before[2]):
        c.planes[node] = c.tensor(source)
        c.signals.add(node)
    elif whole and (len(before) in (1, 3) or source in c.signals):
        c.add(node, "flatten", (c.tensor(source),))
    else:
        raise c.unsupported(node, f"reshaping {before} to {after}")


@functions(torch.transpose, "transpose", torch.permute, "permute")
def transpose(c: Converter, node: fx.Node) -> None:
    source: Any = node.args[0]
    order = list(range(len(raw_shape(node)) + 1))
    axes = as_tuple(node.args[1]) if len(node.args) == 2 else node.args[1:]
    if str(getattr(node.target, "__name__", node.target)) == "permute":
        order = [order[axis] for axis in axes]  # type: ignore[index]
    else:
        a, b = (order[axis] for axis in axes)  # type: ignore[index]
        order[a], order[b] = b, a
    if source in c.shuffles and order == [0, 2, 1, 3, 4]:
        tensor, index = c.shuffles[source]
        c.shuffles[node] = tensor, index.T
    elif source in c.planes and order == [0, 2, 1]:
        c.signals.discard(node)
        c.add(node, "tokens", (c.planes[source],))
    elif source in c.names and order == [0, 2, 1]:  # the places of a signal are the tokens of a sequence
        if source in c.signals:
            c.signals.discard(node)
        else:
            c.signals.add(node)
        c.alias(node)
    else:
        raise c.unsupported(node, f"permuting the axes of {raw_shape(source)} to {order}")


@functions(F.pad)
def pad(c: Converter, node: fx.Node) -> None:
    names = ("pad", "mode", "value")
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    amounts = list(as_tuple(given["pad"]))
    if not all(isinstance(amount, int) for amount in amounts):
        raise c.unsupported(node, "padding by an amount that depends on the input")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        raise c.unsupported(node, "padding with anything but zeros")
    left, right, top, bottom, front, back, *others = [*amounts, *[0] * 6][: max(len(amounts), 6)]
    spatial = (top, left, bottom, right)
    if any(others) or min(amounts) < 0 or len(raw_shape(node)) != 3 or (any(spatial) and (front or back)):
        raise c.unsupported(node, f"padding by {amounts}")
    if not any(amounts):
        c.alias(node)
    elif front or back:
        pad_channels(c, node, front, back)
    else:
        _spatial_pad(c, node, spatial)


@modules(nn.ZeroPad2d)
def zero_pad(c: Converter, node: fx.Node, module: nn.ZeroPad2d) -> None:
    left, right, top, bottom = module.padding
    if min(module.padding) < 0:
        raise c.unsupported(node, f"padding by {module.padding}")
    _spatial_pad(c, node, (top, left, bottom, right))


def _spatial_pad(c: Converter, node: fx.Node, padding: tuple[int, int, int, int]) -> None:
    c.pads[node.name] = (c.tensor(node.args[0]), padding)
    c.alias(node, node.name)
