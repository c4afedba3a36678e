"""Weights on disk in as few bytes as their values need, without loss.

| form | what is stored |
| --- | --- |
| plain | the array as it is, little-endian |
| table 1 ... 6 | int8 or uint8 of at most 2, 4, ... 64 distinct values: those, and an index of so many bits for each |
| bf16 | float32 numbers that all are bf16 numbers: their upper halves |
| coded | int8 or uint8: their entropy code |
| coded bf16, coded float32 | the entropy code of the exponents, then sign and fraction as they are |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from trimtab.graph import Array
from trimtab.kernels import entropy
from trimtab.kernels.bits import pack_bits, packed_bytes, unpack_bits

__all__ = ["FORMS", "MAX_PACKED_BITS", "Packed", "bytes_of", "estimate", "pack", "packed_size", "uncoded", "unpack"]

#: The widest index: beyond it the table costs what the indices save.
MAX_PACKED_BITS = 6

_INTEGER_FORMS = ("plain", *(f"table {bits}" for bits in range(1, MAX_PACKED_BITS + 1)), "coded")

#: The forms in which an array of each type may be stored.
FORMS: Mapping[str, tuple[str, ...]] = {
    "int8": _INTEGER_FORMS,
    "uint8": _INTEGER_FORMS,
    "float32": ("plain", "bf16", "coded bf16", "coded float32"),
}

_EXPONENT = 7  # bits of fraction before it, of the 16 upper ones
_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Packed:
    """An array as it is stored: `data` (bytes,) uint8, in one of the FORMS of its type."""

    form: str
    dtype: str
    shape: tuple[int, ...]
    data: Array


def bytes_of(elements: int, bits: int) -> int:
    """Return the bytes that `elements` weights of 1 to 8, 16 or 32 bits take at most.

    They take fewer where the values happen to be fewer than 2^bits, or some of them more frequent than others.
    """
    if bits > MAX_PACKED_BITS:
        return elements * max(1, bits // 8)
    return min(elements, (1 << bits) + packed_bytes(elements, bits))


def estimate(array: Array) -> int:
    """Return about how many bytes `pack` makes of an array, in much less time."""
    packed, symbols = uncoded(array), _symbols(array)
    return min(packed.data.size, _estimate(packed, symbols)) if symbols.size else packed.data.size


def packed_size(array: Array) -> int:
    """Return how many bytes `pack` makes of an array."""
    symbols, (form, plain) = _symbols(array), _smallest(array)
    raw = _raw(form, array.dtype.name) * symbols.size
    return raw + entropy.size(symbols, plain - raw) if symbols.size else plain


def pack(array: Array) -> Packed:
    """Return an int8, uint8 or float32 array in its smallest form."""
    stored, symbols = uncoded(array), _symbols(array)
    if symbols.size and _estimate(stored, symbols) < stored.data.size:
        coded = _coded(array, stored, entropy.encode(symbols))
        if coded.data.size < stored.data.size:
            return coded
    return stored


def unpack(packed: Packed) -> Array:
    """Return the array that `pack` stored; raises ValueError where it is not as long as it says, or damaged."""
    if not packed.form.startswith("coded"):
        return _flat(packed).reshape(packed.shape)
    count = prod(packed.shape)
    end = len(packed.data) - _raw(packed.form, packed.dtype) * count
    if end < 0:
        raise ValueError("coded numbers without their fractions")
    symbols = entropy.decode(packed.data[:end], count)
    return _joined(packed, symbols, packed.data[end:]).reshape(packed.shape)


def uncoded(array: Array) -> Packed:
    """Return an array in its smallest form without entropy coding."""
    shape, dtype, (form, _) = array.shape, array.dtype.name, _smallest(array)
    flat = np.ascontiguousarray(array).reshape(-1)
    if form == "bf16":
        return Packed(form, dtype, shape, (flat.view(np.uint32) >> 16).astype("<u2").view(np.uint8))
    if form == "plain":
        little = flat.astype("<f4") if dtype == "float32" else flat
        return Packed(form, dtype, shape, little.view(np.uint8))
    flat, bits = flat.view(np.uint8), int(form.partition(" ")[2])
    values = _distinct(flat)
    table = np.concatenate([values, np.full(2**bits - len(values), values[-1], np.uint8)])
    index_of = np.zeros(256, np.uint8)
    index_of[values] = np.arange(len(values))
    return Packed(form, dtype, shape, np.concatenate([table, pack_bits(index_of[flat], bits)]))


def _smallest(array: Array) -> tuple[str, int]:
    """The form that `uncoded` takes, and its bytes."""
    if array.dtype == np.float32:
        lower = np.ascontiguousarray(array).reshape(-1).view(np.uint32) & 0xFFFF
        return ("plain", 4 * array.size) if lower.any() else ("bf16", 2 * array.size)
    values = _distinct(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    bits = max(1, int(len(values) - 1).bit_length())
    size = 2**bits + packed_bytes(array.size, bits)
    return (f"table {bits}", size) if bits <= MAX_PACKED_BITS and size < array.size else ("plain", array.size)


def _flat(packed: Packed) -> Array:
    """The inverse of `uncoded`, without the shape."""
    data, count = packed.data, prod(packed.shape)
    form, _, bits = packed.form.partition(" ")
    if form == "table":
        start = 2 ** int(bits)
        if data.shape != (start + packed_bytes(count, int(bits)),):
            raise ValueError(f"{data.size} bytes are not {count} weights of {bits} bits and their table")
        return data[:start][unpack_bits(data[start:], int(bits))[:count]].view(packed.dtype)
    width = 2 if form == "bf16" else np.dtype(packed.dtype).itemsize
    if data.shape != (width * count,):
        raise ValueError(f"{data.size} bytes are not {count} numbers of {8 * width} bits")
    if form == "bf16":
        return (np.frombuffer(data.tobytes(), "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data.tobytes(), np.dtype(packed.dtype).newbyteorder("<")).astype(packed.dtype)


def _raw(form: str, dtype: str) -> int:
    """Bytes of each number that are not coded: none of an integer, of a float all but its exponent."""
    if dtype != "float32":
        return 0
    return 1 if form.endswith("bf16") else 3


def _symbols(array: Array) -> Array:
    """What of an array is coded: its bytes, in the order of their values, or its exponents."""
    flat: Array = np.ascontiguousarray(array).reshape(-1)
    if array.dtype == np.float32:
        return (flat.view(np.uint32) >> (16 + _EXPONENT)).astype(np.uint8)
    ordered: Array = flat.view(np.uint8) ^ np.uint8(0x80 if array.dtype == np.int8 else 0)
    return ordered


def _estimate(packed: Packed, symbols: Array) -> int:
    return entropy.estimate(symbols) + _raw(packed.form, packed.dtype) * symbols.size


def _coded(array: Array, packed: Packed, code: Array) -> Packed:
    if packed.dtype != "float32":
        return Packed("coded", packed.dtype, packed.shape, code)
    words = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    rest = (words >> 24 & 0x80 | words >> 16 & 0x7F).astype(np.uint8)
    low = [(words & 0xFFFF).astype("<u2").view(np.uint8)] if _raw(packed.form, packed.dtype) == 3 else []
    form = "coded float32" if low else "coded bf16"
    return Packed(form, packed.dtype, packed.shape, np.concatenate([code, rest, *low]))


def _joined(packed: Packed, symbols: Array, rest: Array) -> Array:
    if packed.dtype != "float32":
        whole: Array = (symbols ^ np.uint8(0x80 if packed.dtype == "int8" else 0)).view(packed.dtype)
        return whole
    count = len(symbols)
    upper = rest[:count].astype(np.uint32)
    words = (upper & 0x80) << 24 | symbols.astype(np.uint32) << (16 + _EXPONENT) | (upper & 0x7F) << 16
    if packed.form == "coded float32":
        words |= np.frombuffer(rest[count:].tobytes(), "<u2")
    return words.view(np.float32)


def _distinct(flat: Array) -> Array:
    """The distinct bytes of an array, ascending. (np.unique would sort the whole array.)"""
    present = np.zeros(256, bool)
    for start in range(0, len(flat), _CHUNK):
        present[flat[start : start + _CHUNK]] = True
    return np.flatnonzero(present).astype(np.uint8)
