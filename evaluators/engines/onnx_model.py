"""The ONNX writer: programs in QDQ form, which onnxruntime, OpenVINO and TensorRT turn into integer kernels.

Every tensor that the program stores as uint8 passes through a QuantizeLinear/DequantizeLinear pair with its scale and
zero point; an integer layer's weight (int8) and bias (int32) are initialisers behind DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trimtab.errors import BadInput
from trimtab.files import write_bytes
from trimtab.graph import LARGEST_BF16, OPERATORS, Array, Graph, Node, Quant, check_graph, is_integer
from trimtab.spaces.numbers.ranges import activation_quant

__all__ = ["IR_VERSION", "OPSET", "product_name", "save_onnx", "to_onnx"]

#: What onnxruntime 1.22 and later load; onnx writes newer ones by default.
OPSET, IR_VERSION = 21, 10

#: Activations that only bound their input.
_BOUNDS = ("none", "relu", "relu6")

#: Rounded biases stay below this, which leaves room for the products in the 32-bit accumulator.
LARGEST_BIAS = 2.0**30


def to_onnx(
    graph: Graph, batch: int | None = None, ranges: Mapping[str, tuple[float, float]] | None = None
) -> onnx.ModelProto:
    """Return the program as a checked model; the same program gives the same bytes.

    `batch` fixes the number of images; None leaves it open, as axis "N". The input and the output carry the program's
    names and are float32.

    `ranges` holds the (low, high) of tensors on calibration images (`Candidate.ranges`; `product_name` gives the key of
    a sum inside a node). onnxruntime convolves in integers only where the result is stored as uint8, so the result of
    an integer layer that the program keeps in float32, before a residual addition for example, is stored as uint8 too
    where its range is given: one rounding that the native engine does not have. The program's own output is never
    rounded. Without `ranges` such tensors stay in float32, and so do the layers that give them.

    A malformed program is a `BadInput`.
    """
    checked = check_graph(graph)
    if graph.output == graph.input:
        raise BadInput("the program returns its input: there is nothing to export")
    single = replace(checked, nodes=tuple(part for node in checked.nodes for part in _split(node)))
    storage = _storage(single, ranges or {})
    model = _Writer(single, storage).model(batch)
    onnx.checker.check_model(model)
    return model


def save_onnx(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model so that `path` never holds half of one; its folder is made where it is missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, model.SerializeToString(deterministic=True))


def product_name(node: str) -> str:
    """Name what a layer or addition computes before it adds a residual or applies an activation of its own."""
    return f"{node}:product"


def _split(node: Node) -> list[Node]:
    """The node as single steps: layer or addition, then its residual, then its activation."""
    activation = "none" if node.kind == "activation" else node.attrs.get("activation", "none")
    residual = node.inputs[1:] if node.weights else ()
    first = replace(node, inputs=node.inputs[:1]) if residual else node
    if first.kind in ("conv2d", "linear", "add"):
        first = replace(first, attrs={**node.attrs, "activation": "none"})
    parts = [first]
    if residual:
        parts.append(Node("add", f"{node.name}:sum", (product_name(node.name), *residual)))
    if activation != "none":
        source = f"{node.name}:sum" if residual else product_name(node.name)
        parts.append(Node("activation", node.name, (source,), {"activation": activation}))
    if len(parts) > 1:
        parts[0] = replace(first, name=product_name(node.name))
    parts[-1] = replace(parts[-1], name=node.name)
    return parts


def _kept(graph: Graph) -> dict[str, str]:
    """The tensor in which each node's result is kept: behind an activation that is a bound, where only that reads the
    node, because engines fuse it into the rounding."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    kept = {}
    for node in graph.nodes:
        after = readers.get(node.name, [])
        alone = [reader.kind for reader in after] == ["activation"] and node.name != graph.output
        absorbed = alone and after[0].attrs["activation"] in _BOUNDS
        kept[node.name] = after[0].name if absorbed else node.name
    return kept


