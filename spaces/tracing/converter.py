"""The converter: a walk over a traced fx module that makes a program of it, and the register of its handlers.

A handler turns one operator of PyTorch into nodes; the modules beside this one register theirs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.graph import Array, Graph, Node, Shape
from trimtab.graph.node import free_name
from trimtab.graph.passes import raise_activations

__all__ = [
    "SUPPORTED",
    "Converter",
    "UnsupportedNetwork",
    "array_of",
    "as_tuple",
    "functions",
    "is_in_place",
    "layer_weights",
    "modules",
    "operands",
    "optional_array",
    "pair",
    "raw_shape",
]

SUPPORTED = (
    "Conv1d, Conv2d, ConvTranspose2d, Linear, BatchNorm, GroupNorm, InstanceNorm, LayerNorm over tokens, "
    "MultiheadAttention of a sequence with itself, ReLU, ReLU6, LeakyReLU, PReLU, ELU, Tanh, Hardsigmoid, Hardswish, "
    "Sigmoid, SiLU, GELU, add, sub, mul, numbers and parameters per channel that are added or multiplied, cat on "
    "channels, chunk, split and shuffles of channels, max/avg/adaptive average pooling, nearest and bilinear "
    "upsampling, PixelShuffle, mean over height and width, flatten, an image as a sequence of tokens with class token "
    "and position embedding, the first token, strided slices of height and width, zero padding, Dropout, "
    "StochasticDepth and Identity"
)


class UnsupportedNetwork(BadInput):
    """The network does something that trimtab cannot compress; the text names the operator and the layer."""


#: A handler gets the converter, the fx node and, for modules, the module.
Handler = Callable[..., None]

_MODULES: list[tuple[tuple[type[nn.Module], ...], Handler]] = []
_FUNCTIONS: dict[Any, Handler] = {}


def modules(*kinds: type[nn.Module]) -> Callable[[Handler], Handler]:
    """Register the decorated function as the handler of modules of these classes."""

    def register(handler: Handler) -> Handler:
        _MODULES.append((kinds, handler))
        return handler

    return register


def functions(*targets: Any) -> Callable[[Handler], Handler]:
    """Register the decorated function as the handler of functions, of methods by their names, and of functions of
    packages that are not imported here by their qualified names."""

    def register(handler: Handler) -> Handler:
        _FUNCTIONS.update(dict.fromkeys(targets, handler))
        return handler

    return register


class Converter:
    """One walk over an fx graph; `names` maps fx nodes to the tensors that hold their values.

    Some values are no tensors yet, but views that the next operators have to make whole: zero padding in front of a
    convolution (`pads`), channels in two axes, as shuffles make them (`shuffles`: the tensor and its channels'
    numbers), and images with one axis for all pixels (`planes`), which are tokens once their axes are swapped.
    `constants` holds parameters that are read directly, and what is computed from them alone. A tensor (N, A, B) is a
    sequence of A tokens, or, where it is among the `signals`, one of B places with A channels each.
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
        self.signals: set[fx.Node] = set()

    def convert(self) -> Graph:
        """Return the program."""
        source: fx.Node | None = None
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                source = node
                if len(raw_shape(node)) not in (1, 2, 3):
                    raise UnsupportedNetwork(f"the input must be images, signals or vectors, not {raw_shape(node)}")
                self.names[node] = self.input = self.fresh(node.name)
                if len(raw_shape(node)) == 2:
                    self.signals.add(node)
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node):
                    raise UnsupportedNetwork("a network with more than one output cannot be compressed")
                if source is None:
                    raise UnsupportedNetwork("the network has no input")
                if len(raw_shape(result)) == 2:
                    raise UnsupportedNetwork("a network whose output is a sequence cannot be compressed")
                output = self.tensor(result)
                return raise_activations(Graph(self.input, self.shape(source), self._living(output), output))
            elif "tensor_meta" in node.meta:  # sizes have none
                self._node(node)
        raise UnsupportedNetwork("the network has no output")

    def _living(self, output: str) -> tuple[Node, ...]:
        """The nodes without the channel maps that nothing reads since others took over their selection."""
        read = {output}
        kept = []
        for node in reversed(self.nodes):
            if node.kind != "channel_map" or node.name in read:
                kept.append(node)
                read.update(node.inputs)
        return tuple(reversed(kept))

    def _node(self, node: fx.Node) -> None:
        # Sizes, and what is computed from them, are what they are for the example.
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda read: read.meta.get("value", read))
        if "input" in node.kwargs:
            node.args = (node.kwargs["input"], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        if node.op == "get_attr":
            self.constants[node] = array_of(_attribute(self.module, str(node.target)))
            return
        if self._is_constant(node):
            self.constants[node] = array_of(self._evaluated(node))
            return
        if not self.signals.isdisjoint(node.all_input_nodes) and _rank(node) == 2:
            self.signals.add(node)
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            for kinds, handler in _MODULES:
                if isinstance(module, kinds):
                    handler(self, node, module)
                    return
            raise self.unsupported(node, type(module).__name__)
        found = _FUNCTIONS.get(node.target) or _FUNCTIONS.get(_qualified(node.target))
        if node.op not in ("call_function", "call_method") or found is None:
            name = str(getattr(node.target, "__name__", node.target))
            raise self.unsupported(node, name, _INSTEAD.get(name, ""))
        found(self, node)

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether it is computed from parameters alone; a class token that is expanded depends on the batch."""
        read = node.all_input_nodes
        return (
            node.op in ("call_function", "call_method")
            and node.target != "expand"
            and bool(read)
            and all(source in self.constants for source in read)
        )

    def _evaluated(self, node: fx.Node) -> torch.Tensor:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: torch.from_numpy(self.constants[source]))
        function: Any = node.target
        if node.op == "call_method":
            function, args = getattr(args[0], str(node.target)), args[1:]
        return function(*args, **kwargs)  # type: ignore[no-any-return]

    def unsupported(self, node: fx.Node, what: str, why: str = "") -> UnsupportedNetwork:
        """Return the error for what an fx node does."""
        path = node.target if node.op == "call_module" else node.name
        return UnsupportedNetwork(f"{what} at {path!r} is not supported{why}; supported are {SUPPORTED}")

    def shape(self, node: Any) -> Shape:
        """Return an fx node's shape as a tensor of a program: tokens (L, F) are (F, L, 1), signals (C, L) (C, L, 1)."""
        shape = raw_shape(node)
        if len(shape) != 2:
            return shape
        return (*shape, 1) if node in self.signals else (shape[1], shape[0], 1)

    def channel_axis(self, node: Any) -> int:
        """Return the axis of an fx node's value (N, ...) that its channels are on."""
        return 2 if len(raw_shape(node)) == 2 and node not in self.signals else 1

    def tensor(self, node: Any) -> str:
        """Return the tensor that holds an fx node's value."""
        if node in self.planes and node not in self.names:  # pixels in a row are a signal
            self.nodes.append(Node("tokens", self.fresh(node.name), (self.planes[node],)))
            self.names[node] = self.nodes[-1].name
        if node in self.shuffles:
            raise UnsupportedNetwork(f"what {node.name!r} reshapes to {raw_shape(node)} is used as it is")
        if not isinstance(node, fx.Node) or node not in self.names:
            raise UnsupportedNetwork(f"a constant or parameter is used as a tensor: {str(node)!r}")
        name = self.names[node]
        if name in self.pads:
            raise UnsupportedNetwork(f"zero padding at {name!r} is only supported directly before a convolution")
        return name

    def add(self, node: fx.Node, kind: str, inputs: tuple[str, ...], **fields: Any) -> None:
        """Append a node that computes the value of an fx node."""
        self.nodes.append(Node(kind, self.name_for(node), inputs, **fields))
        self.alias(node, self.nodes[-1].name)
        if is_in_place(node, self.modules.get(str(node.target))):
            # Whoever reads the first operand from here on reads the result.
            name = self.names[node]
            self.names.update((other, name) for other, old in self.names.items() if old == inputs[0])

    def name_for(self, node: fx.Node) -> str:
        """Return a name for what computes an fx node: the module's, or nearly so where that is taken."""
        if node.op != "call_module":
            return self.fresh(node.name)
        return self._untaken(str(node.target), set())

    def fresh(self, name: str) -> str:
        """Return a name that no tensor has, nor any module, whose turn may come."""
        return self._untaken(name, set(self.modules))

    def _untaken(self, name: str, taken: set[str]) -> str:
        return free_name(name, taken | {self.input, *(other.name for other in self.nodes)})

    def alias(self, node: fx.Node, tensor: str | None = None) -> None:
        """Note the tensor that holds an fx node's value: that of its first operand where none is named."""
        self.names[node] = self.names[node.args[0]] if tensor is None else tensor  # type: ignore[index]

    def producer(self, node: fx.Node, source: Any) -> int | None:
        """Return the index of the node that computes `source`, if nothing but `node` reads that."""
        name = self.tensor(source)
        only = all(
            reader is node or self.names.get(reader) == name
            for holder, held in self.names.items()
            if held == name
            for reader in holder.users
            if reader.op == "output" or "tensor_meta" in reader.meta  # a size is no reader
        )
        return next((i for i, other in enumerate(self.nodes) if only and other.name == name), None)

    def layer_behind(self, node: fx.Node, source: Any) -> tuple[int, int] | None:
        """Return the index of the layer that computes `source`, and how many of its channels make one there: more than
        one behind a rearrangement of channels to pixels. None where there is no layer, or others read it too."""
        last = self.producer(node, source)
        if last is None:
            return None
        if self.nodes[last].kind == "depth_to_space":
            inner, block = self.nodes[last].inputs[0], self.nodes[last].attrs["block"]
            users = sum(len(holder.users) for holder, held in self.names.items() if held == inner)
            last = next((i for i, other in enumerate(self.nodes) if other.name == inner and users <= 1), None)
            return (last, block[0] * block[1]) if last is not None and self.nodes[last].is_layer else None
        return (last, 1) if self.nodes[last].is_layer else None


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the operator writes its result over its first operand."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False)) and not isinstance(module, nn.modules.dropout._DropoutNd)
    if node.target in _IN_PLACE:
        return True
    place = _IN_PLACE_ARGUMENT.get(node.target)
    if place is None:
        return False
    return bool(node.args[place] if len(node.args) > place else node.kwargs.get("inplace", False))


_OPERATORS_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_FUNCTIONS_IN_PLACE = (torch.relu_, torch.clamp_, F.elu_, F.leaky_relu_)
_IN_PLACE = {*_OPERATORS_IN_PLACE, *_FUNCTIONS_IN_PLACE} | {
    f"{name}_" for name in ("relu", "add", "sub", "mul", "div", "tanh", "sigmoid", "clamp")
}

#: The position of `inplace` among a function's arguments.
_IN_PLACE_ARGUMENT: Mapping[Any, int] = {
    **dict.fromkeys((F.relu, F.relu6, F.hardsigmoid, F.hardswish, F.silu), 1),
    **dict.fromkeys((F.leaky_relu, F.elu), 2),
    F.hardtanh: 3,
}


#: What may be written for functions that have a layer's work.
_INSTEAD = {
    name: f" with weights that are given to it: make it a layer, nn.{layer}"
    for name, layer in (
        ("linear", "Linear"),
        ("conv1d", "Conv1d"),
        ("conv2d", "Conv2d"),
        ("conv_transpose2d", "ConvTranspose2d"),
        ("batch_norm", "BatchNorm2d"),
        ("layer_norm", "LayerNorm"),
        ("group_norm", "GroupNorm"),
    )
}


def _qualified(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"


def _attribute(module: nn.Module, path: str) -> torch.Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value  # type: ignore[no-any-return]


def operands(node: fx.Node) -> tuple[Any, Any]:
    """Return the two operands of a sum, a product and the like."""
    return node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")


def raw_shape(node: Any) -> tuple[int, ...]:
    """Return an fx node's shape in PyTorch, without the batch."""
    return tuple(int(size) for size in node.meta["tensor_meta"].shape[1:])


def _rank(node: fx.Node) -> int:
    """Axes without the batch, of the parts where there are several."""
    found: Any = node.meta["tensor_meta"]
    return len(found.shape if hasattr(found, "shape") else found[0].shape) - 1


def pair(value: Any, rows_only: bool = False, columns: int = 1) -> tuple[int, int]:
    """Return a number for rows and columns; of what has `rows_only`, the columns get theirs."""
    values = as_tuple(value)
    if rows_only:
        return int(values[0]), columns
    return int(values[0]), int(values[-1])


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a sequence as a tuple, and anything else as a tuple of one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def array_of(parameter: torch.Tensor) -> Array:
    """Return a copy of a parameter as float32."""
    array: Array = parameter.detach().to(torch.float32).cpu().numpy().copy()
    return array


def optional_array(parameter: torch.Tensor | None) -> Array | None:
    """Return a copy of a parameter that there may be."""
    return None if parameter is None else array_of(parameter)


def layer_weights(weight: Array, bias: Array | None) -> dict[str, Array]:
    """Return a layer's arrays by their names."""
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
