"""Pooling and resizing: one pixel of several, or several of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from trimtab.graph import Node
from trimtab.spaces.tracing.converter import Converter, as_tuple, functions, modules, pair, raw_shape

_SPATIAL_AXES = ({2, 3}, {-2, -1}, {2, -1}, {-2, 3})


@modules(nn.MaxPool2d, nn.MaxPool1d)
def max_pool(c: Converter, node: fx.Node, module: Any) -> None:
    if pair(module.dilation) != (1, 1) or getattr(module, "return_indices", False):
        raise c.unsupported(node, "max pooling with dilation or return_indices")
    c.add(node, "max_pool2d", (c.tensor(node.args[0]),), attrs=_window(c, module, node))


@modules(nn.AvgPool2d, nn.AvgPool1d)
def avg_pool(c: Converter, node: fx.Node, module: Any) -> None:
    if getattr(module, "divisor_override", None) is not None:
        raise c.unsupported(node, "average pooling with divisor_override")
    window, include = _window(c, module, node), bool(module.count_include_pad)
    top, left, bottom, right = window["padding"]
    if (top, left) != (bottom, right):  # what ceil_mode adds at the end never counts
        if include and (top or left):
            raise c.unsupported(node, "average pooling with ceil_mode that counts its padding")
        include = False
    attrs = {**window, "count_include_pad": include}
    c.add(node, "avg_pool2d", (c.tensor(node.args[0]),), attrs=attrs)


_MAX_POOLS = {F.max_pool2d: nn.MaxPool2d, torch.max_pool2d: nn.MaxPool2d, F.max_pool1d: nn.MaxPool1d}
_AVG_POOLS = {F.avg_pool2d: nn.AvgPool2d, F.avg_pool1d: nn.AvgPool1d}


@functions(*_MAX_POOLS)
def functional_max_pool(c: Converter, node: fx.Node) -> None:
    max_pool(c, node, _as_module(node, _MAX_POOLS[node.target], "dilation", "ceil_mode"))  # type: ignore[index]


@functions(*_AVG_POOLS)
def functional_avg_pool(c: Converter, node: fx.Node) -> None:
    more = ("ceil_mode", "count_include_pad", "divisor_override")
    avg_pool(c, node, _as_module(node, _AVG_POOLS[node.target], *more))  # type: ignore[index]


def _as_module(node: fx.Node, kind: Any, *more: str) -> Any:
    names = ("kernel_size", "stride", "padding", *more)
    return kind(**{**dict(zip(names, node.args[1:], strict=False)), **node.kwargs})


def _window(c: Converter, module: Any, node: fx.Node) -> dict[str, Any]:
    """A pool's window; `ceil_mode` becomes padding at the end."""
    rows_only = isinstance(module, nn.MaxPool1d | nn.AvgPool1d)
    kernel, padding = pair(module.kernel_size, rows_only), pair(module.padding, rows_only, 0)
    stride = pair(module.kernel_size if module.stride is None else module.stride, rows_only)
    before, after = c.shape(node.args[0])[1:], c.shape(node)[1:]
    last = [
        max(p, (after[i] - 1) * stride[i] + kernel[i] - before[i] - p) if module.ceil_mode else p
        for i, p in enumerate(padding)
    ]
    return {"kernel": kernel, "stride": stride, "padding": (*padding, *last)}


@modules(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d)
@functions(F.adaptive_avg_pool2d, F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)
def adaptive_avg_pool(c: Converter, node: fx.Node, module: Any = None) -> None:
    source = c.tensor(node.args[0])
    _, height, width = c.shape(node.args[0])
    _, rows, columns = c.shape(node)
    if (rows, columns) == (1, 1):
        c.add(node, "global_avg_pool2d", (source,))
    elif (rows, columns) == (height, width):
        c.alias(node)
    elif height % rows or width % columns:
        c.add(node, "adaptive_avg_pool2d", (source,), attrs={"size": (rows, columns)})
    else:
        kernel = (height // rows, width // columns)
        attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "count_include_pad": True}
        c.add(node, "avg_pool2d", (source,), attrs=attrs)


@functions(torch.mean, "mean")
def mean(c: Converter, node: fx.Node) -> None:
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    source: Any = node.args[0]
    line = source in c.signals and len(raw_shape(source)) == 2 and set(as_tuple(axes)) in ({2}, {-1})
    if not line and (len(raw_shape(source)) != 3 or set(as_tuple(axes)) not in _SPATIAL_AXES):
        raise c.unsupported(node, f"mean over axes {axes}")
    tensor = c.tensor(source)
    c.nodes.append(Node("global_avg_pool2d", c.fresh(node.name if keep else f"{node.name}_pool"), (tensor,)))
    if not keep:
        c.nodes.append(Node("flatten", c.fresh(node.name), (c.nodes[-1].name,)))
    c.alias(node, c.nodes[-1].name)


@modules(nn.Upsample)
def upsample(c: Converter, node: fx.Node, module: nn.Upsample) -> None:
    recompute = getattr(module, "recompute_scale_factor", None)
    _resize(c, node, module.scale_factor, module.mode, module.align_corners, recompute)


@functions(F.interpolate)
def interpolate(c: Converter, node: fx.Node) -> None:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    if given.get("antialias"):
        raise c.unsupported(node, "interpolate with antialias")
    scale, mode = given.get("scale_factor"), given.get("mode", "nearest")
    _resize(c, node, scale, mode, given.get("align_corners"), given.get("recompute_scale_factor"))


def _resize(
    c: Converter, node: fx.Node, scale: Any, mode: str, align_corners: bool | None, recompute: bool | None
) -> None:
    known = {"nearest": "nearest", "bilinear": "bilinear", "linear": "bilinear"}
    before, after = c.shape(node.args[0])[1:], c.shape(node)[1:]
    if mode not in known or (len(raw_shape(node)) != 3 and node not in c.signals):
        raise c.unsupported(node, f"upsampling with mode={mode!r} of {raw_shape(node)}")
    if scale is not None and not recompute:
        # PyTorch divides by the scale as it is given: where it does not give whole pixels, no size says the same.
        given = as_tuple(scale)
        scales = (*given, 1) if len(raw_shape(node)) == 2 else (given[0], given[-1])
        if any(old * s != new for old, s, new in zip(before, scales, after, strict=True)):
            raise c.unsupported(node, f"upsampling of {before} by {scale}", ": give the size")
    if before == after:
        c.alias(node)
        return
    attrs: dict[str, Any] = {"size": after, "mode": known[mode]}
    if known[mode] == "bilinear":
        attrs["align_corners"] = bool(align_corners)
    c.add(node, "upsample", (c.tensor(node.args[0]),), attrs=attrs)