def _storage(graph: Graph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Quant]:
    """The program's storage, and what onnxruntime needs stored as uint8 beyond it."""
    kept = _kept(graph)
    storage = dict(graph.quant)
    untouched = {graph.output, *storage}
    for node in graph.nodes:
        if node.name in untouched:
            continue
        result = kept[node.name]
        if OPERATORS[node.kind].moves(node.attrs) and node.inputs[0] in storage:
            storage[node.name] = storage[node.inputs[0]]
        elif _needs_storage(graph, node, result) and result in ranges and result not in untouched:
            storage[result] = Quant(*activation_quant(*ranges[result]))
    return storage


def _needs_storage(graph: Graph, node: Node, result: str) -> bool:
    """Whether onnxruntime computes a node in integers only where its result is stored as uint8: QGemm can give
    float32, but not behind an activation."""
    needs = node.kind == "conv2d" or (node.kind == "linear" and result != node.name)
    return needs and is_integer(graph, node)


class _Writer:
    """Collects ONNX nodes and initialisers. A tensor `t` that is stored as uint8 becomes `t:raw` -> QuantizeLinear ->
    `t:uint8` -> DequantizeLinear -> `t`; `real` maps tensors to the names of their float32 values."""

    def __init__(self, graph: Graph, storage: Mapping[str, Quant]) -> None:
        self.graph, self.storage = graph, storage
        self.shapes = graph.shapes
        self.kept = _kept(graph)
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.real: dict[str, str] = {}

    def model(self, batch: int | None) -> onnx.ModelProto:
        """Write the program's input and all of its nodes."""
        source, result = self.graph.input, self.graph.output
        self.real[source] = source
        if source in self.storage:
            self._quantise(source, source)
            self._dequantise(source, f"{source}:real")
        for node in self.graph.nodes:
            self._node(node)
        images = "N" if batch is None else batch
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [images, *self.shapes[name]])
            for name in (source, result)
        ]
        proto = helper.make_graph(self.nodes, "trimtab", values[:1], values[1:], list(self.initialisers.values()))
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(proto, producer_name="trimtab", opset_imports=[opset], ir_version=IR_VERSION)

    def _node(self, node: Node) -> None:
        write = _WRITERS[node.kind]
        if node.name not in self.storage:
            write(self, node, node.name)
            self.real[node.name] = node.name
        elif self.moves_integers(node):
            write(self, node, f"{node.name}:uint8")
            self._dequantise(node.name, node.name)
        else:
            write(self, node, f"{node.name}:raw")
            self._quantise(node.name, f"{node.name}:raw")
            self._dequantise(node.name, node.name)

    def moves_integers(self, node: Node) -> bool:
        """Whether the node works on uint8 itself. The other operators that only move values are left in QDQ form,
        from which onnxruntime knows how to do so; Pad and DepthToSpace it would run in float32."""
        quant = self.storage.get(node.name)
        alone = node.kind in ("channel_map", "depth_to_space")
        return alone and quant is not None and quant == self.storage.get(node.inputs[0])

    def add(self, op: str, inputs: Iterable[str], output: str, **attrs: object) -> str:
        """Append an ONNX node and return its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attrs))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add an initialiser and return its name."""
        self.initialisers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def _quantise(self, tensor: str, raw: str) -> None:
        top = self.storage[tensor].top
        if top == 255:
            self.add("QuantizeLinear", [raw, *self._quant(tensor)], f"{tensor}:uint8")
            return
        # Clipped as integers: a Clip in front would keep onnxruntime from computing what gives `raw` in integers.
        wide = self.add("QuantizeLinear", [raw, *self._quant(tensor)], f"{tensor}:wide")
        bounds = [self.constant(f"{tensor}:{name}", np.array(q, np.uint8)) for name, q in (("low", 0), ("top", top))]
        self.add("Clip", [wide, *bounds], f"{tensor}:uint8")

    def _dequantise(self, tensor: str, real: str) -> None:
        self.real[tensor] = self.add("DequantizeLinear", [f"{tensor}:uint8", *self._quant(tensor)], real)

    def _quant(self, tensor: str) -> list[str]:
        quant = self.storage[tensor]
        return [
            self.constant(f"{tensor}:scale", np.array(quant.scale, np.float32)),
            self.constant(f"{tensor}:zero_point", np.array(quant.zero_point, np.uint8)),
        ]

    def source(self, node: Node) -> str:
        """Return the float32 value of a node's first input, for what computes in float32 and gives uint8 again.

        Between DequantizeLinear and QuantizeLinear onnxruntime would quantise the weight of such a layer too, and
        merge the scales of the two; it does not look through arithmetic.
        """
        tensor = node.inputs[0]
        if tensor not in self.storage or self.storage.keys().isdisjoint((node.name, self.kept[node.name])):
            return self.real[tensor]
        quant = self.storage[tensor]
        zero = self.constant(f"{node.name}:input_zero_point", np.array(quant.zero_point, np.float32))
        scale = self.constant(f"{node.name}:input_scale", np.array(quant.scale, np.float32))
        whole = self.add("Cast", [f"{tensor}:uint8"], f"{node.name}:input_cast", to=TensorProto.FLOAT)
        centred = self.add("Sub", [whole, zero], f"{node.name}:input_centred")
        return self.add("Mul", [centred, scale], f"{node.name}:input")

    def layer_inputs(self, node: Node) -> list[str]:
        """Return the float32 values of a layer's input, weight and bias."""
        source = self.real[node.inputs[0]] if is_integer(self.graph, node) else self.source(node)
        if node.attrs["precision"] == "bf16":
            source = self._rounded_to_bf16(node, source)
        return [source, *self.parameters(node)]

    def _rounded_to_bf16(self, node: Node, source: str) -> str:
        """What the layer multiplies, as float32: onnxruntime has no bf16 kernels for CPUs."""
        largest = np.float32(LARGEST_BF16)
        bounds = [self.constant(f"{node.name}:{name}", x) for name, x in (("least", -largest), ("most", largest))]
        within = self.add("Clip", [source, *bounds], f"{node.name}:within")
        half = self.add("Cast", [within], f"{node.name}:bf16", to=TensorProto.BFLOAT16)
        return self.add("Cast", [half], f"{node.name}:rounded", to=TensorProto.FLOAT)

    def parameters(self, node: Node) -> list[str]:
        """Write a layer's weight and bias and return the names of their real values."""
        weight, bias = node.weights["weight"], node.weights.get("bias")
        scale = node.weights.get("weight_scale")
        name, bias_name = f"{node.name}:weight", f"{node.name}:bias"
        if scale is not None and is_integer(self.graph, node):
            if bias is None:
                return [self._dequantised(name, weight, scale)]
            x_scale = float(np.float32(self.graph.quant[node.inputs[0]].scale))
            weight, scale = _with_room_for_bias(weight, scale, bias, x_scale)
            unit = x_scale * scale.astype(np.float64)
            rounded = np.rint(bias / unit).astype(np.int32)
            return [self._dequantised(name, weight, scale), self._dequantised(bias_name, rounded, unit)]
        real = self.constant(name, weight) if scale is None else self._float_from_int8(name, weight, scale)
        return [real] if bias is None else [real, self.constant(bias_name, bias)]

    def _dequantised(self, name: str, value: Array, scale: Array) -> str:
        inputs = [
            self.constant(f"{name}:{value.dtype}", value),
            self.constant(f"{name}:scale", scale.astype(np.float32)),
            self.constant(f"{name}:zero_point", np.zeros(scale.shape, value.dtype)),
        ]
        return self.add("DequantizeLinear", inputs, name, axis=0)

    def _float_from_int8(self, name: str, weight: Array, scale: Array) -> str:
        # onnxruntime computes DequantizeLinear of a float layer's weight anew in every run; Cast and Mul it computes
        # once, when it loads the model.
        whole = self.add("Cast", [self.constant(f"{name}:int8", weight)], f"{name}:cast", to=TensorProto.FLOAT)
        shape = (-1, *[1] * (weight.ndim - 1))
        return self.add("Mul", [whole, self.constant(f"{name}:scale", scale.reshape(shape))], name)


