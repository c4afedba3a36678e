"""How fast single layers run, against what the processor can do at most."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.kernels import _native
from trimtab.kernels.graph import Graph, Node, Quant
from trimtab.kernels.levels import active_level, resolve_level
from trimtab.kernels.session import Session
from trimtab.kernels.validate import check_graph

__all__ = ["LAYERS", "Layer", "bench_kernels"]


@dataclass(frozen=True)
class Layer:
    """One layer to time: `kernel` 0 is a linear layer, `size` the height and width of its input."""

    name: str
    inputs: int
    outputs: int
    size: int
    kernel: int
    depthwise: bool = False
    batch: int = 1


LAYERS = (
    Layer("3x3 16-16 @32", 16, 16, 32, 3),
    Layer("3x3 32-32 @16", 32, 32, 16, 3),
    Layer("3x3 64-64 @8", 64, 64, 8, 3),
    Layer("3x3 64-64 @56", 64, 64, 56, 3),
    Layer("3x3 128-128 @28", 128, 128, 28, 3),
    Layer("3x3 256-256 @14", 256, 256, 14, 3),
    Layer("3x3 512-512 @7", 512, 512, 7, 3),
    Layer("1x1 256-64 @56", 256, 64, 56, 1),
    Layer("1x1 96-24 @56", 96, 24, 56, 1),
    Layer("depthwise 3x3 96 @112", 96, 96, 112, 3, depthwise=True),
    Layer("linear 1024-1024", 1024, 1024, 1, 0),
    Layer("linear 1024-1024, batch 64", 1024, 1024, 1, 0, batch=64),
    Layer("linear 4096-4096", 4096, 4096, 1, 0),
)


def bench_kernels(level: str | None = None, threads: int = 1, seconds: float = 0.3) -> list[dict[str, Any]]:
    """Time every layer of LAYERS in float32 and int8, about `seconds` each.

    Every row has `layer`, `kind` ("float32" or "int8"), `level`, `threads`, `ms` (median of one run of the layer
    alone), `mmac` (million multiply-accumulates), `gmac_per_s`, `bytes` (weights, inputs and outputs as stored),
    `gbyte_per_s`, `peak_gmac_per_s` and `stream_gbyte_per_s` (measured on one thread), and `compute_fraction` and
    `bandwidth_fraction` of those peaks, times the threads. Raises BadInput for a level that this machine lacks.
    """
    if seconds <= 0:
        raise BadInput(f"seconds must be positive, got {seconds}")
    level = active_level() if level is None else resolve_level(level)
    peaks = {"float32": _native.peak_float(level, 0.1), "int8": _native.peak_int(level, 0.1)}
    stream = _native.stream_rate(level, 1 << 26, 0.1)
    return [
        _row(layer, kind, peaks[kind], stream, level, threads, seconds)
        for layer in LAYERS
        for kind in ("float32", "int8")
    ]


def _graph(layer: Layer, integer: bool, rng: np.random.Generator) -> Graph:
    inputs = 1 if layer.depthwise else layer.inputs
    shape = (layer.outputs, inputs, layer.kernel, layer.kernel) if layer.kernel else (layer.outputs, inputs)
    weights: dict[str, np.ndarray[Any, Any]]
    if integer:
        scale = np.full(layer.outputs, 0.01 / prod(shape[1:]) ** 0.5, np.float32)
        weights = {"weight": rng.integers(-127, 128, shape, dtype=np.int8), "weight_scale": scale}
    else:
        weights = {"weight": (rng.standard_normal(shape) / prod(shape[1:]) ** 0.5).astype(np.float32)}
    attrs: dict[str, Any] = {"activation": "relu"}
    if layer.kernel:
        attrs |= {"padding": (layer.kernel // 2,) * 4, "groups": layer.inputs if layer.depthwise else 1}
    node = Node("conv2d" if layer.kernel else "linear", "layer", ("x",), attrs, weights)
    image = (layer.inputs, layer.size, layer.size) if layer.kernel else (layer.inputs,)
    quant = {"x": Quant(0.02, 128), "layer": Quant(0.02, 0)} if integer else {}
    return Graph("x", image, (node,), "layer", quant)


def _row(
    layer: Layer, kind: str, peak: float, stream: float, level: str, threads: int, seconds: float
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    graph, shapes = check_graph(_graph(layer, kind == "int8", rng))
    session = Session(graph, threads=threads, batch=layer.batch, level=level)
    x = rng.standard_normal((2, layer.batch, *graph.input_shape), dtype=np.float32)
    elapsed = _median_seconds(session, x, seconds)
    weight = graph.nodes[0].weights["weight"]
    macs = prod(shapes["layer"]) * prod(weight.shape[1:]) * layer.batch
    element = 1 if kind == "int8" else 4
    moved = weight.nbytes + element * layer.batch * (prod(shapes["x"]) + prod(shapes["layer"]))
    return {
        "layer": layer.name,
        "kind": kind,
        "level": level,
        "threads": threads,
        "ms": elapsed * 1e3,
        "mmac": macs / 1e6,
        "gmac_per_s": macs / elapsed / 1e9,
        "bytes": moved,
        "gbyte_per_s": moved / elapsed / 1e9,
        "peak_gmac_per_s": peak / 1e9,
        "stream_gbyte_per_s": stream / 1e9,
        "compute_fraction": macs / elapsed / (peak * threads),
        "bandwidth_fraction": moved / elapsed / (stream * threads),
    }


def _median_seconds(session: Session, x: np.ndarray[Any, np.dtype[np.float32]], seconds: float) -> float:
    """Return the median over slices of the layer's own mean time, without the conversions around it."""
    once = session.time(x, 0.0).seconds
    slices = 15
    runs = max(1, int(seconds / slices / max(once, 1e-7)))
    return median(session.profile(x, runs)[1][1] for _ in range(slices))
