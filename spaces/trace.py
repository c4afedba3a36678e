"""From a PyTorch module to a `Network`, by torch.fx."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.spaces.execute import run
from trimtab.spaces.network import Array, Network, Norm, Op
from trimtab.spaces.zoo import ChannelPad

__all__ = ["UnsupportedNetwork", "convert", "trace", "trace_both", "trace_module"]

SUPPORTED = (
    "Conv2d, Linear, BatchNorm, ReLU, ReLU6, add, cat on channels, max/avg/adaptive average pooling, mean over "
    "height and width, flatten, strided slices of height and width, zero padding, Dropout and Identity"
)


class UnsupportedNetwork(BadInput):
    """The network does something that trimtab cannot compress; the text names the operator and the layer."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, ChannelPad) or super().is_leaf_module(module, qualified_name)


def trace_module(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Trace a module, with every node's shape for `example` (1, C, H, W) or (1, F) in its metadata.

    The module is put into evaluation mode, and the traced one shares its weights; `trace_both` works on a copy.
    """
    model = model.eval()
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise UnsupportedNetwork(
            f"torch.fx cannot trace {type(model).__name__}: {error}; control flow that depends on the data "
            "has to be rewritten"
        ) from error
    if sum(node.op == "placeholder" for node in graph.nodes) > 1:
        raise UnsupportedNetwork("a network with more than one input cannot be compressed")
    module = fx.GraphModule(model, graph)
    modules = dict(module.named_modules())
    graph = module.graph
    graph.eliminate_dead_code(lambda node: node.is_impure() or _is_in_place(node, modules.get(str(node.target))))
    _make_channel_pads_modules(module)
    try:
        with torch.no_grad():
            model(example.clone())
            ShapeProp(module).propagate(example.clone())
    except Exception as error:
        raise BadInput(
            f"{type(model).__name__} does not accept an input of shape {tuple(example.shape)}: {error}"
        ) from error
    return module


def _make_channel_pads_modules(module: fx.GraphModule) -> None:
    """Turn `F.pad` of channels into `ChannelPad`, so that the dependency graph sees in and out channels apart."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not F.pad:
            continue
        amounts = _tuple(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])
        value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        if not all(isinstance(amount, int) for amount in amounts) or mode != "constant" or value:
            continue
        if len(amounts) != 6 or any(amounts[:4]) or min(amounts) < 0:
            continue
        name = f"channel_{node.name}"
        module.add_submodule(name, ChannelPad(amounts[4], amounts[5]))
        with module.graph.inserting_after(node):
            replacement = module.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        module.graph.erase_node(node)
    module.recompile()


def trace(model: nn.Module, example: torch.Tensor) -> Network:
    """Turn a module into a `Network`; what it cannot express is an `UnsupportedNetwork`.

    `example` is one input, (1, C, H, W) or (1, F), float32. The module is not changed, its weights are copied.
    """
    return trace_both(model, example)[1]


