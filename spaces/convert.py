"""Conversion of a traced fx module to a `Graph`: one handler for each operator that is supported."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.graph import Array, Graph, Node, Norm
from trimtab.spaces.zoo import ChannelPad

__all__ = ["UnsupportedNetwork", "as_tuple", "convert", "is_in_place"]

SUPPORTED = (
    "Conv2d, Linear, BatchNorm, LayerNorm over tokens, MultiheadAttention of a sequence with itself, ReLU, ReLU6, "
    "Hardsigmoid, Hardswish, Sigmoid, SiLU, GELU, add, mul, cat on channels, chunk, split and shuffles of channels, "
    "max/avg/adaptive average pooling, mean over height and width, flatten, an image as a sequence of tokens with "
    "class token and position embedding, the first token, strided slices of height and width, zero padding, Dropout, "
    "StochasticDepth and Identity"
)

_POINTWISE = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


class UnsupportedNetwork(BadInput):
    """The network does something that trimtab cannot compress; the text names the operator and the layer."""


def convert(module: fx.GraphModule) -> Graph:
    """Turn what `trace_module` returned into a `Graph`.

    A sequence of tokens, (N, L, F) in PyTorch, becomes a tensor (F, L, 1) per image.
    """
    return _Converter(module).convert()


class _Converter:
    """Walks the fx graph once; `names` maps fx nodes to the tensors that hold their values.

    Some values are no tensors yet, but views that the next operators have to make whole: zero padding in front of a
    convolution (`pads`), channels in two axes, as shuffles make them (`shuffles`: the tensor and its channels'
    numbers), and images with one axis for all pixels (`planes`). `constants` holds parameters that are read directly.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.modules = dict(module.named_modules())
        self.names: dict[fx.Node, str] = {}
        self.input = ""
        self.nodes: list[Node] = []
        self.pads: dict[str, tuple[str, tuple[int, int, int, int]]] = {}
        self.shuffles: dict[fx.Node, tuple[str, Array]] = {}
        self.planes: dict[fx.Node, str] = {}
        self.constants: dict[fx.Node, Array] = {}

    def convert(self) -> Graph:
        source: fx.Node | None = None
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                source = node
                if len(_raw_shape(node)) not in (1, 3):
                    raise UnsupportedNetwork(f"the input must be images or vectors, not {_raw_shape(node)} each")
                self.names[node] = self.input = node.name
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node):
                    raise UnsupportedNetwork("a network with more than one output cannot be compressed")
                if source is None:
                    raise UnsupportedNetwork("the network has no input")
                if len(_raw_shape(result)) == 2:
                    raise UnsupportedNetwork("a network whose output is a sequence cannot be compressed")
                output = self._tensor(result)
                return Graph(source.name, _shape(source), self._living(output), output)
            elif "tensor_meta" in node.meta:  # sizes have none
                self._node(node)
        raise UnsupportedNetwork("the network has no output")

    def _living(self, output: str) -> tuple[Node, ...]:
        """The operators without the channel maps that nothing reads since others took over their selection."""
        read = {output}
        kept = []
        for op in reversed(self.nodes):
            if op.kind != "channel_map" or op.name in read:
                kept.append(op)
                read.update(op.inputs)
        return tuple(reversed(kept))

    def _node(self, node: fx.Node) -> None:
        if "input" in node.kwargs:
            node.args = (node.kwargs["input"], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        if node.op == "get_attr":
            self.constants[node] = _array(_attribute(self.module, str(node.target)))
            return
        for constant in node.all_input_nodes:
            if constant in self.constants and node.target not in _TAKE_CONSTANTS:
                raise UnsupportedNetwork(f"a constant or parameter is used as a tensor: {constant.name!r}")
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            for kinds, handler in _MODULES:
                if isinstance(module, kinds):
                    handler(self, node, module)
                    return
            raise self._unsupported(node, type(module).__name__)
        found = _FUNCTIONS.get(node.target) or _FUNCTIONS.get(_qualified(node.target))
        if node.op not in ("call_function", "call_method") or found is None:
            raise self._unsupported(node, str(getattr(node.target, "__name__", node.target)))
        found(self, node)

    def _unsupported(self, node: fx.Node, what: str, why: str = "") -> UnsupportedNetwork:
        path = node.target if node.op == "call_module" else node.name
        return UnsupportedNetwork(f"{what} at {path!r} is not supported{why}; supported are {SUPPORTED}")

    def _tensor(self, node: Any) -> str:
        if node in self.shuffles or node in self.planes:
            raise UnsupportedNetwork(f"what {node.name!r} reshapes to {_raw_shape(node)} is used as it is")
        if not isinstance(node, fx.Node) or node not in self.names:
            raise UnsupportedNetwork(f"a constant or parameter is used as a tensor: {node!r}")
        name = self.names[node]
        if name in self.pads:
            raise UnsupportedNetwork(f"zero padding at {name!r} is only supported directly before a convolution")
        return name

    def _add(self, node: fx.Node, kind: str, inputs: tuple[str, ...], **fields: Any) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        if self._is_taken(name):
            name = node.name
        self.nodes.append(Node(kind, name, inputs, **fields))
        self.names[node] = name
        if is_in_place(node, self.modules.get(str(node.target))):
            # Whoever reads the first operand from here on reads the result.
            self.names.update((other, name) for other, old in self.names.items() if old == inputs[0])

    def _is_taken(self, name: str) -> bool:
        return name == self.input or any(op.name == name for op in self.nodes)

    def _alias(self, node: fx.Node) -> None:
        self.names[node] = self.names[node.args[0]]  # type: ignore[index]

    def _producer(self, node: fx.Node, source: Any) -> int | None:
        """The index of the operator that computes `source`, if nothing but `node` reads that."""
        name = self._tensor(source)
        only = all(
            reader is node or self.names.get(reader) == name
            for holder, held in self.names.items()
            if held == name
            for reader in holder.users
            if reader.op == "output" or "tensor_meta" in reader.meta  # a size is no reader
        )
        return next((i for i, op in enumerate(self.nodes) if only and op.name == name), None)

    # layers

    def conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros" or isinstance(module, nn.LazyConv2d):
            raise self._unsupported(node, f"Conv2d with padding_mode={module.padding_mode!r}")
        if module.padding == "same":
            raise self._unsupported(node, "Conv2d with padding='same'", ": give the padding in pixels")
        pad_h, pad_w = (0, 0) if module.padding == "valid" else _pair(module.padding)
        padding = (pad_h, pad_w, pad_h, pad_w)
        source = self.names.get(node.args[0])  # type: ignore[arg-type]
        if source in self.pads:
            source, outer = self.pads[source]
            padding = tuple(a + b for a, b in zip(padding, outer, strict=True))  # type: ignore[assignment]
        else:
            source = self._tensor(node.args[0])
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
            weights=_weights(_array(module.weight), _optional(module.bias)),
        )

    def linear(self, node: fx.Node, module: nn.Linear) -> None:
        source, weight, bias = self._tensor(node.args[0]), _array(module.weight), _optional(module.bias)
        if len(_raw_shape(node)) == 1:
            self._add(node, "linear", (source,), weights=_weights(weight, bias))
        elif len(_raw_shape(node)) == 2:
            weight = weight[:, :, None, None]
            self._add(node, "conv2d", (source,), attrs=_POINTWISE, weights=_weights(weight, bias))
        else:
            raise self._unsupported(node, "Linear over the last axis of images")

    def norm(self, node: fx.Node, module: nn.BatchNorm2d) -> None:
        if module.running_mean is None or module.running_var is None:
            raise self._unsupported(node, "batch norm without running statistics")
        ones = np.ones(module.num_features, np.float32)
        norm = Norm(
            weight=_array(module.weight) if module.affine else ones,
            bias=_array(module.bias) if module.affine else 0 * ones,
            mean=_array(module.running_mean),
            var=_array(module.running_var),
            eps=module.eps,
        )
        name, last = self._tensor(node.args[0]), self._producer(node, node.args[0])
        if last is not None:
            producer = self.nodes[last]
            if producer.is_layer and producer.norm is None:
                self.nodes[last] = replace(producer, norm=norm)
                self.names[node] = name
                return
        if len(_raw_shape(node)) != 3:
            raise self._unsupported(node, "BatchNorm1d that does not follow a layer")
        # Behind anything but a layer (pre-activation networks, DenseNet), batch norm is a depthwise 1x1 convolution.
        scale = norm.scale
        self._add(
            node,
            "conv2d",
            (name,),
            attrs={**_POINTWISE, "groups": module.num_features},
            weights=_weights(scale.reshape(-1, 1, 1, 1), (norm.bias - norm.mean * scale).astype(np.float32)),
        )

    def layer_norm(self, node: fx.Node, module: nn.LayerNorm) -> None:
        shape = _raw_shape(node)
        if len(shape) > 2 or tuple(module.normalized_shape) != shape[-1:]:
            raise self._unsupported(node, f"LayerNorm of {tuple(module.normalized_shape)} on {shape}")
        ones = np.ones(shape[-1], np.float32)
        weight, bias = _optional(module.weight), _optional(module.bias)
        constants = {"weight": ones if weight is None else weight, "bias": 0 * ones if bias is None else bias}
        source = self._tensor(node.args[0])
        self._add(node, "layer_norm", (source,), attrs={"epsilon": float(module.eps)}, weights=constants)

    def attention(self, node: fx.Node, module: nn.MultiheadAttention) -> None:
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        itself = given["query"] is given.get("key") is given.get("value")
        masked = given.get("key_padding_mask") is not None or given.get("attn_mask") is not None
        if not itself or masked or not module.batch_first or module.in_proj_weight is None:
            raise self._unsupported(node, "MultiheadAttention but of an unmasked sequence with itself, batch first,")
        if module.bias_k is not None or module.add_zero_attn:
            raise self._unsupported(node, "MultiheadAttention with bias_k or add_zero_attn")
        source, path = self._tensor(given["query"]), str(node.target)
        features = module.embed_dim
        weights = np.split(_array(module.in_proj_weight), 3)
        biases = [None] * 3 if module.in_proj_bias is None else np.split(_array(module.in_proj_bias), 3)
        attrs = {"heads": module.num_heads, "scale": (features // module.num_heads) ** -0.5}

        def project(name: str, tensor: str, weight: Array, bias: Array | None) -> str:
            weight = weight[:, :, None, None]
            self.nodes.append(Node("conv2d", f"{path}.{name}", (tensor,), _POINTWISE, _weights(weight, bias)))
            return f"{path}.{name}"

        inputs = tuple(project(*part) for part in zip("qkv", [source] * 3, weights, biases, strict=True))
        self.nodes.append(Node("attention", f"{path}.attention", inputs, attrs))
        out = module.out_proj
        self.names[node] = project("out_proj", f"{path}.attention", _array(out.weight), _optional(out.bias))

    # activations and arithmetic

    def activation(self, node: fx.Node, module: nn.Module | None = None) -> None:
        kind = _ACTIVATIONS[node.target if module is None else type(module)]
        if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) != (0.0, 6.0):
            raise self._unsupported(node, f"Hardtanh({module.min_val}, {module.max_val})")
        approximate = getattr(module, "approximate", node.kwargs.get("approximate", "none"))
        if kind == "gelu" and approximate != "none":
            raise self._unsupported(node, f"GELU with approximate={approximate!r}")
        self._add(node, "activation", (self._tensor(node.args[0]),), attrs={"activation": kind})

    def add(self, node: fx.Node) -> None:
        left, right = _operands(node)
        if node.kwargs.get("alpha", 1) != 1 or not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
            raise self._unsupported(node, "add with a constant or alpha")
        if right in self.constants:
            self._add_position(node, left, self.constants[right])
            return
        if _shape(left) != _shape(right):
            raise self._unsupported(node, f"add that broadcasts {_shape(left)} and {_shape(right)}")
        self._add(node, "add", (self._tensor(left), self._tensor(right)))

    def mul(self, node: fx.Node) -> None:
        left, right = _operands(node)
        if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
            raise self._unsupported(node, "mul by a constant")
        if _shape(left) != _shape(node):
            left, right = right, left
        if _shape(left) != _shape(node) or _shape(right) not in (_shape(left), (_shape(left)[0], 1, 1)):
            raise self._unsupported(node, f"mul that broadcasts {_shape(left)} and {_shape(right)}")
        self._add(node, "mul", (self._tensor(left), self._tensor(right)))

    def cat(self, node: fx.Node) -> None:
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        if isinstance(tensors, fx.Node):
            raise self._unsupported(node, "cat of all that one operator returns")
        rank = len(_raw_shape(node))
        if rank == 2 and len(tensors) == 2 and tensors[0] in self.constants and axis in (1, -2):
            self._prepend(node, tensors[1], self.constants[tensors[0]])
            return
        if axis not in ((2, -1) if rank == 2 else (1, -rank)):
            raise self._unsupported(node, f"cat on axis {axis}")
        self._add(node, "concat", tuple(self._tensor(tensor) for tensor in tensors))

    # pooling

    def max_pool(self, node: fx.Node, module: Any) -> None:
        if _pair(module.dilation) != (1, 1) or getattr(module, "return_indices", False):
            raise self._unsupported(node, "max pooling with dilation or return_indices")
        self._add(node, "max_pool2d", (self._tensor(node.args[0]),), attrs=_window(module, node))

    def avg_pool(self, node: fx.Node, module: Any) -> None:
        if module.divisor_override is not None:
            raise self._unsupported(node, "average pooling with divisor_override")
        window, include = _window(module, node), bool(module.count_include_pad)
        top, left, bottom, right = window["padding"]
        if (top, left) != (bottom, right):  # what ceil_mode adds at the end never counts
            if include and (top or left):
                raise self._unsupported(node, "average pooling with ceil_mode that counts its padding")
            include = False
        attrs = {**window, "count_include_pad": include}
        self._add(node, "avg_pool2d", (self._tensor(node.args[0]),), attrs=attrs)

    def functional_pool(self, node: fx.Node) -> None:
        is_max = node.target in (F.max_pool2d, torch.max_pool2d)
        more = ("dilation", "ceil_mode") if is_max else ("ceil_mode", "count_include_pad", "divisor_override")
        names = ("kernel_size", "stride", "padding", *more)
        given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        module = nn.MaxPool2d(**given) if is_max else nn.AvgPool2d(**given)
        (self.max_pool if is_max else self.avg_pool)(node, module)

    def adaptive_avg_pool(self, node: fx.Node, module: Any = None) -> None:
        source = self._tensor(node.args[0])
        _, height, width = _shape(node.args[0])
        _, rows, columns = _shape(node)
        if (rows, columns) == (1, 1):
            self._add(node, "global_avg_pool2d", (source,))
        elif (rows, columns) == (height, width):
            self._alias(node)
        elif height % rows or width % columns:
            self._add(node, "adaptive_avg_pool2d", (source,), attrs={"size": (rows, columns)})
        else:
            kernel = (height // rows, width // columns)
            attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "count_include_pad": True}
            self._add(node, "avg_pool2d", (source,), attrs=attrs)

    def mean(self, node: fx.Node) -> None:
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if len(_raw_shape(node.args[0])) != 3 or set(as_tuple(axes)) not in _SPATIAL_AXES:
            raise self._unsupported(node, f"mean over axes {axes}")
        source = self._tensor(node.args[0])
        pooled = f"{node.name}_pool" if not keep else node.name
        self.nodes.append(Node("global_avg_pool2d", pooled, (source,)))
        self.names[node] = pooled
        if not keep:
            self.nodes.append(Node("flatten", node.name, (pooled,)))
            self.names[node] = node.name

    # selections and shuffles of channels

    def channel_pad(self, node: fx.Node, module: ChannelPad) -> None:
        channels = _shape(node.args[0])[0]
        index = (-1,) * module.before + tuple(range(channels)) + (-1,) * module.after
        self._add(node, "channel_map", (self._tensor(node.args[0]),), attrs={"index": index})

    def _select(self, node: fx.Node, source: str, index: list[int]) -> None:
        """Take these channels of a tensor; a selection of a selection is one."""
        producer = next((op for op in self.nodes if op.name == source and op.is_selection), None)
        if producer is not None:
            source, index = producer.inputs[0], [producer.attrs["index"][i] for i in index]
        self._add(node, "channel_map", (source,), attrs={"index": tuple(index)})

    def channel_shuffle(self, node: fx.Node, module: nn.ChannelShuffle | None = None) -> None:
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("groups")
        groups = given if module is None else module.groups
        order = np.arange(_shape(node)[0]).reshape(groups, -1).T
        self._select(node, self._tensor(node.args[0]), order.ravel().tolist())

    def split(self, node: fx.Node) -> None:
        axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        sizes = [tuple(part.shape[1:]) for part in node.meta["tensor_meta"]]
        source = node.args[0]
        if axis not in (1, -len(sizes[0]) if len(sizes[0]) > 1 else -1) or len(sizes[0]) not in (1, 3):
            raise self._unsupported(node, f"{getattr(node.target, '__name__', node.target)} on axis {axis}")
        self.names[node] = self._tensor(source)

    def getitem(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        if isinstance(source.meta["tensor_meta"], tuple) and not hasattr(source.meta["tensor_meta"], "shape"):
            self._part(node, source)
            return
        index, shape = as_tuple(node.args[1]), _raw_shape(source)
        if len(shape) == 2 and index in ((slice(None), 0), (slice(None), 0, slice(None))):
            self._first_token(node, source)
            return
        if len(shape) != 3 or len(index) > 4 or not all(isinstance(i, slice) for i in index):
            raise self._unsupported(node, f"indexing with {index}")
        slices = [*index, *[slice(None)] * (4 - len(index))]
        plain = all(i.start in (None, 0) and i.stop is None for i in slices)
        strides = tuple(i.step or 1 for i in slices)
        if not plain or strides[:2] != (1, 1):
            raise self._unsupported(node, f"indexing with {index}")
        self._add(node, "subsample", (self._tensor(source),), attrs={"stride": strides[2:]})

    def _part(self, node: fx.Node, source: fx.Node) -> None:
        """One of the tensors that an operator returned: of attention the first, of a split any."""
        number = node.args[1]
        if isinstance(self.modules.get(str(source.target)), nn.MultiheadAttention) and number == 0:
            self._alias(node)
        elif isinstance(number, int) and source.op != "call_module":
            sizes = [part.shape[1] for part in source.meta["tensor_meta"]]
            number = range(len(sizes))[number]
            start = sum(sizes[:number])
            self._select(node, self._tensor(source), list(range(start, start + sizes[number])))
        else:
            raise self._unsupported(node, f"part {number} of what {source.name!r} returns")

    # shapes

    def identity(self, node: fx.Node, module: Any = None) -> None:
        if node.args[0] in self.shuffles:
            self.shuffles[node] = self.shuffles[node.args[0]]  # type: ignore[index]
        elif node.args[0] in self.planes:
            self.planes[node] = self.planes[node.args[0]]  # type: ignore[index]
        else:
            self._alias(node)

    def reshape(self, node: fx.Node, module: Any = None) -> None:
        source: Any = node.args[0]
        before, after = _raw_shape(source), _raw_shape(node)
        if source in self.shuffles:
            tensor, index = self.shuffles[source]
            if len(after) != 3 or after[0] != index.size:
                raise self._unsupported(node, f"reshaping {before} to {after}")
            self._select(node, tensor, index.ravel().tolist())
        elif before == after:
            self._alias(node)
        elif len(before) == 3 and len(after) == 4 and after[2:] == before[1:]:
            self.shuffles[node] = self._tensor(source), np.arange(before[0]).reshape(after[:2])
        elif len(before) == 3 and after == (before[0], before[1] * before[2]):
            self.planes[node] = self._tensor(source)
        elif len(after) == 1 and len(before) in (1, 3) and math.prod(before) == after[0]:
            self._add(node, "flatten", (self._tensor(source),))
        else:
            raise self._unsupported(node, f"reshaping {before} to {after}")

    def transpose(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        order = list(range(len(_raw_shape(node)) + 1))
        axes = as_tuple(node.args[1]) if len(node.args) == 2 else node.args[1:]
        if str(getattr(node.target, "__name__", node.target)) == "permute":
            order = [order[axis] for axis in axes]  # type: ignore[index]
        else:
            a, b = (order[axis] for axis in axes)  # type: ignore[index]
            order[a], order[b] = b, a
        if source in self.shuffles and order == [0, 2, 1, 3, 4]:
            tensor, index = self.shuffles[source]
            self.shuffles[node] = tensor, index.T
        elif source in self.planes and order == [0, 2, 1]:
            self._add(node, "tokens", (self.planes[source],))
        else:
            raise self._unsupported(node, f"permuting the axes of {_raw_shape(source)} to {order}")

    # sequences of tokens

    def expand(self, node: fx.Node) -> None:
        constant = self.constants.get(node.args[0])  # type: ignore[arg-type]
        if constant is None or constant.ndim != 3 or _raw_shape(node) != constant.shape[1:]:
            raise self._unsupported(node, "expand of anything but a parameter (1, L, F) over the batch")
        self.constants[node] = constant

    def _prepend(self, node: fx.Node, source: fx.Node, prefix: Array) -> None:
        self._extend_tokens(node, source, "prefix", prefix)

    def _add_position(self, node: fx.Node, source: fx.Node, position: Array) -> None:
        self._extend_tokens(node, source, "position", position)

    def _extend_tokens(self, node: fx.Node, source: fx.Node, what: str, constant: Array) -> None:
        """Put a class token or a position embedding into the operator that makes the tokens."""
        last = self._producer(node, source)
        producer = None if last is None else self.nodes[last]
        fits = (
            constant.ndim == 3 and len(constant) == 1 and (what == "prefix" or constant.shape[1:] == _raw_shape(node))
        )
        if last is None or producer is None or producer.kind != "tokens" or "position" in producer.weights or not fits:
            raise UnsupportedNetwork(
                f"a parameter is used as a tensor at {node.name!r}: only a class token and a position embedding may "
                "be, right behind the reshape of an image to tokens"
            )
        self.nodes[last] = producer.with_weights(**{what: constant[0]})
        self.names[node] = producer.name

    def _first_token(self, node: fx.Node, source: fx.Node) -> None:
        _, length, _ = _shape(source)
        first = f"{node.name}_token"
        self.nodes.append(Node("subsample", first, (self._tensor(source),), {"stride": (length, 1)}))
        self.nodes.append(Node("flatten", node.name, (first,)))
        self.names[node] = node.name

    # zero padding

    def pad(self, node: fx.Node) -> None:
        names = ("pad", "mode", "value")
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        amounts = list(as_tuple(given["pad"]))
        if not all(isinstance(amount, int) for amount in amounts):
            raise self._unsupported(node, "padding by an amount that depends on the input")
        if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
            raise self._unsupported(node, "padding with anything but zeros")
        if any(amounts[4:]) or min(amounts) < 0 or len(_raw_shape(node)) != 3:
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

#: Modules, functions and methods -> activations of the engine.
_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh, F.relu6), "relu6"),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), "hard_sigmoid"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "hard_swish"),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"), "sigmoid"),
    **dict.fromkeys((nn.SiLU, F.silu), "silu"),
    **dict.fromkeys((nn.GELU, F.gelu), "gelu"),
}