def _with_room_for_bias(weight: Array, scale: Array, bias: Array, x_scale: float) -> tuple[Array, Array]:
    """Coarsen the weights of channels whose bias, in units of x_scale * scale, would exceed LARGEST_BIAS.

    Such a channel's weights are so near to zero that its output is its bias to within one part in a thousand.
    """
    needed = np.abs(bias.astype(np.float64)) / (LARGEST_BIAS * x_scale)
    wider = np.maximum(scale, needed.astype(np.float32))
    factor = (scale / wider).reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(weight * factor).astype(np.int8), wider


# Operators: each writes `node` as ONNX nodes, the last of which gives `output`.


def _quantize(writer: _Writer, node: Node, output: str) -> None:
    writer.add("Identity", [writer.source(node)], output)


def _conv2d(writer: _Writer, node: Node, output: str) -> None:
    writer.add(
        "Conv",
        writer.layer_inputs(node),
        output,
        kernel_shape=list(node.weights["weight"].shape[2:]),
        strides=list(node.attrs["stride"]),
        pads=list(node.attrs["padding"]),
        dilations=list(node.attrs["dilation"]),
        group=node.attrs["groups"],
    )


def _linear(writer: _Writer, node: Node, output: str) -> None:
    writer.add("Gemm", writer.layer_inputs(node), output, transB=1)