def trace_both(model: nn.Module, example: torch.Tensor) -> tuple[fx.GraphModule, Network]:
    """Return what `trace` returns and the fx module that it came from, whose weights are a copy of the model's.

    The network is run beside the model on random inputs: one that computes something else is an `UnsupportedNetwork`.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # Torch-Pruning reads the graph off autograd
    module = trace_module(model, example)
    network = convert(module)
    _compare(model, network, example)
    return module, network


def _compare(model: nn.Module, network: Network, example: torch.Tensor) -> None:
    # What fx cannot see ends here: writes through views, dropout that is always on, a batch size in a reshape.
    probe = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = model(probe.clone())
        found = run(network, probe)
        same = found.shape == expected.shape and _close(found, expected)
    except RuntimeError as error:
        raise UnsupportedNetwork(f"{type(model).__name__} does not accept two images at once: {error}") from error
    if not same:
        raise UnsupportedNetwork(
            f"the traced network does not compute what {type(model).__name__} does; the usual reasons are a write "
            "into a view, dropout that is on in evaluation mode, or a batch size that is written into a reshape"
        )


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    largest = float(expected.abs().max())
    return not math.isfinite(largest) or torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * largest)


def convert(module: fx.GraphModule) -> Network:
    """Turn what `trace_module` returned into a `Network`."""
    return _Converter(module).convert()


class _Converter:
    """Walks the fx graph once; `names` maps fx nodes to the tensors that hold their values."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.modules = dict(module.named_modules())
        self.names: dict[fx.Node, str] = {}
        self.input = ""
        self.ops: list[Op] = []
        self.pads: dict[str, tuple[str, tuple[int, int, int, int]]] = {}

    def convert(self) -> Network:
        source: fx.Node | None = None
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                source = node
                self.names[node] = self.input = node.name
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node):
                    raise UnsupportedNetwork("a network with more than one output cannot be compressed")
                if source is None:
                    raise UnsupportedNetwork("the network has no input")
                return Network(source.name, _shape(source), tuple(self.ops), self._tensor(result))
            elif "tensor_meta" in node.meta:  # sizes have none
                self._node(node)
        raise UnsupportedNetwork("the network has no output")

    def _node(self, node: fx.Node) -> None:
        if "input" in node.kwargs:
            node.args = (node.kwargs["input"], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            for kinds, handler in _MODULES:
                if isinstance(module, kinds):
                    handler(self, node, module)
                    return
            raise self._unsupported(node, type(module).__name__)
        found = _FUNCTIONS.get(node.target)
        if node.op not in ("call_function", "call_method") or found is None:
            raise self._unsupported(node, str(getattr(node.target, "__name__", node.target)))
        found(self, node)

    def _unsupported(self, node: fx.Node, what: str, why: str = "") -> UnsupportedNetwork:
        path = node.target if node.op == "call_module" else node.name
        return UnsupportedNetwork(f"{what} at {path!r} is not supported{why}; supported are {SUPPORTED}")

    def _tensor(self, node: Any) -> str:
        if not isinstance(node, fx.Node) or node not in self.names:
            raise UnsupportedNetwork(f"a constant or parameter is used as a tensor: {node!r}")
        name = self.names[node]
        if name in self.pads:
            raise UnsupportedNetwork(f"zero padding at {name!r} is only supported directly before a convolution")
        return name

    def _add(self, node: fx.Node, kind: str, inputs: tuple[str, ...], **fields: Any) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        if name in {self.input, *(op.name for op in self.ops)}:
            if "weight" in fields:
                raise UnsupportedNetwork(f"layer {name!r} is used more than once in a forward pass")
            name = node.name
        self.ops.append(Op(kind, name, inputs, _shape(node), **fields))
        self.names[node] = name
        if _is_in_place(node, self.modules.get(str(node.target))):
            # Whoever reads the first operand from here on reads the result.
            self.names.update((other, name) for other, old in self.names.items() if old == inputs[0])

    def _alias(self, node: fx.Node) -> None:
        self.names[node] = self.names[node.args[0]]  # type: ignore[index]

    # modules

    def conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros" or isinstance(module, nn.LazyConv2d):
            raise self._unsupported(node, f"Conv2d with padding_mode={module.padding_mode!r}")
        if module.padding == "same":
            raise self._unsupported(node, "Conv2d with padding='same'", ": give the padding in pixels")
        pad_h, pad_w = (0, 0) if module.padding == "valid" else _pair(module.padding)
        padding = (pad_h, pad_w, pad_h, pad_w)
        source = self.names[node.args[0]]  # type: ignore[index]
        if source in self.pads:
            source, outer = self.pads[source]
            padding = tuple(a + b for a, b in zip(padding, outer, strict=True))  # type: ignore[assignment]
        self._add(
            node,
            "conv2d",
            (source,),
            attrs={
                "stride": _pair(module.stride),
                "padding": padding,
                "dilation": _pair(module.dilation),
                "groups": module.groups,
            },
            weight=_array(module.weight),
            bias=_array(module.bias),
        )

    def linear(self, node: fx.Node, module: nn.Linear) -> None:
        if len(_shape(node)) != 1:
            raise self._unsupported(node, "Linear on more than one axis")
        source = self._tensor(node.args[0])
        self._add(node, "linear", (source,), weight=_array(module.weight), bias=_array(module.bias))

    def norm(self, node: fx.Node, module: nn.BatchNorm2d) -> None:
        if module.running_mean is None or module.running_var is None:
            raise self._unsupported(node, "batch norm without running statistics")
        ones = np.ones(module.num_features, np.float32)
        norm = Norm(
            weight=_array(module.weight) if module.affine else ones,  # type: ignore[arg-type]
            bias=_array(module.bias) if module.affine else 0 * ones,  # type: ignore[arg-type]
            mean=_array(module.running_mean),  # type: ignore[arg-type]
            var=_array(module.running_var),  # type: ignore[arg-type]
            eps=module.eps,
        )
        source = node.args[0]
        name = self._tensor(source)
        last = next((i for i, op in enumerate(self.ops) if op.name == name), None)
        if last is not None and self._is_only_reader(node):
            producer = self.ops[last]
            if producer.is_layer and producer.norm is None:
                self.ops[last] = replace(producer, norm=norm)
                self.names[node] = name
                return
        if len(_shape(node)) != 3:
            raise self._unsupported(node, "BatchNorm1d that does not follow a layer")
        # Behind anything but a layer (pre-activation networks, DenseNet), batch norm is a depthwise 1x1 convolution.
        scale = norm.scale
        self._add(
            node,
            "conv2d",
            (name,),
            attrs={
                "stride": (1, 1),
                "padding": (0, 0, 0, 0),
                "dilation": (1, 1),
                "groups": module.num_features,
            },
            weight=scale.reshape(-1, 1, 1, 1),
            bias=(norm.bias - norm.mean * scale).astype(np.float32),
        )

    def _is_only_reader(self, node: fx.Node) -> bool:
        """Whether nothing but `node` reads the tensor of its first argument, under whatever names it has."""
        name = self._tensor(node.args[0])
        return all(
            reader is node or self.names.get(reader) == name
            for holder, held in self.names.items()
            if held == name
            for reader in holder.users
        )

    def activation(self, node: fx.Node, module: nn.Module | None = None, kind: str | None = None) -> None:
        if kind is None:
            if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) != (0.0, 6.0):
                raise self._unsupported(node, f"Hardtanh({module.min_val}, {module.max_val})")
            kind = "relu6" if isinstance(module, nn.Hardtanh) else "relu"
        self._add(node, "activation", (self._tensor(node.args[0]),), attrs={"activation": kind})

    def max_pool(self, node: fx.Node, module: Any) -> None:
        if _pair(module.dilation) != (1, 1) or module.ceil_mode or getattr(module, "return_indices", False):
            raise self._unsupported(node, "max pooling with dilation, ceil_mode or return_indices")
        self._add(node, "max_pool2d", (self._tensor(node.args[0]),), attrs=_window(module))

    def avg_pool(self, node: fx.Node, module: Any) -> None:
        if module.ceil_mode or module.divisor_override is not None:
            raise self._unsupported(node, "average pooling with ceil_mode or divisor_override")
        attrs = {**_window(module), "count_include_pad": bool(module.count_include_pad)}
        self._add(node, "avg_pool2d", (self._tensor(node.args[0]),), attrs=attrs)

    def adaptive_avg_pool(self, node: fx.Node, module: Any = None) -> None:
        source = self._tensor(node.args[0])
        _, height, width = _shape(node.args[0])
        _, rows, columns = _shape(node)
        if height % rows or width % columns:
            raise self._unsupported(
                node, f"adaptive average pooling of {height}x{width} to {rows}x{columns}", ": not a divisor"
            )
        if (rows, columns) == (1, 1):
            self._add(node, "global_avg_pool2d", (source,))
        elif (rows, columns) == (height, width):
            self._alias(node)
        else:
            kernel = (height // rows, width // columns)
            attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "count_include_pad": True}
            self._add(node, "avg_pool2d", (source,), attrs=attrs)

    def channel_pad(self, node: fx.Node, module: ChannelPad) -> None:
        channels = _shape(node.args[0])[0]
        index = (-1,) * module.before + tuple(range(channels)) + (-1,) * module.after
        self._add(node, "channel_map", (self._tensor(node.args[0]),), attrs={"index": index})

    def identity(self, node: fx.Node, module: Any = None) -> None:
        self._alias(node)

    def flatten(self, node: fx.Node, module: Any = None) -> None:
        before, after = _shape(node.args[0]), _shape(node)
        if before == after:
            self._alias(node)
        elif len(after) == 1 and math.prod(before) == after[0]:
            self._add(node, "flatten", (self._tensor(node.args[0]),))
        else:
            raise self._unsupported(node, f"reshaping {before} to {after}")

    # functions and methods

    def add(self, node: fx.Node) -> None:
        left = node.args[0]
        right = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
        if node.kwargs.get("alpha", 1) != 1 or not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
            raise self._unsupported(node, "add with a constant or alpha")
        if _shape(left) != _shape(right):
            raise self._unsupported(node, f"add that broadcasts {_shape(left)} and {_shape(right)}")
        self._add(node, "add", (self._tensor(left), self._tensor(right)))

    def cat(self, node: fx.Node) -> None:
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if axis not in (1, -len(_shape(node)) if len(_shape(node)) > 1 else -1):
            raise self._unsupported(node, f"cat on axis {axis}")
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        self._add(node, "concat", tuple(self._tensor(tensor) for tensor in tensors))

    def functional_pool(self, node: fx.Node) -> None:
        is_max = node.target in (F.max_pool2d, torch.max_pool2d)
        more = ("dilation", "ceil_mode") if is_max else ("ceil_mode", "count_include_pad", "divisor_override")
        names = ("kernel_size", "stride", "padding", *more)
        given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        module = nn.MaxPool2d(**given) if is_max else nn.AvgPool2d(**given)
        (self.max_pool if is_max else self.avg_pool)(node, module)

    def mean(self, node: fx.Node) -> None:
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if len(_shape(node.args[0])) != 3 or set(_tuple(axes)) not in _SPATIAL_AXES:
            raise self._unsupported(node, f"mean over axes {axes}")
        source = self._tensor(node.args[0])
        channels = _shape(node.args[0])[0]
        pooled = f"{node.name}_pool" if not keep else node.name
        self.ops.append(Op("global_avg_pool2d", pooled, (source,), (channels, 1, 1)))
        self.names[node] = pooled
        if not keep:
            self.ops.append(Op("flatten", node.name, (pooled,), (channels,)))
            self.names[node] = node.name

    def getitem(self, node: fx.Node) -> None:
        index = _tuple(node.args[1])
        if len(_shape(node.args[0])) != 3 or len(index) > 4 or not all(isinstance(i, slice) for i in index):
            raise self._unsupported(node, f"indexing with {index}")
        slices = [*index, *[slice(None)] * (4 - len(index))]
        plain = all(i.start in (None, 0) and i.stop is None for i in slices)
        strides = tuple(i.step or 1 for i in slices)
        if not plain or strides[:2] != (1, 1):
            raise self._unsupported(node, f"indexing with {index}")
        self._add(node, "subsample", (self._tensor(node.args[0]),), attrs={"stride": strides[2:]})

    def pad(self, node: fx.Node) -> None:
        names = ("pad", "mode", "value")
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        amounts = list(_tuple(given["pad"]))
        if not all(isinstance(amount, int) for amount in amounts):
            raise self._unsupported(node, "padding by an amount that depends on the input")
        if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
            raise self._unsupported(node, "padding with anything but zeros")
        if any(amounts[4:]) or min(amounts) < 0 or len(_shape(node)) != 3:
            raise self._unsupported(node, f"padding by {amounts}")
        left, right, top, bottom = [*amounts, 0, 0][:4]
        self._spatial_pad(node, (top, left, bottom, right))

    def zero_pad(self, node: fx.Node, module: nn.ZeroPad2d) -> None:
        left, right, top, bottom = module.padding
        if min(module.padding) < 0:
            raise self._unsupported(node, f"padding by {module.padding}")
        self._spatial_pad(node, (top, left, bottom, right))

    def _spatial_pad(self, node: fx.Node, padding: tuple[int, int, int, int]) -> None:
        self.pads[node.name] = (self._tensor(node.args[0]), padding)
        self.names[node] = node.name


