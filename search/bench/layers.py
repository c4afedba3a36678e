"""Single layers: every number format against the roofline, and int8 against other engines."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
import onnx

from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.base import Engine, EngineSession, Images, TimeSlice
from trimtab.evaluators.engines.onnx_model import to_onnx
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.rounds import Rounds, interleave
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.graph import Graph, Node, Quant
from trimtab.kernels.roofline import Roofline, beyond_caches, cache_sizes, measure_roofline, stream_rate
from trimtab.kernels.session import Session
from trimtab.search.bench.child import run_in_child
from trimtab.search.bench.networks import exact_products
from trimtab.search.bench.rows import empty_network, named

__all__ = ["KINDS", "LAYERS", "Kind", "Layer", "bench_kernels", "layer_rows"]


@dataclass(frozen=True)
class Layer:
    """One layer to time: `kernel` 0 is a linear layer, `size` the height and width of its input.

    A `cold` one is many of the same shape in a row, whose weights together exceed the last cache: each layer's come
    from main memory.
    """

    name: str
    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    batch: int = 1
    cold: bool = False


@dataclass(frozen=True)
class Kind:
    """The storage of a layer: bits of its weights and of its input and output; 32 is float32."""

    name: str
    w_bits: int
    a_bits: int


LAYERS = (
    Layer("3x3 16-16 @32", 16, 16, 32, 3),
    Layer("3x3 32-32 @16", 32, 32, 16, 3),
    Layer("3x3 64-64 @8", 64, 64, 8, 3),
    Layer("3x3 64-64 @56", 64, 64, 56, 3),
    Layer("3x3 64-128 @56 /2", 64, 128, 56, 3, stride=2),
    Layer("3x3 128-128 @28", 128, 128, 28, 3),
    Layer("3x3 128-256 @28 /2", 128, 256, 28, 3, stride=2),
    Layer("3x3 256-256 @14", 256, 256, 14, 3),
    Layer("3x3 256-512 @14 /2", 256, 512, 14, 3, stride=2),
    Layer("3x3 512-512 @7", 512, 512, 7, 3),
    Layer("1x1 256-64 @56", 256, 64, 56, 1),
    Layer("1x1 96-24 @56", 96, 24, 56, 1),
    Layer("depthwise 3x3 96 @112", 96, 96, 112, 3, depthwise=True),
    Layer("linear 1024-1024", 1024, 1024, 1, 0),
    Layer("linear 1024-1024, batch 64", 1024, 1024, 1, 0, batch=64),
    Layer("linear 4096-4096, cold", 4096, 4096, 1, 0, cold=True),
)

FLOAT, INT8 = Kind("fp32", 32, 32), Kind("w8a8", 8, 8)
KINDS = (FLOAT, INT8, *(Kind(f"w{w}a{a}", w, a) for w, a in ((4, 8), (2, 8), (1, 8), (1, 2), (1, 1))))

#: Integers that weights of fewer bits than 8 take: the engine sees how many there are.
FEW_VALUES = {4: tuple(range(-8, 8)), 2: (-2, -1, 0, 1), 1: (-1, 1)}

#: Cold weights take so many sizes of the last cache.
COLD_CACHES = 3

#: Fewer images than a second cache holds, so that the input is as hot as it is inside a network.
ROTATED = 2

#: Seconds that a layer takes at least.
SHORTEST = 1e-9


def bench_kernels(
    layers: str, engines: Sequence[str], threads: Sequence[int], seconds: float, level: str | None
) -> list[dict[str, Any]]:
    """Time the LAYERS whose name contains `layers` on the native engine in every kind that pays anywhere, and on the
    other `engines` in fp32 and int8.

    A row is a layer in one kind (bits of weights and activations): `layer`, `kind`, `threads`, `level`, `ms` with its
    interval (one run of the layer alone), `mmac` (million multiply-accumulates), `gmac_per_s`, `bytes` (weights, input
    and output, in the bits that they need), `gbyte_per_s`, `roofline_gmac_per_s` and `roofline` (the share of it that
    is reached; above 1 where fewer products are computed than are counted, as Winograd's kernels do), and three
    speed-ups with intervals, medians of the ratios in each round: `int8_speedup` over the native w8a8, `speedup` over
    the fastest other engine, `best_other`, and `exact_speedup` over the fastest whose integer products are exact
    (`exact_products`). Against narrow kinds the others run int8. `others_ms` is what they take: a whole call, from
    uint8 to uint8 where the kind is an integer one, less their call of an empty network.
    """
    if not any(layers in layer.name for layer in LAYERS):
        raise unknown_name("layer", layers, [layer.name for layer in LAYERS])
    if "native" not in engines:
        raise BadInput("kernels are compared with the native engine's: name it among the engines")
    options = {"layers": layers, "engines": list(engines), "seconds": seconds}
    return [row for count in threads for row in run_in_child(layer_rows, count, level, options)]


def layer_rows(
    layers: str, engines: Sequence[str], threads: int, seconds: float, level: str | None
) -> list[dict[str, Any]]:
    """Return the rows, measured in this process."""
    with timing_slot(threads, pools=True):
        roofline = measure_roofline(level, threads)
    rivals = [_Rival.of(name, threads) for name in engines if name != "native"]
    return [row for layer in LAYERS if layers in layer.name for row in _rows(layer, rivals, roofline, seconds)]


@dataclass(frozen=True)
class _Rival:
    """Another engine; `load` compiles an ONNX model for a batch."""

    name: str
    engine: Engine
    load: Callable[[bytes, int], EngineSession]
    exact: bool

    @staticmethod
    def of(name: str, threads: int) -> _Rival:
        engine = make_engine(name, threads)
        compile_model = getattr(engine, "load", None)
        if compile_model is None:
            raise BadInput(f"single layers are compared as ONNX models on uint8, which the engine {name} does not run")
        return _Rival(name, engine, compile_model, exact_products(engine))


def kinds_of(layer: Layer) -> tuple[Kind, ...]:
    """Return the kinds that are timed: all for dense 3x3 convolutions, narrow weights for cold linear layers."""
    if layer.cold:
        return tuple(kind for kind in KINDS if kind.a_bits >= 8)
    return KINDS if layer.kernel == 3 and not layer.depthwise else (FLOAT, INT8)


def layer_graph(layer: Layer, kind: Kind, copies: int = 1) -> Graph:
    """Return a layer, or several in a row, with random weights and scales that keep activations spread."""
    rng = np.random.default_rng(0)
    fan_in = 1 if layer.depthwise else layer.inputs
    shape = (layer.outputs, fan_in, layer.kernel, layer.kernel) if layer.kernel else (layer.outputs, fan_in)
    attrs: dict[str, Any] = {}
    if layer.kernel:
        attrs = {"padding": (layer.kernel // 2,) * 4, "stride": (layer.stride,) * 2}
        attrs["groups"] = layer.inputs if layer.depthwise else 1
    weights: dict[str, np.ndarray[Any, Any]]
    if kind == FLOAT:
        weights = {"weight": (rng.standard_normal(shape) / prod(shape[1:]) ** 0.5).astype(np.float32)}
    else:
        largest = 2 ** (kind.w_bits - 1) - 1
        values = np.array(FEW_VALUES.get(kind.w_bits, range(-largest, largest + 1)))
        scale = 1 / (values.std() * prod(shape[1:]) ** 0.5)
        weight = rng.choice(values, shape).astype(np.int8)
        weights = {"weight": weight, "weight_scale": np.full(layer.outputs, scale, np.float32)}
    image = (layer.inputs, layer.size, layer.size) if layer.kernel else (layer.inputs,)
    names = ["x", *(f"layer{i}" for i in range(copies))]
    nodes = [
        Node("conv2d" if layer.kernel else "linear", name, (source,), attrs, weights)
        for source, name in pairwise(names)
    ]
    # Values of a standard deviation of about 1, spread over all of the integers.
    top = (1 << kind.a_bits) - 1
    quant = Quant(4 / (top + 1), (top + 1) // 2, kind.a_bits)
    return Graph("x", image, tuple(nodes), names[-1], {} if kind == FLOAT else dict.fromkeys(names, quant))


class LayerTimer:
    """Times a program's layers alone, without the conversions around them: seconds are those of one layer."""

    def __init__(self, graph: Graph, threads: int, batch: int, method: str | None = None) -> None:
        self.session = Session(graph, threads=threads, batch=batch, method=method)
        self.layers = len(graph.nodes)

    def run(self, x: Images) -> Images:
        """Return the output for (N, C, H, W)."""
        return self.session.run(x)

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Time runs on inputs (R, batch, C, H, W)."""
        once = self.session.time(inputs, 0.0).seconds
        runs = max(1, int(seconds / once))
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        steps = self.session.profile(inputs, runs)[1:-1]
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - switches
        return TimeSlice(runs, runs * sum(each for _, each in steps) / self.layers, switches)


class StreamTimer:
    """Times reading main memory: seconds are those of one byte."""

    def __init__(self, level: str, threads: int) -> None:
        self.level, self.threads = level, threads

    def run(self, x: Images) -> Images:
        """Return the input."""
        return x

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Time at least one pass."""
        return TimeSlice(1, 1 / stream_rate(self.level, beyond_caches(), seconds, self.threads), 0)


def layer_model(graph: Graph) -> bytes:
    """Return a layer as an ONNX model; where it computes in integers, input and output are uint8."""
    model = to_onnx(graph)
    if graph.quant:
        _open_ends(model.graph)
        onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _open_ends(graph: onnx.GraphProto) -> None:
    """Drop the quantisation of the input and the dequantisation of the output."""
    first = next(node for node in graph.node if graph.input[0].name in node.input)
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    graph.input[0].name, graph.output[0].name = first.output[0], last.input[0]
    for end in (graph.input[0], graph.output[0]):
        end.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in (first, last):
        graph.node.remove(node)


class _Timed(NamedTuple):
    """A timed pair: a kind on an engine; no kind is the empty network."""

    kind: Kind | None
    engine: str


_STREAM = _Timed(None, "main memory")


@dataclass(frozen=True)
class _Found:
    """The rounds of all that was timed, in the order of `timed`, the others' without their calls."""

    timed: list[_Timed]
    rounds: Rounds

    @staticmethod
    def of(timed: list[_Timed], rounds: Rounds) -> _Found:
        seconds = rounds.seconds.copy()
        for index, what in enumerate(timed):
            if what.kind is not None and what.engine != "native":
                call = rounds.time(timed.index(_Timed(None, what.engine))).middle
                # A slice may be shorter than the usual call, but nothing takes no time.
                seconds[:, index] = np.maximum(seconds[:, index] - call, SHORTEST)
        return _Found(timed, Rounds(seconds, rounds.interrupted))

    def time(self, what: _Timed) -> Interval:
        return self.rounds.time(self.timed.index(what))

    def speedup(self, what: _Timed, over: _Timed | None) -> Interval | None:
        return None if over is None else self.rounds.ratio(self.timed.index(over), self.timed.index(what))


def _rows(layer: Layer, rivals: Sequence[_Rival], roofline: Roofline, seconds: float) -> list[dict[str, Any]]:
    timed: dict[_Timed, tuple[EngineSession, Images]] = {}
    rng = np.random.default_rng(1)
    for kind in kinds_of(layer):
        graph = layer_graph(layer, kind, _copies(layer, kind))
        x = rng.standard_normal((ROTATED, layer.batch, *graph.input_shape), dtype=np.float32)
        timed[_Timed(kind, "native")] = (LayerTimer(graph, roofline.threads, layer.batch), x)
        if kind in (FLOAT, INT8) and not layer.cold:
            given: Any = rng.integers(0, 256, x.shape, dtype=np.uint8) if kind == INT8 else x
            model = layer_model(graph)
            timed |= {_Timed(kind, rival.name): (rival.load(model, layer.batch), given) for rival in rivals}
    nothing = np.zeros((1, 1, 1), np.float32)
    if layer.cold:
        timed[_STREAM] = (StreamTimer(roofline.level, roofline.threads), nothing)
    timed |= {_Timed(None, rival.name): (rival.engine.compile(empty_network()), nothing) for rival in rivals}
    with timing_slot(roofline.threads, pools=True):
        found = _Found.of(list(timed), interleave(list(timed.values()), seconds, roofline.threads))
    exact = {rival.name: rival.exact for rival in rivals}
    return [_row(layer, kind, found, exact, roofline) for kind in kinds_of(layer)]


def _row(layer: Layer, kind: Kind, found: _Found, exact: Mapping[str, bool], roofline: Roofline) -> dict[str, Any]:
    this = _Timed(kind, "native")
    time = found.time(this)
    macs, moved = work_of(layer, kind)
    # Main memory is shared with others: its rate is that of the same rounds.
    rate = 1 / found.time(_STREAM).middle if layer.cold else None
    attainable = roofline.attainable(macs, moved, kind != FLOAT, rate)
    others = [t for t in found.timed if t.engine != "native" and t.kind == (FLOAT if kind == FLOAT else INT8)]
    best = min(others, key=found.time, default=None)
    best_exact = min((t for t in others if kind == FLOAT or exact[t.engine]), key=found.time, default=None)
    int8 = None if kind in (FLOAT, INT8) else _Timed(INT8, "native")
    return {
        "layer": layer.name,
        "kind": kind.name,
        "threads": roofline.threads,
        "level": roofline.level,
        **named("ms", time, 1e3),
        "mmac": macs / 1e6,
        "gmac_per_s": macs / time.middle / 1e9,
        "bytes": moved,
        "gbyte_per_s": moved / time.middle / 1e9,
        "roofline_gmac_per_s": attainable / 1e9,
        "roofline": macs / time.middle / attainable,
        **named("int8_speedup", found.speedup(this, int8)),
        "best_other": None if best is None else best.engine,
        **named("speedup", found.speedup(this, best)),
        **named("exact_speedup", found.speedup(this, best_exact)),
        "others_ms": {t.engine: found.time(t).middle * 1e3 for t in others if t.kind == kind} or None,
    }


def work_of(layer: Layer, kind: Kind) -> tuple[int, int]:
    """Return multiply-accumulates, and bytes of weights, input and output, of one run of the layer."""
    fan_in = (1 if layer.depthwise else layer.inputs) * max(layer.kernel, 1) ** 2
    pixels, results = layer.size**2, ceil(layer.size / layer.stride) ** 2
    macs = layer.batch * results * layer.outputs * fan_in
    activations = layer.batch * (layer.inputs * pixels + layer.outputs * results)
    # Activations of fewer bits still take one byte each.
    return macs, layer.outputs * fan_in * kind.w_bits // 8 + activations * max(kind.a_bits, 8) // 8


def _copies(layer: Layer, kind: Kind) -> int:
    if not layer.cold:
        return 1
    return ceil(COLD_CACHES * cache_sizes()[1] / (layer.inputs * layer.outputs * kind.w_bits / 8))
