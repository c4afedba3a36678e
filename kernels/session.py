"""A graph compiled for one kernel level, batch size and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trimtab.errors import BadInput, unknown_name
from trimtab.graph import Graph, Node, bands, check_graph, is_integer
from trimtab.graph.attributes import MAX_ELEMENTS
from trimtab.graph.padding import pad_channels
from trimtab.graph.passes import fuse, legalise
from trimtab.kernels import _native
from trimtab.kernels.isa import active_level, methods, resolve_level
from trimtab.kernels.memory import place

__all__ = ["MEMORY_LIMIT", "Session", "TimeSlice"]

Floats = npt.NDArray[np.float32]

MEMORY_LIMIT = 2**32  # bytes: an error rather than a machine that swaps
_MAX_THREADS = 256


class TimeSlice(NamedTuple):
    """One uninterrupted stretch of runs: how many, how many seconds they took together, and how often the operating
    system took the core away meanwhile."""

    runs: int
    seconds: float
    involuntary_switches: int

    @property
    def per_run(self) -> float:
        """Seconds of one run."""
        return self.seconds / self.runs


class Session:
    """A compiled network. Safe to call from several threads; runs of one session wait for each other."""

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int = 1,
        batch: int = 1,
        level: str | None = None,
        method: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Compile `graph` for runs of `batch` images on `threads` threads.

        `level` is one of `levels()` or `emulated_levels()`; None takes `active_level()`. Raises BadInput, or
        UnsupportedOperator, naming the layer that cannot be compiled; BadInput also where activations, scratch and
        packed weights would take more than `memory_limit` bytes. `method`, one of `methods()`, is how layers run that
        can run so, whatever is chosen otherwise; no integer depends on it.
        """
        if not 1 <= threads <= _MAX_THREADS:
            raise BadInput(f"threads must be 1 to {_MAX_THREADS}, got {threads}")
        if batch < 1:
            raise BadInput(f"batch must be at least 1, got {batch}")
        self.level = active_level() if level is None else resolve_level(level)
        self.threads = threads
        self.batch = batch
        self._memory_limit = memory_limit
        self._method = None if method is None else _number_of(method)
        self._graph = check_graph(legalise(fuse(graph)))
        #: As it is run: with more channels where that is quicker.
        self._stored = pad_channels(self._graph, lambda channels: _native.stored_channels(self.level, *channels))
        largest = max(prod(shape) for shape in self._stored.shapes.values())
        if largest * batch > MAX_ELEMENTS:
            raise BadInput(f"a batch of {batch} makes tensors of {largest * batch} elements: too large")
        together = bands.find_chains(bands.graph_links(self._graph), self._graph.output)  # as prices are planned
        self._steps = [self._stored.nodes[part.start : part.stop] for part in together]
        self._program, _ = self._compile(self._steps)

    @property
    def steps(self) -> list[str]:
        """Names of the steps in the order in which they run: layers left after fusion, a chain by its last layer."""
        return [nodes[-1].name for nodes in self._steps]

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch that a run uses."""
        return self._program.arena_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, as this level reads them."""
        return self._program.weight_bytes

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel that runs each layer: the bits that it reads and how it goes about it, "w8a8 winograd".

        Kernels are chosen by a layer's shape and by the values of its weights: what is narrower than any kernel that
        pays for the layer runs on the next wider one.
        """
        return dict(self._program.layer_kernels)

    def run(self, x: Floats) -> Floats:
        """Return the outputs (N, ...) of images x (N, C, H, W), any N >= 1, both C-contiguous float32."""
        self._check(x, 1)
        return self._program.run(x, len(self._graph.shapes[self._graph.output]) == 1)

    def time(self, inputs: Floats, seconds: float) -> TimeSlice:
        """Run the R batches of inputs (R, batch, C, H, W) in turn until `seconds` have passed."""
        self._check(inputs, 2)
        return TimeSlice(*self._program.time(inputs, seconds))

    def profile(self, inputs: Floats, runs: int) -> list[tuple[str, float]]:
        """Return the mean seconds of every step in `runs` runs over inputs (R, batch, C, H, W).

        The first entry, "<input>", is the conversion of the input, the last, "<output>", that of the output.
        """
        self._check(inputs, 2)
        if runs < 1:
            raise BadInput(f"runs must be at least 1, got {runs}")
        return self._program.profile(inputs, runs)

    def run_tensors(self, x: Floats) -> dict[str, Floats]:
        """Return the value (N, ...) of every tensor that fusion leaves, as real numbers.

        Slow: for tests and inspection, which have no other view of what lies between layers.
        """
        self._check(x, 1)
        program, ids = self._compile([(node,) for node in self._stored.nodes])  # chains leave no tensors between layers
        names = {index: name for name, index in ids.items()}
        parts: dict[str, list[Floats]] = {name: [] for name in ids}
        for first in range(0, len(x), self.batch):
            for index, values in program.trace(x[first : first + self.batch]):
                parts[names[index]].append(values)
        whole = {name: np.concatenate(p).reshape(-1, *self._stored.shapes[name]) for name, p in parts.items()}
        return {name: values[:, : self._graph.shapes[name][0]] for name, values in whole.items()}

    def _check(self, x: Floats, leading: int) -> None:
        shape = self._graph.input_shape
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise BadInput("input must be a C-contiguous float32 array")
        wanted = ("N", *shape) if leading == 1 else ("R", self.batch, *shape)
        fits = x.ndim == len(wanted) and len(x) >= 1 and x.shape[leading:] == shape
        if not fits or (leading == 2 and x.shape[1] != self.batch):
            raise BadInput(f"input must have shape {wanted}, got {x.shape}")

    def _compile(self, steps: Sequence[Sequence[Node]]) -> tuple[_native.Program, dict[str, int]]:
        graph, shapes = self._stored, self._stored.shapes
        placement = place(graph, steps, shapes, self.batch)
        _check_memory(placement.total, self._memory_limit)
        program = _native.Program(self.level, self.threads, self.batch)
        if self._method is not None:
            program.want(self._method)
        ids = {}
        for name in [graph.input, *(node.name for node in graph.nodes)]:
            quant = graph.quant.get(name)
            c, h, w = shapes[name] if len(shapes[name]) == 3 else (shapes[name][0], 1, 1)
            stored = (False, 1.0, 0, 8) if quant is None else (True, quant.scale, quant.zero_point, quant.bits)
            ids[name] = program.add_tensor(c, h, w, placement.offsets.get(name, 0), *stored)
        for nodes in steps:
            for node in nodes:
                _ADDERS[node.kind](program, graph, ids, node)
            if len(nodes) > 1:
                program.chain(len(nodes), bands.WINDOW_BYTES)
            needed = placement.total + program.weight_bytes + program.scratch_bytes
            _check_memory(needed, self._memory_limit)
        program.finish(ids[graph.input], ids[graph.output], placement.total)
        return program, ids


def _number_of(method: str) -> int:
    if method not in methods():
        raise unknown_name("method", method, methods())
    return methods().index(method)


def _check_memory(needed: int, limit: int) -> None:
    if needed > limit:
        raise BadInput(f"the network needs {needed} bytes or more, its limit is {limit}: a smaller batch takes less")


_Adder = Callable[[_native.Program, Graph, dict[str, int], Node], None]


def _add_conv(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    weights = {name: np.ascontiguousarray(w) for name, w in node.weights.items()}
    weight = weights["weight"]
    kernel = weight.shape[2:] if node.kind == "conv2d" else (1, 1)
    a = node.attrs if node.kind == "conv2d" else {"stride": (1, 1), "dilation": (1, 1), "padding": (0,) * 4}
    geometry = [*kernel, *a["stride"], *a["dilation"], *a["padding"], a.get("groups", 1)]
    bias = weights.get("bias", np.zeros(len(weight), np.float32))
    residual = ids[node.inputs[1]] if len(node.inputs) == 2 else -1
    where = (node.name, ids[node.inputs[0]], ids[node.name], residual, geometry)
    activation = node.attrs["activation"]
    if is_integer(graph, node):
        p.add_conv_int(*where, weight, weights["weight_scale"], bias, activation)
    elif node.attrs["precision"] == "bf16":
        p.add_conv_bf16(*where, weight, bias, activation)
    else:
        p.add_conv_float(*where, weight, bias, activation)


def _add_convert(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_convert(node.name, ids[node.inputs[0]], ids[node.name], node.attrs.get("activation", "none"))


def _add_sum(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    a, b = node.inputs
    p.add_sum(node.name, ids[a], ids[b], ids[node.name], node.attrs["activation"])


def _add_mul(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    a, b = node.inputs
    p.add_mul(node.name, ids[a], ids[b], ids[node.name], graph.shapes[a] != graph.shapes[b])


def _add_norm(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    weight, bias = (np.ascontiguousarray(node.weights[name]) for name in ("weight", "bias"))
    p.add_layer_norm(node.name, ids[node.inputs[0]], ids[node.name], weight, bias, node.attrs["epsilon"])


def _add_prelu(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_prelu(node.name, ids[node.inputs[0]], ids[node.name], np.ascontiguousarray(node.weights["slope"]))


def _add_affine(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    channels = graph.shapes[node.name][0]
    weight = np.ascontiguousarray(node.weights.get("weight", np.ones(channels, np.float32)))
    bias = np.ascontiguousarray(node.weights.get("bias", np.zeros(channels, np.float32)))
    p.add_channel_affine(node.name, ids[node.inputs[0]], ids[node.name], weight, bias)


def _add_group_norm(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    weight, bias = (np.ascontiguousarray(node.weights[name]) for name in ("weight", "bias"))
    a = node.attrs
    p.add_group_norm(node.name, ids[node.inputs[0]], ids[node.name], weight, bias, a["groups"], a["epsilon"])


def _add_attention(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    query, key, value = (ids[name] for name in node.inputs)
    p.add_attention(node.name, query, key, value, ids[node.name], node.attrs["heads"], node.attrs["scale"])


def _add_tokens(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    features, length, _ = graph.shapes[node.name]
    constants = np.zeros((length, features), np.float32)
    prefix = node.weights.get("prefix", constants[:0])
    constants += node.weights.get("position", np.float32(0))
    constants[: len(prefix)] += prefix
    p.add_tokens(node.name, ids[node.inputs[0]], ids[node.name], constants)


def _add_concat(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_concat(node.name, [ids[name] for name in node.inputs], ids[node.name])


def _add_pool(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    kind = _POOLS[node.kind]
    if kind == "adaptive":
        geometry = [1, 1, 1, 1, 0, 0]
    else:
        geometry = [*node.attrs["kernel"], *node.attrs["stride"], *node.attrs["padding"][:2]]
    include_pad = node.attrs.get("count_include_pad", False)
    p.add_pool(node.name, ids[node.inputs[0]], ids[node.name], geometry, kind, include_pad)


_POOLS = {
    "max_pool2d": "max",
    "avg_pool2d": "average",
    "global_avg_pool2d": "adaptive",
    "adaptive_avg_pool2d": "adaptive",
}


def _add_flatten(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_flatten(node.name, ids[node.inputs[0]], ids[node.name])


def _add_map(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_channel_map(node.name, ids[node.inputs[0]], ids[node.name], node.attrs["index"])


def _add_subsample(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_subsample(node.name, ids[node.inputs[0]], ids[node.name], *node.attrs["stride"])


def _add_upsample(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    where = (node.name, ids[node.inputs[0]], ids[node.name])
    if node.attrs["mode"] == "nearest":
        p.add_nearest(*where)
    else:
        p.add_bilinear(*where, node.attrs["align_corners"])


def _add_depth_to_space(p: _native.Program, graph: Graph, ids: dict[str, int], node: Node) -> None:
    p.add_depth_to_space(node.name, ids[node.inputs[0]], ids[node.name], *node.attrs["block"], *node.attrs["crop"])


_ADDERS: dict[str, _Adder] = {
    "quantize": _add_convert,
    "conv2d": _add_conv,
    "linear": _add_conv,
    "activation": _add_convert,
    "add": _add_sum,
    "mul": _add_mul,
    "concat": _add_concat,
    "max_pool2d": _add_pool,
    "avg_pool2d": _add_pool,
    "global_avg_pool2d": _add_pool,
    "adaptive_avg_pool2d": _add_pool,
    "flatten": _add_flatten,
    "channel_map": _add_map,
    "subsample": _add_subsample,
    "layer_norm": _add_norm,
    "tokens": _add_tokens,
    "attention": _add_attention,
    "prelu": _add_prelu,
    "channel_affine": _add_affine,
    "group_norm": _add_group_norm,
    "upsample": _add_upsample,
    "depth_to_space": _add_depth_to_space,
}
