"""Weights on disk in as few bytes as their values need, without loss.

int8 weights of at most 2, 4, 8, 16, 32 or 64 distinct values are stored as a table of those values and an index of 1 to
6 bits for every weight; float32 weights that are all bf16 numbers as their upper halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from trimtab.kernels.graph import Array

__all__ = ["MAX_PACKED_BITS", "bytes_of", "pack", "unpack"]

#: The widest index: beyond it the table costs what the indices save.
MAX_PACKED_BITS = 6

_GROUP = 8  # indices that are packed together, so that they fill whole bytes
_CHUNK = 2**20


def bytes_of(elements: int, bits: int) -> int:
    """Return the bytes that `elements` weights of 1 to 6, 8, 16 or 32 bits take at most.

    They take fewer where the values happen to be fewer than 2^bits.
    """
    if bits > MAX_PACKED_BITS:
        return elements * max(1, bits // 8)
    return min(elements, (1 << bits) + _index_bytes(elements, bits))


def pack(weight: Array) -> tuple[Array, int]:
    """Return the smallest form of a weight, and the bits of its indices (0: there are none).

    The form is uint8, first the table of 2^bits int8 values, then the indices; or uint16, the upper halves of float32;
    or the weight as it is, where neither is possible or smaller.
    """
    if weight.dtype == np.float32:
        words = np.ascontiguousarray(weight).view(np.uint32)
        return ((words >> 16).astype(np.uint16), 0) if not (words & 0xFFFF).any() else (weight, 0)
    if weight.dtype != np.int8:
        return weight, 0
    values = _distinct(weight)
    bits = max(1, int(len(values) - 1).bit_length())
    if bits > MAX_PACKED_BITS or 2**bits + _index_bytes(weight.size, bits) >= weight.size:
        return weight, 0
    table = np.concatenate([values, np.full(2**bits - len(values), values[-1], np.int8)])
    index_of = np.zeros(256, np.uint8)
    index_of[values.view(np.uint8)] = np.arange(len(values))
    indices = _pack_indices(index_of[weight.reshape(-1).view(np.uint8)], bits)
    return np.concatenate([table.view(np.uint8), indices]), bits


def unpack(packed: Array, bits: int, shape: Sequence[int]) -> Array:
    """Return the weight of this shape that `pack` made `packed` from.

    Raises ValueError where `packed` is not as long as the shape and the bits say.
    """
    if packed.dtype == np.uint16:
        return (packed.astype(np.uint32) << 16).view(np.float32)
    elements = prod(shape)
    if not 1 <= bits <= MAX_PACKED_BITS or packed.shape != (2**bits + _index_bytes(elements, bits),):
        raise ValueError(f"{packed.size} bytes are not {elements} weights of {bits} bits and their table")
    table = packed[: 2**bits].view(np.int8)
    return table[_unpack_indices(packed[2**bits :], bits)[:elements]].reshape(shape)


def _index_bytes(elements: int, bits: int) -> int:
    return -(-elements // _GROUP) * bits


def _distinct(weight: Array) -> Array:
    """The distinct values of an int8 array, ascending. (np.unique would sort the whole array.)"""
    present = np.zeros(256, bool)
    flat = weight.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        present[flat[start : start + _CHUNK]] = True
    return np.sort(np.flatnonzero(present).astype(np.uint8).view(np.int8))


def _pack_indices(indices: Array, bits: int) -> Array:
    """Eight indices to `bits` bytes, the first one in the lowest bits."""
    groups = np.zeros((-(-len(indices) // _GROUP), _GROUP), np.uint8)
    groups.reshape(-1)[: len(indices)] = indices
    words = np.zeros(len(groups), "<u8")
    for i in range(_GROUP):
        words |= groups[:, i].astype("<u8") << np.uint64(bits * i)
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)


def _unpack_indices(packed: Array, bits: int) -> Array:
    groups = packed.reshape(-1, bits)
    words = np.zeros((len(groups), 8), np.uint8)
    words[:, :bits] = groups
    whole = words.view("<u8")[:, 0]
    indices = np.empty((len(groups), _GROUP), np.uint8)
    for i in range(_GROUP):
        indices[:, i] = (whole >> np.uint64(bits * i)) & np.uint64(2**bits - 1)
    return indices.reshape(-1)