def _activation(writer: _Writer, node: Node, output: str) -> None:
    source = writer.real[node.inputs[0]]
    kind = node.attrs["activation"]
    stored = writer.storage.get(node.name)
    if kind == "relu6" and stored is not None and np.rint(6 / stored.scale) + stored.zero_point >= stored.top:
        kind = "relu"  # the storage stops at 6 or below, and onnxruntime fuses a Clip only into one of 8 bits
    if kind == "relu6":
        bounds = [writer.constant(f"{node.name}:{bound}", np.array(bound, np.float32)) for bound in (0, 6)]
        writer.add("Clip", [source, *bounds], output)
    elif kind == "hard_sigmoid":
        writer.add("HardSigmoid", [source], output, alpha=1 / 6, beta=0.5)
    elif kind == "silu":
        sigmoid = writer.add("Sigmoid", [source], f"{node.name}:sigmoid")
        writer.add("Mul", [source, sigmoid], output)
    else:
        writer.add(_ACTIVATIONS[kind], [source], output)


_ACTIVATIONS = {
    "none": "Identity",
    "relu": "Relu",
    "hard_swish": "HardSwish",
    "sigmoid": "Sigmoid",
    "gelu": "Gelu",
    "tanh": "Tanh",
    "elu": "Elu",
}


def _plain(op: str, **attrs: object) -> Callable[[_Writer, Node, str], None]:
    def write(writer: _Writer, node: Node, output: str) -> None:
        writer.add(op, [writer.real[name] for name in node.inputs], output, **attrs)

    return write


def _max_pool2d(writer: _Writer, node: Node, output: str) -> None:
    writer.add("MaxPool", [writer.real[node.inputs[0]]], output, **_window(node))


def _avg_pool2d(writer: _Writer, node: Node, output: str) -> None:
    include = int(node.attrs["count_include_pad"])
    writer.add("AveragePool", [writer.real[node.inputs[0]]], output, count_include_pad=include, **_window(node))


def _window(node: Node) -> dict[str, object]:
    names = {"kernel": "kernel_shape", "stride": "strides", "padding": "pads"}
    return {theirs: list(node.attrs[ours]) for ours, theirs in names.items()}


