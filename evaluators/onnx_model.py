"""From a program to an ONNX model in QDQ form, which onnxruntime, OpenVINO and TensorRT turn into integer kernels.

Every tensor that the program stores as uint8 passes through a QuantizeLinear/DequantizeLinear pair with its scale and
zero point; int8 weights and int32 biases are initialisers behind DequantizeLinear. Two things differ from the
arithmetic of `trimtab.kernels`: the bias of an integer layer is rounded to a multiple of input scale x weight scale,
and with `ranges` a few more tensors are rounded to uint8 (see `to_onnx`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trimtab.errors import BadInput
from trimtab.kernels.graph import Array, Graph, Node, Quant
from trimtab.spaces.quantise import activation_quant

__all__ = ["IR_VERSION", "OPSET", "save_onnx", "to_onnx"]

#: What onnxruntime 1.22 and later load; onnx writes newer ones by default.
OPSET, IR_VERSION = 21, 10

#: Operators that only move values, so their output can be stored like their input without any rounding.
MOVES = frozenset({"max_pool2d", "subsample", "channel_map", "flatten"})

#: Rounded biases stay below this, which leaves room for the accumulator in 32 bits.
LARGEST_BIAS = 2.0**30


def to_onnx(
    graph: Graph, batch: int | None = None, ranges: Mapping[str, tuple[float, float]] | None = None
) -> onnx.ModelProto:
    """Return the program as a checked model; the same program gives the same bytes.

    `batch` fixes the number of images; None leaves it open, as axis "N". The input and the output carry the program's
    names and are float32.

    `ranges` holds the (low, high) of tensors on calibration images (`Candidate.ranges`). onnxruntime convolves in
    integers only where the result is stored as uint8, so the result of an integer convolution that the program keeps
    in float32 (before a residual addition, say) is stored as uint8 too where its range is given. That is one rounding
    more than the native engine does there. Without `ranges` such tensors, and their convolutions, stay in float32.

    An operator that the format does not know is a `BadInput`.
    """
    quant = _storage(graph, ranges or {})
    model = _Writer(graph, quant, batch).model()
    onnx.checker.check_model(model)
    return model


def save_onnx(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model so that `path` never holds half of one; folders that are missing are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; an export is for others too.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _is_integer(node: Node, quant: Mapping[str, Quant]) -> bool:
    weight = node.weights.get("weight")
    return weight is not None and weight.dtype == np.int8 and node.inputs[0] in quant


def _storage(graph: Graph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Quant]:
    """The program's storage, and what onnxruntime needs stored as uint8 beyond it."""
    quant = dict(graph.quant)
    for node in graph.nodes:
        if node.name in quant or node.name == graph.output:
            continue
        if node.op in MOVES and node.inputs[0] in quant:
            quant[node.name] = quant[node.inputs[0]]
        elif node.op == "conv2d" and _is_integer(node, graph.quant):
            result = _result(graph, node)
            if result in ranges and result not in quant and result != graph.output:
                quant[result] = Quant(*activation_quant(*ranges[result]))
    return quant


def _result(graph: Graph, node: Node) -> str:
    """The tensor in which a layer's output is kept: behind its activation, where that is all that reads it."""
    readers = [reader for reader in graph.nodes if node.name in reader.inputs]
    return readers[0].name if [reader.op for reader in readers] == ["activation"] else node.name