_SPATIAL_AXES = ({2, 3}, {-2, -1}, {2, -1}, {-2, 3})

_MODULES: tuple[tuple[Any, Callable[..., None]], ...] = (
    (nn.Conv2d, _Converter.conv),
    (nn.Linear, _Converter.linear),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _Converter.norm),
    ((nn.ReLU, nn.Hardtanh), _Converter.activation),
    (nn.MaxPool2d, _Converter.max_pool),
    (nn.AvgPool2d, _Converter.avg_pool),
    (nn.AdaptiveAvgPool2d, _Converter.adaptive_avg_pool),
    (nn.Flatten, _Converter.flatten),
    (nn.ZeroPad2d, _Converter.zero_pad),
    (ChannelPad, _Converter.channel_pad),
    ((nn.Identity, nn.Dropout, nn.Dropout2d), _Converter.identity),
)


def _relu(converter: _Converter, node: fx.Node) -> None:
    converter.activation(node, kind="relu")


def _relu6(converter: _Converter, node: fx.Node) -> None:
    converter.activation(node, kind="relu6")


_FUNCTIONS: dict[Any, Callable[[_Converter, fx.Node], None]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    F.relu6: _relu6,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _Converter.add),
    **dict.fromkeys((torch.cat, torch.concat), _Converter.cat),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, F.avg_pool2d), _Converter.functional_pool),
    F.adaptive_avg_pool2d: _Converter.adaptive_avg_pool,
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", torch.reshape), _Converter.flatten),
    **dict.fromkeys((torch.mean, "mean"), _Converter.mean),
    operator.getitem: _Converter.getitem,
    F.pad: _Converter.pad,
    **dict.fromkeys((F.dropout, F.dropout2d, "contiguous"), _Converter.identity),
}


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the operator writes its result over its first operand."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False)) and isinstance(module, nn.ReLU | nn.Hardtanh)
    if node.target in (F.relu, F.relu6):
        return bool(node.args[1] if len(node.args) > 1 else node.kwargs.get("inplace", False))
    return node.target in (operator.iadd, torch.relu_, "relu_", "add_")


def _shape(node: Any) -> tuple[int, ...]:
    """A node's shape without the batch."""
    return tuple(int(size) for size in node.meta["tensor_meta"].shape[1:])


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _window(module: Any) -> dict[str, Any]:
    pad_h, pad_w = _pair(module.padding)
    stride = module.kernel_size if module.stride is None else module.stride
    return {
        "kernel": _pair(module.kernel_size),
        "stride": _pair(stride),
        "padding": (pad_h, pad_w, pad_h, pad_w),
    }


def _array(parameter: torch.Tensor | None) -> Array | None:
    return None if parameter is None else parameter.detach().to(torch.float32).cpu().numpy().copy()