def _adaptive_avg_pool2d(writer: _Writer, node: Node, output: str) -> None:
    # A mean over rectangles is a mean over their columns and then over their rows: two products.
    _, height, width = writer.shapes[node.inputs[0]]
    rows, columns = (_averages(size, count) for size, count in zip((height, width), node.attrs["size"], strict=True))
    right = writer.constant(f"{node.name}:columns", columns.T)
    across = writer.add("MatMul", [writer.real[node.inputs[0]], right], f"{node.name}:across")
    writer.add("MatMul", [writer.constant(f"{node.name}:rows", rows), across], output)


def _averages(size: int, count: int) -> Array:
    """The matrix (count, size) that takes the means of adaptive pooling's windows over one side."""
    matrix = np.zeros((count, size), np.float32)
    for i in range(count):
        first, last = i * size // count, -(-(i + 1) * size // count)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _layer_norm(writer: _Writer, node: Node, output: str) -> None:
    parameters = [writer.constant(f"{node.name}:{name}", node.weights[name]) for name in ("weight", "bias")]
    rank = len(writer.shapes[node.name])
    order = [0, *range(2, rank + 1), 1]
    last = writer.add("Transpose", [writer.real[node.inputs[0]]], f"{node.name}:last", perm=order)
    normal = writer.add(
        "LayerNormalization", [last, *parameters], f"{node.name}:normal", axis=-1, epsilon=node.attrs["epsilon"]
    )
    writer.add("Transpose", [normal], output, perm=[0, rank, *range(1, rank)])


def _per_channel(writer: _Writer, node: Node, name: str) -> str:
    """One number for every channel as an initialiser of the tensor's rank."""
    rank = len(writer.shapes[node.name])
    return writer.constant(f"{node.name}:{name}", node.weights[name].reshape(-1, *[1] * (rank - 1)))


def _prelu(writer: _Writer, node: Node, output: str) -> None:
    writer.add("PRelu", [writer.real[node.inputs[0]], _per_channel(writer, node, "slope")], output)


def _channel_affine(writer: _Writer, node: Node, output: str) -> None:
    _affine(writer, node, writer.real[node.inputs[0]], output)


def _affine(writer: _Writer, node: Node, source: str, output: str) -> None:
    given = [(op, name) for op, name in (("Mul", "weight"), ("Add", "bias")) if name in node.weights]
    for i, (op, name) in enumerate(given, 1):
        result = output if i == len(given) else f"{node.name}:scaled"
        source = writer.add(op, [source, _per_channel(writer, node, name)], result)


def _group_norm(writer: _Writer, node: Node, output: str) -> None:
    # As instances with one channel for each group: onnxruntime has no kernel for GroupNormalization.
    groups = node.attrs["groups"]
    flat = _reshape(writer, node, writer.real[node.inputs[0]], (0, groups, -1), "groups")
    plain = [writer.constant(f"{node.name}:{name}", make(groups, np.float32)) for name, make in _PLAIN.items()]
    normal = writer.add("InstanceNormalization", [flat, *plain], f"{node.name}:normal", epsilon=node.attrs["epsilon"])
    _affine(writer, node, _reshape(writer, node, normal, (0, *writer.shapes[node.name]), "image"), output)


_PLAIN = {"ones": np.ones, "zeros": np.zeros}