_ACTIVATION_MODULES = tuple(kind for kind in _ACTIVATIONS if isinstance(kind, type))

_MODULES: tuple[tuple[Any, Callable[..., None]], ...] = (
    (nn.Conv2d, _Converter.conv),
    (nn.Linear, _Converter.linear),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _Converter.norm),
    (nn.LayerNorm, _Converter.layer_norm),
    (nn.MultiheadAttention, _Converter.attention),
    (_ACTIVATION_MODULES, _Converter.activation),
    (nn.MaxPool2d, _Converter.max_pool),
    (nn.AvgPool2d, _Converter.avg_pool),
    (nn.AdaptiveAvgPool2d, _Converter.adaptive_avg_pool),
    (nn.Flatten, _Converter.reshape),
    (nn.ZeroPad2d, _Converter.zero_pad),
    (nn.ChannelShuffle, _Converter.channel_shuffle),
    (ChannelPad, _Converter.channel_pad),
    ((nn.Identity, nn.Dropout, nn.Dropout2d), _Converter.identity),
)

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_JOINS = (torch.cat, torch.concat)

#: What may read a parameter: a class token is expanded and joined, a position embedding added.
_TAKE_CONSTANTS = (*_ADDITIONS, *_JOINS, "expand")

#: Functions, methods by name, and functions of packages that are not imported here by qualified name.
_FUNCTIONS: dict[Any, Callable[[_Converter, fx.Node], None]] = {
    **{kind: _Converter.activation for kind in _ACTIVATIONS if not isinstance(kind, type)},
    **dict.fromkeys(_ADDITIONS, _Converter.add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _Converter.mul),
    **dict.fromkeys(_JOINS, _Converter.cat),
    **dict.fromkeys((torch.chunk, torch.split, "chunk", "split"), _Converter.split),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, F.avg_pool2d), _Converter.functional_pool),
    F.adaptive_avg_pool2d: _Converter.adaptive_avg_pool,
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", torch.reshape), _Converter.reshape),
    **dict.fromkeys((torch.transpose, "transpose", torch.permute, "permute"), _Converter.transpose),
    **dict.fromkeys((torch.mean, "mean"), _Converter.mean),
    operator.getitem: _Converter.getitem,
    "expand": _Converter.expand,
    F.pad: _Converter.pad,
    F.channel_shuffle: _Converter.channel_shuffle,
    **dict.fromkeys((F.dropout, F.dropout2d, "contiguous"), _Converter.identity),
    "torchvision.ops.stochastic_depth.stochastic_depth": _Converter.identity,
}


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the operator writes its result over its first operand."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False)) and isinstance(module, _ACTIVATION_MODULES)
    if node.target in _ACTIVATIONS and not isinstance(node.target, str):
        return bool(node.args[1] if len(node.args) > 1 else node.kwargs.get("inplace", node.target is torch.relu_))
    return node.target in (operator.iadd, operator.imul, "relu_", "add_", "mul_")


