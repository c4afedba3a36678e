"""Sharing: the weight nearest to a given one among those whose values are shared in some way.

A way is written as text: "hashed 0.1" (a tenth as many values as weights), "circulant 4" (blocks of 4 x 4 channels),
"kernels 64" (64 different kernels), "product 64" (64 different vectors of 4 weights at each position of the rows).
`trimtab.sharing` says what they stand for. The engine runs the dense weight: what sharing saves is bytes. A new way is
one class here and one there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from trimtab.graph import Array, Node
from trimtab.sharing import LARGEST_CODEBOOK, LAYOUTS, SUBVECTOR, circulant_index, expand, hashed_index, subvectors
from trimtab.spaces.numbers.formats import WeightFormat
from trimtab.spaces.numbers.quantise import quantise_weight

__all__ = ["SHARINGS", "Sharing", "flips_signs", "parameters", "share", "share_integers"]

#: Starts of k-means, of which the best counts.
STARTS = 4

#: The largest block of channels that is made circulant.
LARGEST_BLOCK = 1024


class Sharing(ABC):
    """One way to choose the shared values of a layer; `amount` is the number in its text."""

    name: ClassVar[str]
    #: The largest number that makes sense.
    largest: ClassVar[int] = LARGEST_CODEBOOK
    #: Whether weights stand for shared values with either sign.
    flips_signs: ClassVar[bool] = False

    @abstractmethod
    def applies(self, op: Node) -> bool:
        """Whether a layer can share weights so at all. What it gains is another question, which measurement answers."""

    def why_not(self, amount: float) -> str | None:
        """Return what is wrong with a number, if anything is."""
        whole = amount == int(amount) and 2 <= amount <= self.largest
        return None if whole else f"the number is a whole one from 2 to {self.largest}"

    @abstractmethod
    def fit(self, weight: Array, amount: float) -> dict[str, Array]:
        """Return the float32 parameters (and uint8 indices) whose weight is nearest to a float64 one, or nearly so."""

    @abstractmethod
    def parameters(self, shape: tuple[int, ...], amount: float) -> tuple[int, int, int]:
        """Return how many values a weight of this shape is left with, how many indices, and the bits of an index."""


class Hashed(Sharing):
    """Every value is the mean of the weights that it stands for: exact least squares."""

    name = "hashed"
    flips_signs = True

    def applies(self, op: Node) -> bool:
        return True

    def why_not(self, amount: float) -> str | None:
        return None if 0 < amount < 1 else "the number is a fraction between 0 and 1"

    def fit(self, weight: Array, amount: float) -> dict[str, Array]:
        buckets = max(1, round(amount * weight.size))
        index, sign = hashed_index(weight.size, buckets)
        sums = np.bincount(index, weight.reshape(-1) * sign, buckets)
        return {"values": (sums / np.maximum(np.bincount(index, minlength=buckets), 1)).astype(np.float32)}

    def parameters(self, shape: tuple[int, ...], amount: float) -> tuple[int, int, int]:
        return max(1, round(amount * math.prod(shape))), 0, 0


class Circulant(Sharing):
    """Every value is the mean of the weights that it stands for: exact least squares."""

    name = "circulant"
    largest = LARGEST_BLOCK

    def applies(self, op: Node) -> bool:
        return op.groups == 1

    def fit(self, weight: Array, amount: float) -> dict[str, Array]:
        size = int(amount)
        outputs, inputs, taps = *weight.shape[:2], weight.shape[2:]
        fill = ((0, -outputs % size), (0, -inputs % size), *[(0, 0)] * len(taps))
        sums, counts = (
            _along_diagonals(np.pad(array, fill), size)
            for array in (weight, np.ones((outputs, inputs, *[1] * len(taps))))
        )
        return {"values": (sums / np.maximum(counts, 1)).astype(np.float32)}

    def parameters(self, shape: tuple[int, ...], amount: float) -> tuple[int, int, int]:
        blocks = math.ceil(shape[0] / amount) * math.ceil(shape[1] / amount)
        return blocks * int(amount) * math.prod(shape[2:]), 0, 0


class Kernels(Sharing):
    """A codebook of whole kernels, by k-means from the best of several seeded starts: near the optimum."""

    name = "kernels"

    def applies(self, op: Node) -> bool:
        return op.kind == "conv2d" and op.is_layer and math.prod(op.weight.shape[2:]) > 1

    def fit(self, weight: Array, amount: float) -> dict[str, Array]:
        kernels = weight.reshape(-1, math.prod(weight.shape[2:]))
        codebook, index = _k_means(kernels, int(amount))
        return {"codebook": codebook.reshape(-1, *weight.shape[2:]), "index": index.reshape(weight.shape[:2])}

    def parameters(self, shape: tuple[int, ...], amount: float) -> tuple[int, int, int]:
        entries = min(int(amount), shape[0] * shape[1], LARGEST_CODEBOOK)
        return entries * math.prod(shape[2:]), shape[0] * shape[1], _index_bits(entries)


class Product(Sharing):
    """A codebook of vectors for each position of the rows, by k-means from the best of several seeded starts."""

    name = "product"

    def applies(self, op: Node) -> bool:
        return op.kind == "linear"

    def fit(self, weight: Array, amount: float) -> dict[str, Array]:
        found = [_k_means(part, int(amount)) for part in subvectors(weight)]
        return {"codebook": np.stack([book for book, _ in found]), "index": np.stack([index for _, index in found], 1)}

    def parameters(self, shape: tuple[int, ...], amount: float) -> tuple[int, int, int]:
        positions = math.ceil(shape[1] / SUBVECTOR)
        entries = min(int(amount), shape[0], LARGEST_CODEBOOK)
        return positions * entries * SUBVECTOR, shape[0] * positions, _index_bits(entries)


#: By the name that texts give.
SHARINGS: Mapping[str, Sharing] = {each.name: each for each in (Hashed(), Circulant(), Kernels(), Product())}


def share(weight: Array, how: str) -> dict[str, Array]:
    """Return the float32 parameters (and uint8 indices) whose weight is nearest to the given one, or nearly so."""
    way, amount = _read(how)
    return way.fit(weight.astype(np.float64), amount)


def share_integers(weight: Array, how: str, to: WeightFormat) -> tuple[Array, Array]:
    """Return (int8 weight, float32 scale (O,)) in an integer format that shares values.

    The shared values have one scale, because weights of all output channels share them.
    """
    way, amount = _read(how)
    parts, values = way.fit(weight.astype(np.float64), amount), LAYOUTS[way.name].parts[0]
    integers, scale = quantise_weight(parts[values].reshape(1, -1), to)
    dense = expand(way.name, {**parts, values: integers.reshape(parts[values].shape)}, weight.shape)
    return np.ascontiguousarray(dense), np.repeat(scale, len(weight))


def parameters(shape: tuple[int, ...], how: str) -> tuple[int, int, int]:
    """Return how many values a weight of this shape is left with, how many indices, and the bits of an index."""
    way, amount = _read(how)
    return way.parameters(shape, amount)


def flips_signs(how: str) -> bool:
    """Whether weights stand for shared values with either sign."""
    return _read(how)[0].flips_signs


def _read(how: str) -> tuple[Sharing, float]:
    name, amount = how.split()
    return SHARINGS[name], float(amount)


def _index_bits(entries: int) -> int:
    return max(1, (entries - 1).bit_length())


def _along_diagonals(padded: Array, size: int) -> Array:
    """Sums over the circulant diagonals of blocks, (P, Q, size, ...)."""
    rows, columns = padded.shape[0] // size, padded.shape[1] // size
    blocks = np.moveaxis(padded.reshape(rows, size, columns, size, *padded.shape[2:]), 2, 1)
    diagonal = circulant_index(size)
    return np.stack([blocks[:, :, diagonal == k].sum(axis=2) for k in range(size)], axis=2)


def _k_means(vectors: Array, size: int) -> tuple[Array, Array]:
    """Return a codebook (K, D), float32, and the index (n,), uint8, of each vector's nearest entry."""
    size = min(size, len(vectors), LARGEST_CODEBOOK)
    distinct, index = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) <= size:
        unused = np.zeros((size - len(distinct), vectors.shape[1]))
        return np.concatenate([distinct, unused]).astype(np.float32), index.reshape(-1).astype(np.uint8)
    with threadpool_limits(1):  # the order of sums would show in the last bits
        means = KMeans(size, n_init=STARTS, random_state=0, tol=0.0).fit(vectors)
    return means.cluster_centers_.astype(np.float32), means.labels_.astype(np.uint8)
