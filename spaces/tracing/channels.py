"""Selections, shuffles and joins of channels."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from trimtab.spaces.tracing.converter import Converter, as_tuple, functions, modules, pair, raw_shape
from trimtab.spaces.tracing.tokens import first_token, prepend


@functions(torch.cat, torch.concat)
def cat(c: Converter, node: fx.Node) -> None:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
    if isinstance(tensors, fx.Node):
        raise c.unsupported(node, "cat of all that one operator returns")
    rank = len(raw_shape(node))
    if rank == 2 and len(tensors) == 2 and tensors[0] in c.constants and axis in (1, -2):
        prepend(c, node, tensors[1], c.constants[tensors[0]])
        return
    if axis not in (c.channel_axis(node), c.channel_axis(node) - rank - 1):
        raise c.unsupported(node, f"cat on axis {axis}")
    c.add(node, "concat", tuple(c.tensor(tensor) for tensor in tensors))


def pad_channels(c: Converter, node: fx.Node, before: int, after: int) -> None:
    """Put channels of zeros before and after the operand's."""
    index = (-1,) * before + tuple(range(c.shape(node.args[0])[0])) + (-1,) * after
    c.add(node, "channel_map", (c.tensor(node.args[0]),), attrs={"index": index})


def select(c: Converter, node: fx.Node, source: str, index: list[int]) -> None:
    """Take these channels of a tensor; a selection of a selection is one."""
    producer = next((other for other in c.nodes if other.name == source and other.is_selection), None)
    if producer is not None:
        source, index = producer.inputs[0], [producer.attrs["index"][i] for i in index]
    c.add(node, "channel_map", (source,), attrs={"index": tuple(index)})


@modules(nn.ChannelShuffle)
@functions(F.channel_shuffle)
def channel_shuffle(c: Converter, node: fx.Node, module: nn.ChannelShuffle | None = None) -> None:
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("groups")
    groups = given if module is None else module.groups
    order = np.arange(c.shape(node)[0]).reshape(groups, -1).T
    select(c, node, c.tensor(node.args[0]), order.ravel().tolist())


@modules(nn.PixelShuffle)
@functions(F.pixel_shuffle, torch.pixel_shuffle)
def pixel_shuffle(c: Converter, node: fx.Node, module: nn.PixelShuffle | None = None) -> None:
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("upscale_factor")
    block = pair(given if module is None else module.upscale_factor)
    c.add(node, "depth_to_space", (c.tensor(node.args[0]),), attrs={"block": block})


@functions(torch.chunk, torch.split, "chunk", "split")
def split(c: Converter, node: fx.Node) -> None:
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    source: Any = node.args[0]
    rank = len(raw_shape(source))
    if axis not in (1, -rank) or c.channel_axis(source) != 1:
        raise c.unsupported(node, f"{getattr(node.target, '__name__', node.target)} on axis {axis}")
    c.alias(node, c.tensor(source))


@functions(operator.getitem)
def getitem(c: Converter, node: fx.Node) -> None:
    source: Any = node.args[0]
    if isinstance(source.meta["tensor_meta"], tuple) and not hasattr(source.meta["tensor_meta"], "shape"):
        _part(c, node, source)
        return
    index, shape = as_tuple(node.args[1]), raw_shape(source)
    if len(shape) == 2 and source not in c.signals and index in ((slice(None), 0), (slice(None), 0, slice(None))):
        first_token(c, node, source)
        return
    if len(shape) != 3 or len(index) > 4 or not all(isinstance(i, slice) for i in index):
        raise c.unsupported(node, f"indexing with {index}")
    slices = [*index, *[slice(None)] * (4 - len(index))]
    plain = all(i.start in (None, 0) and i.stop is None for i in slices)
    strides = tuple(i.step or 1 for i in slices)
    if not plain or strides[:2] != (1, 1):
        raise c.unsupported(node, f"indexing with {index}")
    c.add(node, "subsample", (c.tensor(source),), attrs={"stride": strides[2:]})


def _part(c: Converter, node: fx.Node, source: fx.Node) -> None:
    """One of the tensors that an operator returned: of attention the first, of a split any."""
    number = node.args[1]
    if isinstance(c.modules.get(str(source.target)), nn.MultiheadAttention) and number == 0:
        c.alias(node)
    elif isinstance(number, int) and source.op != "call_module":
        sizes = [part.shape[1] for part in source.meta["tensor_meta"]]
        number = range(len(sizes))[number]
        start = sum(sizes[:number])
        select(c, node, c.tensor(source), list(range(start, start + sizes[number])))
    else:
        raise c.unsupported(node, f"part {number} of what {source.name!r} returns")
