"""Factorisations: what layers replace a layer, from shapes alone, and their weights.

Every factorisation is one contraction of its factors to the dense weight, `equation`, in the indices o and i (output
and input channels), y and x (the kernel's rows and columns) and r, p, q (ranks). The factors stand in the order of the
layers that hold them, each laid out as that layer's weight, so that a reshape turns the one into the other. A linear
layer's kernel is 1 x 1 here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from trimtab.graph import Array
from trimtab.spaces.factorisation import decompose
from trimtab.spaces.factorisation.geometry import Geometry, total_macs

__all__ = ["FACTORISATIONS", "Factorisation", "compose", "parts_of", "pays"]


class Factorisation(ABC):
    """One way to write a dense layer as several layers that follow each other."""

    name: ClassVar[str]
    equation: ClassVar[str]
    #: What layers it takes, for messages.
    needs: ClassVar[str]

    @abstractmethod
    def applies(self, layer: Geometry) -> bool:
        """Whether a layer can be factorised so."""

    @abstractmethod
    def full_rank(self, layer: Geometry) -> int:
        """Return the rank at which every weight of this shape is reproduced, and the largest allowed."""

    def rank_at(self, layer: Geometry, fraction: float) -> int:
        """Return the rank that is this fraction of the full one."""
        return max(1, round(fraction * self.full_rank(layer)))

    @abstractmethod
    def layers(self, layer: Geometry, rank: int) -> tuple[Geometry, ...]:
        """Return the layers that replace a layer, first to last; together they have its stride and padding."""

    @abstractmethod
    def factors(self, weight: Array, rank: int) -> list[Array]:
        """Return the factors, in float64, of a weight (O, I, kh, kw) in float64: nearest to it, or nearly so."""


class Svd(Factorisation):
    """Kernel and stride to `rank` channels, then 1x1: the truncated singular value decomposition of (O, I * kh * kw).

    The nearest of that rank (Eckart and Young 1936; for networks, Denton et al. 2014, arXiv:1404.0736).
    """

    name = "svd"
    equation = "riyx,or->oiyx"
    needs = "only dense convolutions and linear layers can"

    def applies(self, layer: Geometry) -> bool:
        return layer.groups == 1

    def full_rank(self, layer: Geometry) -> int:
        return min(layer.outputs, layer.weights // layer.outputs)

    def layers(self, layer: Geometry, rank: int) -> tuple[Geometry, ...]:
        return replace(layer, outputs=rank), _pointwise(layer, rank, layer.outputs)

    def factors(self, weight: Array, rank: int) -> list[Array]:
        left, right = decompose.truncated_svd(weight.reshape(len(weight), -1), rank)
        return [right.reshape(rank, *weight.shape[1:]), left]


class Spatial(Factorisation):
    """kh x 1 to `rank` channels, then 1 x kw (Jaderberg et al. 2014, arXiv:1405.3866, scheme 2), each with its part of
    stride and padding: the truncated singular value decomposition of (I * kh, O * kw), which is the nearest."""

    name = "spatial"
    equation = "riy,orx->oiyx"
    needs = "only dense convolutions with a kernel of several rows and columns can"

    def applies(self, layer: Geometry) -> bool:
        return layer.groups == 1 and min(layer.kernel, default=1) > 1

    def full_rank(self, layer: Geometry) -> int:
        return min(layer.inputs * layer.kernel[0], layer.outputs * layer.kernel[1])

    def layers(self, layer: Geometry, rank: int) -> tuple[Geometry, ...]:
        return replace(_rows(layer), outputs=rank), replace(_columns(layer), inputs=rank)

    def factors(self, weight: Array, rank: int) -> list[Array]:
        outputs, inputs, height, width = weight.shape
        matrix = weight.transpose(1, 2, 0, 3).reshape(inputs * height, outputs * width)
        left, right = decompose.truncated_svd(matrix, rank)
        across = right.reshape(rank, outputs, width).transpose(1, 0, 2)
        return [left.T.reshape(rank, inputs, height), across]


class Tucker(Factorisation):
    """1x1, a kernel between fewer channels, 1x1: Tucker-2 (Kim et al. 2016, arXiv:1511.06530, section 3.1).

    `rank` counts the core's output channels; its input channels are the same share of the layer's.
    """

    name = "tucker"
    equation = "pi,qpyx,oq->oiyx"
    needs = "only dense convolutions with a kernel larger than 1x1 can"

    def applies(self, layer: Geometry) -> bool:
        return layer.groups == 1 and layer.taps > 1

    def full_rank(self, layer: Geometry) -> int:
        return min(layer.outputs, layer.inputs * layer.taps)

    def layers(self, layer: Geometry, rank: int) -> tuple[Geometry, ...]:
        inner = self.input_rank(layer, rank)
        core = replace(layer, inputs=inner, outputs=rank)
        return _pointwise(layer, layer.inputs, inner), core, _pointwise(layer, rank, layer.outputs)

    def input_rank(self, layer: Geometry, rank: int) -> int:
        """Return the input channels of the core."""
        most = min(layer.inputs, layer.outputs * layer.taps)
        return math.ceil(rank * most / self.full_rank(layer))

    def factors(self, weight: Array, rank: int) -> list[Array]:
        layer = Geometry(weight.shape[1], weight.shape[0], weight.shape[2:])
        return list(decompose.tucker2(weight, rank, self.input_rank(layer, rank)))


class Cp(Factorisation):
    """1x1 to `rank` channels, depthwise kh x 1, depthwise 1 x kw, 1x1 (Lebedev et al. 2015, arXiv:1412.6553)."""

    name = "cp"
    equation = "ri,ry,rx,or->oiyx"
    needs = "only dense convolutions with a kernel of several rows and columns can"

    def applies(self, layer: Geometry) -> bool:
        return layer.groups == 1 and min(layer.kernel, default=1) > 1

    def full_rank(self, layer: Geometry) -> int:
        return layer.weights // max(layer.inputs, layer.outputs, *layer.kernel)

    def layers(self, layer: Geometry, rank: int) -> tuple[Geometry, ...]:
        inner = replace(layer, inputs=rank, outputs=rank, groups=rank)
        first, last = _pointwise(layer, layer.inputs, rank), _pointwise(layer, rank, layer.outputs)
        return first, _rows(inner), _columns(inner), last

    def factors(self, weight: Array, rank: int) -> list[Array]:
        return list(decompose.cp(weight, rank))


#: By the name that decisions give.
FACTORISATIONS: Mapping[str, Factorisation] = {each.name: each for each in (Svd(), Spatial(), Tucker(), Cp())}


def parts_of(layer: Geometry, factorisation: str, rank: int | None) -> tuple[Geometry, ...]:
    """Return what a layer is executed as: the layers of its factors, or (no rank) itself."""
    return (layer,) if rank is None else FACTORISATIONS[factorisation].layers(layer, rank)


def pays(layer: Geometry, factorisation: str, rank: int, in_shape: tuple[int, ...]) -> bool:
    """Whether the factors have fewer weights than the layer and, on an input (C, H, W) or (F,), fewer MACs.

    Where a stride comes after some of the factors, they work on more pixels than the layer does.
    """
    parts = parts_of(layer, factorisation, rank)
    return sum(part.weights for part in parts) < layer.weights and total_macs(parts, in_shape) < layer.macs(in_shape)


def compose(factorisation: str, factors: Sequence[Array]) -> Array:
    """Return the dense weight (O, I, kh, kw) that factors stand for."""
    dense: Array = np.einsum(FACTORISATIONS[factorisation].equation, *factors, optimize="optimal")
    return dense


def _pointwise(layer: Geometry, inputs: int, outputs: int) -> Geometry:
    return Geometry(inputs, outputs, (1, 1) if layer.kernel else ())


def _rows(layer: Geometry) -> Geometry:
    """The layer's kernel, stride, padding and dilation along the rows."""
    top, _, bottom, _ = layer.padding
    return replace(
        layer,
        kernel=(layer.kernel[0], 1),
        stride=(layer.stride[0], 1),
        padding=(top, 0, bottom, 0),
        dilation=(layer.dilation[0], 1),
    )


def _columns(layer: Geometry) -> Geometry:
    _, left, _, right = layer.padding
    return replace(
        layer,
        kernel=(1, layer.kernel[1]),
        stride=(1, layer.stride[1]),
        padding=(0, left, 0, right),
        dilation=(1, layer.dilation[1]),
    )
