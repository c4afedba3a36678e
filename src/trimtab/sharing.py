"""Weights that share values: from few parameters to a dense weight and back, exactly.

`LAYOUTS` holds the ways, one class each. How parameters are chosen is `spaces.forms.sharing`'s; artefacts store them
in place of the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trimtab.errors import unknown_name

__all__ = [
    "LARGEST_CODEBOOK",
    "LAYOUTS",
    "SUBVECTOR",
    "Layout",
    "circulant_index",
    "expand",
    "find",
    "hashed_index",
    "subvectors",
]

Array = npt.NDArray[Any]

#: An index of a codebook is stored as a byte.
LARGEST_CODEBOOK = 256

#: Weights of one row that product quantisation encodes together.
SUBVECTOR = 4

_CHUNK = 2**20


def hashed_index(count: int, buckets: int) -> tuple[Array, Array]:
    """Return the bucket (n,) and the sign (n,), int8, of every weight by its position."""
    index, sign = np.empty(count, np.uint32), np.empty(count, np.int8)
    for start in range(0, count, _CHUNK):
        z = np.arange(start, min(start + _CHUNK, count), dtype=np.uint64)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64 (Steele et al. 2014)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        index[start : start + _CHUNK] = (z >> np.uint64(1)) % np.uint64(buckets)
        sign[start : start + _CHUNK] = 1 - 2 * (z & np.uint64(1)).astype(np.int8)
    return index, sign


def circulant_index(size: int) -> Array:
    """Return (a - b) mod size for every row a and column b, (size, size)."""
    return (np.arange(size)[:, None] - np.arange(size)) % size


def subvectors(weight: Array) -> Array:
    """Return a weight (O, I) as (S, O, D), filled up with its last column."""
    outputs, inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -inputs % SUBVECTOR)), "edge")
    parts: Array = padded.reshape(outputs, -1, SUBVECTOR).transpose(1, 0, 2)
    return parts


class Layout(ABC):
    """One way in which the weights of a layer are made of fewer parameters."""

    name: ClassVar[str]
    #: The names of its parameters, the first of which are values of weights.
    parts: ClassVar[tuple[str, ...]] = ("values",)

    @abstractmethod
    def expand(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """Return the weight (O, I, ...) that parameters stand for; ValueError where they do not fit each other."""

    @abstractmethod
    def find(self, weight: Array, amount: float) -> dict[str, Array] | None:
        """Return parameters that might stand for a weight of so many blocks, values or entries, whatever they give."""


class Hashed(Layout):
    """Values (F,): the i-th weight is values[h(i)] * s(i), h and s from a hash of i (Chen et al. 2015,
    arXiv:1504.04788, equation 7)."""

    name = "hashed"

    def expand(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        values = parts["values"]
        if values.ndim != 1 or not values.size:
            raise ValueError(f"hashed values of shape {values.shape}")
        index, sign = hashed_index(prod(shape), len(values))
        weight: Array = values[index] * sign.astype(values.dtype)
        return weight.reshape(shape)

    def find(self, weight: Array, amount: float) -> dict[str, Array]:
        buckets = max(1, round(amount * weight.size))
        index, sign = hashed_index(weight.size, buckets)
        found = weight.reshape(-1) * sign.astype(weight.dtype)
        values = np.full(buckets, found[0])
        values[index] = found
        return {"values": values}


class Circulant(Layout):
    """Values (P, Q, B, ...), of blocks of B x B channels: w[B p + a, B q + b] = values[p, q, (a - b) mod B] (Ding et
    al. 2017, arXiv:1708.08917)."""

    name = "circulant"

    def expand(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        values = parts["values"]
        size = values.shape[2] if values.ndim == len(shape) + 1 else 0
        if not size or values.shape != (-(-shape[0] // size), -(-shape[1] // size), size, *shape[2:]):
            raise ValueError(f"circulant values of shape {values.shape} for a weight of {shape}")
        blocks = values[:, :, circulant_index(size)]  # (P, Q, B, B, ...)
        rows, columns = values.shape[0] * size, values.shape[1] * size
        return np.moveaxis(blocks, 1, 2).reshape(rows, columns, *shape[2:])[: shape[0], : shape[1]]

    def find(self, weight: Array, amount: float) -> dict[str, Array]:
        block = int(amount)
        rows, columns = -(-weight.shape[0] // block), -(-weight.shape[1] // block)
        values = np.full((rows, columns, block, *weight.shape[2:]), weight.reshape(-1)[0])
        o, i = np.arange(weight.shape[0])[:, None], np.arange(weight.shape[1])
        values[o // block, i // block, (o - i) % block] = weight
        return {"values": values}


class Kernels(Layout):
    """Codebook (K, kh, kw) and index (O, I): w[o, i] = codebook[index[o, i]] (Son et al. 2018, ECCV, without their
    transforms)."""

    name = "kernels"
    parts = ("codebook", "index")

    def expand(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        codebook, index = parts["codebook"], parts["index"]
        if index.dtype != np.uint8 or codebook.ndim != 3 or int(index.max(initial=0)) >= len(codebook):
            raise ValueError("an index of kernels that the codebook has not")
        return codebook[index]

    def find(self, weight: Array, amount: float) -> dict[str, Array] | None:
        if weight.ndim != 4:
            return None
        codebook, index = np.unique(weight.reshape(-1, prod(weight.shape[2:])), axis=0, return_inverse=True)
        if len(codebook) > LARGEST_CODEBOOK:
            return None
        index = index.reshape(weight.shape[:2]).astype(np.uint8)
        return {"codebook": codebook.reshape(-1, *weight.shape[2:]), "index": index}


class Product(Layout):
    """Codebook (S, K, D) and index (O, S): w[o, D s : D s + D] = codebook[s, index[o, s]] (Gong et al. 2014,
    arXiv:1412.6115)."""

    name = "product"
    parts = ("codebook", "index")

    def expand(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        codebook, index = parts["codebook"], parts["index"]
        fits = codebook.ndim == 3 and index.ndim == 2 and index.dtype == np.uint8 and index.shape[1] == len(codebook)
        if not fits or int(index.max(initial=0)) >= codebook.shape[1]:
            raise ValueError("an index of vectors that the product codebooks have not")
        rows = codebook[np.arange(len(codebook)), index]
        return rows.reshape(len(index), -1)[:, : shape[1]]

    def find(self, weight: Array, amount: float) -> dict[str, Array] | None:
        if weight.ndim != 2:
            return None
        found = [np.unique(part, axis=0, return_inverse=True) for part in subvectors(weight)]
        entries = max(len(codebook) for codebook, _ in found)
        if entries > LARGEST_CODEBOOK:
            return None
        codebook = np.stack([np.pad(book, ((0, entries - len(book)), (0, 0)), "edge") for book, _ in found])
        return {"codebook": codebook, "index": np.stack([index.reshape(-1) for _, index in found], 1).astype(np.uint8)}


#: By the name that texts and artefacts give.
LAYOUTS: Mapping[str, Layout] = {each.name: each for each in (Hashed(), Circulant(), Kernels(), Product())}


def expand(name: str, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Return the weight (O, I, ...) that parameters stand for, of their type; ValueError where they do not fit."""
    if name not in LAYOUTS or set(parts) != set(LAYOUTS[name].parts):
        raise ValueError(f"{sorted(parts)} are not the parameters of {name!r} weights")
    if len(shape) < 2:
        raise ValueError(f"a weight of shape {shape} has no {name} values")
    weight = LAYOUTS[name].expand(parts, shape)
    if weight.shape != shape:
        raise ValueError(f"parameters of {name} weights of shape {weight.shape}, not {shape}")
    return weight


def find(how: str, weight: Array) -> tuple[str, dict[str, Array]] | None:
    """Return the name and the parameters of a weight that shares values as `how` says ("circulant 4"), if it does."""
    name, amount = how.split()
    if name not in LAYOUTS:
        raise unknown_name("way of sharing weights", name, LAYOUTS)
    parts = LAYOUTS[name].find(weight, float(amount))
    if parts is None or not np.array_equal(expand(name, parts, weight.shape), weight):
        return None
    return name, parts
