"""PyTorch's CPU kernels as an engine: eager, channels last, oneDNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.errors import BadInput, UnsupportedOperator
from trimtab.evaluators.engines.base import Images, TimeSlice
from trimtab.evaluators.engines.loop import small_program_seconds, time_runs
from trimtab.evaluators.engines.torch_operators import (
    FLOAT_OPERATORS,
    MOVES,
    Compute,
    activate_in_place,
    padding_of,
    to_bf16,
)
from trimtab.graph import OPERATORS, Graph, Node, Quant, check_graph, is_integer
from trimtab.graph.passes import fuse
from trimtab.threads import torch_threads

__all__ = ["TorchEngine", "TorchSession"]

#: How oneDNN's integer layers call the activations that they can apply: name and bounds.
POST_OPS: Mapping[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}


class TorchEngine:
    """Runs programs in PyTorch, one operator at a time, float32 or int8.

    Integer layers are the oneDNN operators on plain uint8 tensors that PyTorch 2 export quantisation compiles to, with
    rounding, activation and residual inside. On processors without VNNI they add two products in 16 bits and saturate.
    """

    name = "torch"
    has_bf16 = False

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise BadInput(f"torch needs at least one thread, given {threads}")
        self.threads = threads

    @property
    def signature(self) -> str:
        """Engine, version, threads."""
        return f"torch {torch.__version__} threads={self.threads}"

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> TorchSession:
        """Prepare a program; additions are fused, so `ranges` are not needed."""
        with torch_threads(self.threads), torch.inference_mode():
            return TorchSession(graph, self.threads)

    def layer_kernel(self, graph: Graph, layer: str) -> str:
        """Return nothing: it does not tell."""
        return ""

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
        """Time the whole small program."""
        return small_program_seconds(self, graph, layer, seconds)


@dataclass(frozen=True)
class _Step:
    """Computes tensor `target` from tensors `sources`, of which `dead` are not read again."""

    compute: Compute
    sources: tuple[int, ...]
    target: int
    dead: tuple[int, ...]


class TorchSession:
    """A program as a list of calls into PyTorch."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.threads = threads
        fused = fuse(graph)
        self._graph = check_graph(fused)
        names = [fused.input, *(node.name for node in fused.nodes)]
        numbers = {name: i for i, name in enumerate(names)}
        last = {name: i for i, node in enumerate(self._graph.nodes) for name in node.inputs}
        last[fused.output] = len(names)
        self._count, self._output = len(names), numbers[fused.output]
        # What a layer or addition gives is its own memory; other results may be views of what is still read.
        owned = {n.name for n in self._graph.nodes if n.kind in ("conv2d", "add")}
        self._steps = []
        for i, node in enumerate(self._graph.nodes):
            dead = {name for name in node.inputs if last[name] == i}
            compute = _compute(self._graph, node, dead & owned)
            sources = tuple(numbers[name] for name in node.inputs)
            self._steps.append(_Step(compute, sources, numbers[node.name], tuple(numbers[name] for name in dead)))

    def run(self, x: Images) -> Images:
        """Return the output (N, ...) for (N, C, H, W)."""
        with torch_threads(self.threads), torch.inference_mode():
            result: Images = self._forward(torch.from_numpy(np.array(x, order="C"))).contiguous().numpy()
        return result

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Time runs on inputs (R, batch, C, H, W), whose memory is read in place."""
        with torch_threads(self.threads), torch.inference_mode():
            return time_runs(
                self._forward, [torch.from_numpy(image) for image in np.ascontiguousarray(inputs)], seconds
            )

    def _forward(self, x: Tensor) -> Tensor:
        values: list[Any] = [None] * self._count
        values[0] = self._enter(x)
        for step in self._steps:
            values[step.target] = step.compute(*[values[source] for source in step.sources])
            for index in step.dead:
                values[index] = None
        return _real(values[self._output], self._graph.quant.get(self._graph.output))

    def _enter(self, x: Tensor) -> Tensor:
        stored = _stored(x, self._graph.quant.get(self._graph.input))
        return stored.contiguous(memory_format=torch.channels_last) if stored.ndim == 4 else stored


def _real(x: Tensor, quant: Quant | None) -> Tensor:
    return x if quant is None else x.to(torch.float32).sub_(quant.zero_point).mul_(quant.scale)


def _stored(x: Tensor, quant: Quant | None) -> Tensor:
    if quant is None:
        return x
    return x.div(quant.scale).round_().add_(quant.zero_point).clamp_(0, quant.top).to(torch.uint8)


def _compute(graph: Graph, node: Node, free: set[str]) -> Compute:
    """Return what computes a node from the stored values of its inputs; it may overwrite the `free` ones."""
    if node.kind not in FLOAT_OPERATORS and node.kind not in MOVES:
        raise UnsupportedOperator(f"layer {node.name!r}: the engine torch has no {node.kind}")
    if is_integer(graph, node):
        return _integer_layer(graph, node, free)
    quants = [graph.quant.get(name) for name in node.inputs]
    result = graph.quant.get(node.name)
    if node.kind == "concat" or OPERATORS[node.kind].moves(node.attrs):
        zero = 0 if result is None else result.zero_point
        move = MOVES[node.kind](node, zero)
        if all(quant == result for quant in quants):
            return move
        return lambda *inputs: move(*(_stored(_real(x, q), result) for x, q in zip(inputs, quants, strict=True)))
    compute = FLOAT_OPERATORS[node.kind](node)
    if node.attrs.get("precision") == "bf16":
        compute = _of_bf16(compute)
    if result is None and not any(quants):
        return compute
    return lambda *inputs: _stored(compute(*(_real(x, q) for x, q in zip(inputs, quants, strict=True))), result)


def _of_bf16(compute: Compute) -> Compute:
    return lambda x, *others: compute(to_bf16(x), *others)


# Integer layers.


def _integer_layer(graph: Graph, node: Node, free: set[str]) -> Compute:
    """An integer layer in one call where oneDNN can add the residual; else in float32 from its result on."""
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        raise BadInput(f"torch {torch.__version__} has no integer convolutions for this processor: run float32 forms")
    result, activation = graph.quant.get(node.name), node.attrs["activation"]
    residual = graph.quant.get(node.inputs[-1])
    activate = activate_in_place(activation)
    # oneDNN stores up to 255.
    whole = result is None or result.top == 255
    if len(node.inputs) == 1:
        if whole and activation in POST_OPS:
            return _integer_product(graph, node, result, activation)
        product = _integer_product(graph, node, None, "none")
        return lambda x: _stored(activate(product(x)), result)
    summable = whole and activation in ("none", "relu") and (residual is None) == (result is None)
    if summable and node.kind == "conv2d":
        overwrite = node.inputs[1] in free and node.inputs[1] != node.inputs[0]  # which is read to the end
        return _integer_sum(graph, node, result, residual, activation, overwrite)
    product = _integer_product(graph, node, None, "none")
    return lambda x, r: _stored(activate(product(x).add_(_real(r, residual))), result)


def _integer_product(graph: Graph, node: Node, result: Quant | None, activation: str) -> Compute:
    call = _IntegerCall.of(graph, node)
    name, bounds = POST_OPS[activation]
    out = (1.0, 0, torch.float32) if result is None else (result.scale, result.zero_point, torch.uint8)
    if node.kind == "linear":
        linear = torch.ops.onednn.qlinear_pointwise
        return lambda x: linear(*call.arguments(x), *call.weights, call.bias, *out, name, bounds, "")
    conv = torch.ops.onednn.qconv_pointwise
    return lambda x: conv(*call.arguments(x), *call.weights, call.bias, *call.window, *out, name, bounds, "")


def _integer_sum(
    graph: Graph, node: Node, result: Quant | None, residual: Quant | None, activation: str, overwrite: bool
) -> Compute:
    call = _IntegerCall.of(graph, node)
    conv = torch.ops.onednn.qconv2d_pointwise.binary
    out = (1.0, 0, torch.float32) if result is None else (result.scale, result.zero_point, torch.uint8)
    added = (1.0, 0) if residual is None else (residual.scale, residual.zero_point)

    def compute(x: Tensor, r: Tensor) -> Tensor:
        dense = r.contiguous(memory_format=torch.channels_last)
        accumulator = dense if overwrite or dense is not r else r.clone()
        tail: tuple[Any, ...] = (*call.window, *out, *added, "sum", 1.0, activation, [], "")
        y: Tensor = conv(*call.arguments(x), *call.weights, accumulator, call.bias, *tail)
        return y

    return compute


@dataclass(frozen=True)
class _IntegerCall:
    """The arguments that oneDNN's integer layers share. `window` is stride, padding, dilation and groups."""

    quant: Quant
    weights: tuple[Tensor, Tensor, Tensor]
    bias: Tensor | None
    window: tuple[list[int], list[int], list[int], int]
    margin: tuple[int, int, int, int] | None

    @staticmethod
    def of(graph: Graph, node: Node) -> _IntegerCall:
        quant = graph.quant[node.inputs[0]]
        weight = torch.from_numpy(np.array(node.weights["weight"], order="C"))  # oneDNN looks at no strides
        scale = torch.from_numpy(np.array(node.weights["weight_scale"]))
        bias = torch.from_numpy(np.array(node.weights["bias"])) if "bias" in node.weights else None
        zeros = torch.zeros(len(weight), dtype=torch.int32)
        if node.kind == "linear":
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
            return _IntegerCall(quant, (packed, scale, zeros), bias, ([], [], [], 1), None)
        padding, margin = padding_of(node)
        window = (list(node.attrs["stride"]), padding, list(node.attrs["dilation"]), int(node.attrs["groups"]))
        packed = torch.ops.onednn.qconv_prepack(weight, scale, quant.scale, quant.zero_point, *window, None)
        return _IntegerCall(quant, (packed, scale, zeros), bias, window, margin)

    def arguments(self, x: Tensor) -> tuple[Tensor, float, int]:
        padded = x if self.margin is None else F.pad(x, self.margin, value=self.quant.zero_point)
        return padded, self.quant.scale, self.quant.zero_point
