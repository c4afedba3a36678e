"""The timing loop of engines that are driven from Python, and their way of pricing a layer by a small program."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import TypeVar

import numpy as np

from trimtab.errors import BadInput
from trimtab.evaluators.engines.base import Engine, TimeSlice
from trimtab.evaluators.engines.onnx_model import product_name
from trimtab.graph import Graph

__all__ = ["small_program_seconds", "time_runs"]

T = TypeVar("T")

LAYER_SLICES = 7

#: Range of what a layer computes before its residual, where it is timed alone: the time does not depend on it.
LAYER_RANGE = (-4.0, 4.0)


def time_runs(run: Callable[[T], object], inputs: Iterable[T], seconds: float) -> TimeSlice:
    """Call `run` on the inputs in rotation until `seconds` have passed, at least once."""
    rotated = cycle(inputs)
    clock = time.perf_counter_ns
    runs = 0
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    start = clock()
    end, now = start + round(seconds * 1e9), start
    while now < end or not runs:
        run(next(rotated))
        runs += 1
        now = clock()
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - switches
    return TimeSlice(runs, (now - start) / 1e9, switches)


def small_program_seconds(engine: Engine, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
    """Time a whole small program in place of its layer, for engines that leave no layer that could be told apart."""
    if layer not in {node.name for node in graph.nodes}:
        raise BadInput(f"the program has no layer {layer!r}")
    # As inside a network that is compiled with ranges, where a residual is added to a rounded result.
    session = engine.compile(graph, ranges={product_name(layer): LAYER_RANGE})
    inputs = np.random.default_rng(0).normal(size=(4, 1, *graph.input_shape)).astype(np.float32)
    session.time(inputs, seconds / 2)
    slices = [session.time(inputs, seconds) for _ in range(LAYER_SLICES)]
    return [piece.seconds / piece.runs for piece in slices]
