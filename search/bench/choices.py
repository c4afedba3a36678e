"""The kernels that could run a layer, in turn: whether the one that is chosen is the quickest, at a kernel level.

The constants of `kernels/native/conv.cpp` are held to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.errors import unknown_name
from trimtab.evaluators.engines.base import EngineSession, Images
from trimtab.evaluators.measure.rounds import interleave
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.graph import Graph
from trimtab.kernels import methods
from trimtab.search.bench.child import run_in_child
from trimtab.search.bench.layers import FLOAT, Kind, Layer, LayerTimer, layer_graph
from trimtab.search.bench.rows import named

__all__ = ["bench_choices", "choice_rows"]

#: Number formats by the name that the command takes, and layers: channels and sides of images as in networks for small
#: and for large images.
KINDS = {
    "fp32": FLOAT,
    **{f"{w}/{a}": Kind(f"w{w}a{a}", w, a) for w, a in ((8, 8), (7, 7), (6, 8), (5, 8), (4, 8), (2, 8))},
}
SIDES = {8: 32, 12: 32, 16: 32, 24: 16, 32: 16, 48: 16, 64: 14, 128: 14, 256: 14, 512: 7}
LAYERS = tuple(
    Layer(f"{name} {channels}@{side}", channels, channels, side, kernel, stride)
    for name, kernel, stride in (("1x1", 1, 1), ("3x3", 3, 1), ("3x3/2", 3, 2))
    for channels, side in SIDES.items()
)

#: Shares of the input channels whose weights are all zero.
ZEROS = (0.0, 0.125, 0.5)


def bench_choices(layers: str, forms: Sequence[str], seconds: float, level: str | None) -> list[dict[str, Any]]:
    """Time every layer, in every form, by every method that it can run by, in a process held to a level.

    A row has `layer`, `form`, `zeros`, `chosen` and `best`, the kernels' names, and `lost`: the time of what is chosen
    over that of the best, with its interval.
    """
    for form in forms:
        if form not in KINDS:
            raise unknown_name("form", form, KINDS)
    options = {"layers": layers, "forms": list(forms), "seconds": seconds}
    return run_in_child(choice_rows, 1, level, options)


def choice_rows(
    layers: str, forms: Sequence[str], threads: int, seconds: float, level: str | None
) -> list[dict[str, Any]]:
    """Return the rows, measured in this process."""
    return [
        {"layer": layer.name, "form": form, "zeros": zeros, **_choice(layer, KINDS[form], zeros, seconds)}
        for layer in LAYERS
        if layers in layer.name
        for form in forms
        for zeros in ZEROS
    ]


def _choice(layer: Layer, kind: Kind, zeros: float, seconds: float) -> dict[str, Any]:
    graph = _with_zeros(layer_graph(layer, kind), zeros)
    name = graph.nodes[0].name
    found: dict[str, LayerTimer] = {}  # by kernel, what is chosen first
    for method in (None, *methods()):
        timer = LayerTimer(graph, 1, 1, method)
        found.setdefault(timer.session.kernels[name], timer)
    x = np.random.default_rng(0).normal(size=(4, 1, *graph.input_shape)).astype(np.float32)
    timed: list[tuple[EngineSession, Images]] = [(timer, x) for timer in found.values()]
    with timing_slot(1):
        rounds = interleave(timed, seconds)
    times = [rounds.time(i).middle for i in range(len(timed))]
    best = int(np.argmin(times))
    return {"chosen": next(iter(found)), "best": list(found)[best], **named("lost", rounds.ratio(0, best))}


def _with_zeros(graph: Graph, share: float) -> Graph:
    node = graph.nodes[0]
    weight = node.weight.copy()
    inputs = weight.shape[1]
    weight[:, np.random.default_rng(1).permutation(inputs)[: round(share * inputs)]] = 0
    return replace(graph, nodes=(node.with_weights(weight=weight),))