def _qualified(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"


def _attribute(module: nn.Module, path: str) -> torch.Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value  # type: ignore[no-any-return]


def _operands(node: fx.Node) -> tuple[Any, Any]:
    return node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")


def _raw_shape(node: Any) -> tuple[int, ...]:
    """A node's shape in PyTorch, without the batch."""
    return tuple(int(size) for size in node.meta["tensor_meta"].shape[1:])


def _shape(node: Any) -> tuple[int, ...]:
    """A node's shape as a tensor of ours: a sequence of L tokens (L, F) is (F, L, 1)."""
    shape = _raw_shape(node)
    return (shape[1], shape[0], 1) if len(shape) == 2 else shape


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a sequence as a tuple, and anything else as a tuple of one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _window(module: Any, node: fx.Node) -> dict[str, Any]:
    """A pool's window; `ceil_mode` becomes padding at the end."""
    kernel, padding = _pair(module.kernel_size), _pair(module.padding)
    stride = _pair(module.kernel_size if module.stride is None else module.stride)
    before, after = _shape(node.args[0])[1:], _shape(node)[1:]
    last = [
        max(p, (after[i] - 1) * stride[i] + kernel[i] - before[i] - p) if module.ceil_mode else p
        for i, p in enumerate(padding)
    ]
    return {"kernel": kernel, "stride": stride, "padding": (*padding, *last)}


def _array(parameter: torch.Tensor) -> Array:
    array: Array = parameter.detach().to(torch.float32).cpu().numpy().copy()
    return array


def _optional(parameter: torch.Tensor | None) -> Array | None:
    return None if parameter is None else _array(parameter)


def _weights(weight: Array, bias: Array | None) -> dict[str, Array]:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
