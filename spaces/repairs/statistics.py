"""Statistics of the untouched network's layers on calibration images: all that compressing one on its own needs.

A dense layer is linear, so the covariance of its inputs says what every change of its weights does to its outputs, and
how well the inputs that are left can make up for those that are gone: no image has to be looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from trimtab.graph import Array, Graph, Node
from trimtab.spaces.channels.criteria import BATCH, drawn_loss
from trimtab.spaces.execute import layer_gradients, run
from trimtab.spaces.numbers.formats import ACTIVATION_BITS
from trimtab.spaces.numbers.ranges import note_ranges
from trimtab.spaces.repairs.reconstruct import draw_positions, receptive_fields

__all__ = ["LayerStatistics", "NetworkRanges", "layer_statistics", "network_ranges"]

#: Receptive fields that are kept of every layer, for the ranges of tensors inside a factorised layer.
KEPT_FIELDS = 256


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """A layer's inputs are the receptive fields of its outputs: I = channels * kh * kw, in G groups.

    `mean` (I,) and `covariance` (G, I/G, I/G) are float64, and so is `cross` (O, I/G), the covariance of each output
    with the inputs of its group. `sensitivity` (O,) turns a mean squared error of an output channel into an expected
    increase of the loss, in nats per image: half the sum over positions of the mean squared gradient, the diagonal of
    Fisher's information. `fields` (KEPT_FIELDS or fewer, I) are some inputs, float32.
    """

    mean: Array
    covariance: Array
    cross: Array
    sensitivity: Array
    fields: Array


@dataclass(frozen=True, eq=False)
class NetworkRanges:
    """Every tensor's (low, high) on the calibration images, and, by bits, what of it so many bits are to store."""

    whole: Mapping[str, tuple[float, float]]
    stored: Mapping[int, Mapping[str, tuple[float, float]]]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"whole": dict(self.whole), "stored": {str(bits): dict(r) for bits, r in self.stored.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkRanges:
        """Read what `to_json` wrote."""

        def pairs(ranges: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
            return {name: (low, high) for name, (low, high) in ranges.items()}

        return cls(pairs(data["whole"]), {int(bits): pairs(ranges) for bits, ranges in data["stored"].items()})


def network_ranges(network: Graph, images: Tensor, method: str) -> NetworkRanges:
    """Return the ranges of every tensor for images (N, C, H, W), chosen by one of `numbers.ranges.RANGES`."""
    whole: dict[str, tuple[float, float]] = {}
    stored: dict[int, dict[str, tuple[float, float]]] = {bits: {} for bits in ACTIVATION_BITS}

    def note(tensor: str, values: Tensor) -> None:
        note_ranges(tensor, values, whole, stored, method)

    note(network.input, images)
    run(network, images, lambda op, y: note(op.name, y))
    return NetworkRanges(whole, stored)


def layer_statistics(network: Graph, images: Tensor, seed: int = 0) -> dict[str, LayerStatistics]:
    """Return every layer's statistics on images (N, C, H, W)."""
    sensitivity = _sensitivities(network, images, seed)
    found: dict[str, LayerStatistics] = {}

    def observe_reader(op: Node, x: Tensor) -> None:
        places = draw_positions(op, (len(x), *network.shapes[op.name]), seed)
        fields = receptive_fields(op, x, places)
        mean, covariance = _moments(fields, op.groups)
        step = max(1, len(fields) // KEPT_FIELDS)
        kept = fields[::step][:KEPT_FIELDS].numpy().copy()
        weight = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1).astype(np.float64)
        cross = (weight @ covariance).reshape(len(op.weight), -1)
        found[op.name] = LayerStatistics(mean, covariance, cross, sensitivity[op.name], kept)

    def observe(tensor: str, values: Tensor) -> None:
        for op in network.readers(tensor):
            if op.is_layer:
                observe_reader(op, values)

    observe(network.input, images)
    run(network, images, lambda op, y: observe(op.name, y))
    return found


def _moments(fields: Tensor, groups: int) -> tuple[Array, Array]:
    """Mean (I,) and covariance (G, I/G, I/G) of receptive fields (S, I)."""
    mean = fields.double().mean(0)
    grouped = (fields - mean.float()).reshape(len(fields), groups, -1).transpose(0, 1).double()
    return mean.numpy(), (grouped.mT @ grouped / len(fields)).numpy()


def _sensitivities(network: Graph, images: Tensor, seed: int) -> dict[str, Array]:
    """Fisher's information: gradients for classes drawn from the network's own predictions."""
    loss = drawn_loss(seed)
    total = {op.name: np.zeros(network.shapes[op.name][0]) for op in network.layers}
    for start in range(0, len(images), BATCH):
        for name, at in layer_gradients(network, images[start : start + BATCH], loss).items():
            squares = at.gradient.double().square()
            total[name] += squares.sum((0, *range(2, squares.ndim))).numpy()
    return {name: value / (2 * len(images)) for name, value in total.items()}