def _upsample(writer: _Writer, node: Node, output: str) -> None:
    sides = list(zip(writer.shapes[node.inputs[0]][1:], node.attrs["size"], strict=True))
    source = writer.real[node.inputs[0]]
    if node.attrs["mode"] == "bilinear":
        # Between DequantizeLinear and QuantizeLinear onnxruntime would interpolate integers, and cut off fractions.
        corners = "align_corners" if node.attrs["align_corners"] else "half_pixel"
        size = writer.constant(f"{node.name}:size", np.array(node.attrs["size"], np.int64))
        inputs = [writer.source(node), "", "", size]
        writer.add("Resize", inputs, output, axes=[2, 3], coordinate_transformation_mode=corners, mode="linear")
    elif all(new % old == 0 for old, new in sides):
        # By whole factors: sizes are lost where onnxruntime moves the rounding past it, and its own check fails then.
        scales = writer.constant(f"{node.name}:scales", np.array([1, 1, *(n // o for o, n in sides)], np.float32))
        floor = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
        writer.add("Resize", [source, "", scales], output, **floor)
    else:
        # Resize divides by a rounded factor, and may take the row before where the quotient is a whole number.
        for axis, (old, new) in enumerate(sides, 2):
            index = writer.constant(f"{node.name}:index{axis}", np.arange(new) * old // new)
            source = writer.add("Gather", [source, index], output if axis == 3 else f"{node.name}:rows", axis=axis)


def _depth_to_space(writer: _Writer, node: Node, output: str) -> None:
    (rows, columns), (top, left) = node.attrs["block"], node.attrs["crop"]
    source = f"{node.inputs[0]}:uint8" if writer.moves_integers(node) else writer.real[node.inputs[0]]
    channels, height, width = writer.shapes[node.inputs[0]]
    whole = (rows * height, columns * width)
    kept = writer.shapes[node.name][1:]
    result = output if kept == whole else f"{node.name}:whole"
    if rows == columns:
        spread = writer.add("DepthToSpace", [source], result, blocksize=rows, mode="CRD")
    else:
        outputs = channels // (rows * columns)
        split = _reshape(writer, node, source, (0, outputs, rows, columns, height, width), "split")
        turned = writer.add("Transpose", [split], f"{node.name}:turned", perm=[0, 1, 4, 2, 5, 3])
        spread = writer.add("Reshape", [turned, _shape(writer, node, (0, outputs, *whole), "whole")], result)
    if kept != whole:
        limits = {"starts": (top, left), "ends": (top + kept[0], left + kept[1]), "axes": (2, 3)}
        names = [writer.constant(f"{node.name}:{key}", np.array(pair, np.int64)) for key, pair in limits.items()]
        writer.add("Slice", [spread, *names], output)


def _tokens(writer: _Writer, node: Node, output: str) -> None:
    source, (features, length, _) = writer.real[node.inputs[0]], writer.shapes[node.name]
    count = length - node.weights["prefix"].shape[0] if "prefix" in node.weights else length
    flat = _reshape(writer, node, source, (0, features, count, 1), "flat")
    if "prefix" in node.weights:
        first = node.weights["prefix"].T[None, :, :, None]
        shape = writer.add("Shape", [source], f"{node.name}:batch", start=0, end=1)
        ones = writer.constant(f"{node.name}:ones", np.ones(3, np.int64))
        whole = writer.add("Concat", [shape, ones], f"{node.name}:shape", axis=0)
        prefix = writer.add("Expand", [writer.constant(f"{node.name}:prefix", first), whole], f"{node.name}:first")
        flat = writer.add("Concat", [prefix, flat], f"{node.name}:joined", axis=2)
    if "position" in node.weights:
        position = writer.constant(f"{node.name}:position", node.weights["position"].T[None, :, :, None])
        writer.add("Add", [flat, position], output)
    else:
        writer.add("Identity", [flat], output)


def _attention(writer: _Writer, node: Node, output: str) -> None:
    heads, (features, length, _) = node.attrs["heads"], writer.shapes[node.name]
    query, key, value = (
        _reshape(writer, node, writer.real[name], (0, heads, writer.shapes[name][0] // heads, length), part)
        for part, name in zip(("query", "key", "value"), node.inputs, strict=True)
    )
    scale = writer.constant(f"{node.name}:factor", np.array(node.attrs["scale"], np.float32))
    scaled = writer.add("Mul", [query, scale], f"{node.name}:scaled")
    rows = writer.add("Transpose", [scaled], f"{node.name}:rows", perm=[0, 1, 3, 2])
    scores = writer.add("MatMul", [rows, key], f"{node.name}:scores")
    weights = writer.add("Softmax", [scores], f"{node.name}:weights", axis=-1)
    turned = writer.add("Transpose", [weights], f"{node.name}:turned", perm=[0, 1, 3, 2])
    mixed = writer.add("MatMul", [value, turned], f"{node.name}:mixed")
    writer.add("Reshape", [mixed, _shape(writer, node, (0, features, length, 1), "joined")], output)


def _reshape(writer: _Writer, node: Node, source: str, shape: tuple[int, ...], name: str) -> str:
    return writer.add("Reshape", [source, _shape(writer, node, shape, name)], f"{node.name}:{name}")


def _shape(writer: _Writer, node: Node, shape: tuple[int, ...], name: str) -> str:
    """A shape as an initialiser; a 0 keeps the axis."""
    return writer.constant(f"{node.name}:{name}_shape", np.array(shape, np.int64))


def _subsample(writer: _Writer, node: Node, output: str) -> None:
    end = np.iinfo(np.int64).max
    limits = {"starts": (0, 0), "ends": (end, end), "axes": (2, 3), "steps": node.attrs["stride"]}
    names = [writer.constant(f"{node.name}:{key}", np.array(pair, np.int64)) for key, pair in limits.items()]
    writer.add("Slice", [writer.real[node.inputs[0]], *names], output)


def _channel_map(writer: _Writer, node: Node, output: str) -> None:
    index = list(node.attrs["index"])
    taken = [i for i in index if i >= 0]
    before = next((i for i, channel in enumerate(index) if channel >= 0), 0)
    after = len(index) - before - len(taken)
    source = f"{node.inputs[0]}:uint8" if writer.moves_integers(node) else writer.real[node.inputs[0]]
    if not taken or index[before : before + len(taken)] != taken:
        padded = _pad_channels(writer, node, source, (1, 0), f"{node.name}:padded")
        _gather(writer, node, padded, [i + 1 for i in index], output)
    elif taken == list(range(writer.shapes[node.inputs[0]][0])):
        _pad_channels(writer, node, source, (before, after), output)
    elif before or after:
        gathered = _gather(writer, node, source, taken, f"{node.name}:taken")
        _pad_channels(writer, node, gathered, (before, after), output)
    else:
        _gather(writer, node, source, taken, output)


def _gather(writer: _Writer, node: Node, source: str, index: list[int], output: str) -> str:
    indices = writer.constant(f"{node.name}:index", np.array(index, np.int64))
    return writer.add("Gather", [source, indices], output, axis=1)


def _pad_channels(writer: _Writer, node: Node, source: str, amounts: tuple[int, int], output: str) -> str:
    # Not by Pad's input `axes`: onnxruntime 1.31 moves transposes past such a Pad wrongly, and then fails to run.
    pads = np.zeros((2, len(writer.shapes[node.name]) + 1), np.int64)
    pads[:, 1] = amounts
    zero = np.array(0, np.float32)
    if writer.moves_integers(node):
        zero = np.array(writer.storage[node.name].zero_point, np.uint8)
    constants = writer.constant(f"{node.name}:pads", pads.reshape(-1)), writer.constant(f"{node.name}:zero", zero)
    return writer.add("Pad", [source, *constants], output)


_WRITERS: dict[str, Callable[[_Writer, Node, str], None]] = {
    "quantize": _quantize,
    "conv2d": _conv2d,
    "linear": _linear,
    "activation": _activation,
    "add": _plain("Add"),
    "mul": _plain("Mul"),
    "concat": _plain("Concat", axis=1),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool2d": _plain("GlobalAveragePool"),
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _plain("Flatten", axis=1),
    "channel_map": _channel_map,
    "subsample": _subsample,
    "layer_norm": _layer_norm,
    "tokens": _tokens,
    "attention": _attention,
    "prelu": _prelu,
    "channel_affine": _channel_affine,
    "group_norm": _group_norm,
    "upsample": _upsample,
    "depth_to_space": _depth_to_space,
}