class _Writer:
    """Collects ONNX nodes and initialisers. A program's tensor `t` that is stored as uint8 becomes `t:raw` ->
    QuantizeLinear -> `t:uint8` -> DequantizeLinear -> `t`."""

    def __init__(self, graph: Graph, quant: Mapping[str, Quant], batch: int | None) -> None:
        self.graph, self.quant, self.batch = graph, quant, batch
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.real: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        graph = self.graph
        if graph.input in self.quant:
            self._store(graph.input, graph.input, f"{graph.input}:real")
        else:
            self.real[graph.input] = graph.input
        for node in graph.nodes:
            write = _WRITERS.get(node.op)
            if write is None:
                raise BadInput(f"{node.name}: ONNX export knows no operator {node.op!r} (known: {', '.join(_WRITERS)})")
            stored = node.name in self.quant
            write(self, node, f"{node.name}:raw" if stored else node.name)
            if stored:
                self._store(node.name, f"{node.name}:raw", node.name)
            else:
                self.real[node.name] = node.name
        return self._proto()

    def _proto(self) -> onnx.ModelProto:
        images = "N" if self.batch is None else self.batch
        given = helper.make_tensor_value_info(
            self.graph.input, TensorProto.FLOAT, [images, *self.graph.input_shape]
        )
        result = onnx.ValueInfoProto(name=self.graph.output)
        result.type.tensor_type.elem_type = TensorProto.FLOAT
        proto = helper.make_graph(self.nodes, "trimtab", [given], [result], list(self.initialisers.values()))
        model = helper.make_model(
            proto, producer_name="trimtab", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        model.graph.output[0].CopyFrom(inferred.graph.output[0])
        return model

    # parts

    def add(self, op: str, inputs: Iterable[str], output: str, **attrs: object) -> str:
        """Append an ONNX node and return its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attrs))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add an initialiser and return its name."""
        self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _store(self, tensor: str, raw: str, real: str) -> None:
        quant = self.quant[tensor]
        parameters = [
            self.constant(f"{tensor}:scale", np.array(quant.scale, np.float32)),
            self.constant(f"{tensor}:zero_point", np.array(quant.zero_point, np.uint8)),
        ]
        stored = self.add("QuantizeLinear", [raw, *parameters], f"{tensor}:uint8")
        self.real[tensor] = self.add("DequantizeLinear", [stored, *parameters], real)

    def _dequantised(self, name: str, value: Array, scale: Array) -> str:
        inputs = [
            self.constant(f"{name}:{value.dtype}", value),
            self.constant(f"{name}:scale", scale.astype(np.float32)),
            self.constant(f"{name}:zero_point", np.zeros(scale.shape, value.dtype)),
        ]
        return self.add("DequantizeLinear", inputs, name, axis=0)

    def parameters(self, node: Node) -> list[str]:
        """Write a layer's weight and bias and return the names of their real values."""
        weight, bias = node.weights["weight"], node.weights.get("bias")
        name = f"{node.name}:weight"
        if weight.dtype != np.int8:
            real = [self.constant(name, weight.astype(np.float32))]
            return real if bias is None else [*real, self.constant(f"{node.name}:bias", bias.astype(np.float32))]
        scale = node.weights["weight_scale"].astype(np.float32)
        if bias is None or not _is_integer(node, self.graph.quant):
            real = [self._dequantised(name, weight, scale)]
            return real if bias is None else [*real, self.constant(f"{node.name}:bias", bias.astype(np.float32))]
        x_scale = self.graph.quant[node.inputs[0]].scale
        weight, scale = _with_room_for_bias(weight, scale, bias, x_scale)
        unit = np.float32(x_scale) * scale
        rounded = np.rint(bias.astype(np.float64) / unit).astype(np.int32)
        return [self._dequantised(name, weight, scale), self._dequantised(f"{node.name}:bias", rounded, unit)]

    def activate(self, value: str, activation: str, output: str) -> None:
        """Apply an activation to `value`; the result is called `output`."""
        if activation == "relu":
            self.add("Relu", [value], output)
        elif activation == "relu6":
            bounds = [self.constant(f"{output}:{b}", np.array(b, np.float32)) for b in (0.0, 6.0)]
            self.add("Clip", [value, *bounds], output)
        elif activation == "none":
            self.add("Identity", [value], output)
        else:
            raise BadInput(f"{output}: ONNX export knows no activation {activation!r}")


def _with_room_for_bias(weight: Array, scale: Array, bias: Array, x_scale: float) -> tuple[Array, Array]:
    """Coarsen the weights of channels so near to zero that their bias, in units of x_scale * scale, needs over 31 bits.

    The weights' part in such a channel's output is below one part in thousands of its bias.
    """
    needed = np.abs(bias.astype(np.float64)) / (LARGEST_BIAS * x_scale)
    wider = np.maximum(scale, needed.astype(np.float32))
    factor = (scale / wider).reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(weight * factor).astype(np.int8), wider


# operators: each writes `node`, whose result is called `output`


def _layer(writer: _Writer, node: Node, output: str, op: str, **attrs: object) -> None:
    inputs = [writer.real[node.inputs[0]], *writer.parameters(node)]
    rest: list[tuple[str, str]] = []
    activation = str(node.attrs.get("activation", "none"))
    residual = len(node.inputs) > 1
    if residual:
        rest.append(("Add", node.inputs[1]))
    ...
