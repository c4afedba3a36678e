"""Entropy coding of bytes: range asymmetric numeral systems with one static table of frequencies per array.

Duda 2013 (arXiv:1311.2540, section 3.3, "range variants"). An array is cut into lanes of at most 4096 symbols, each a
stream of its own that ends in its own state, because the steps of one wait for each other and those of several do not
(native/entropy.cpp). A lane starts from state 0 and so wastes nothing at its start; the decoder has to arrive there
again, which tells damage from data.

A coded array is: one byte for the table's form and precision, one for its number of entries - 1, the values (all of
them, or the lowest of a range), a logarithm of 4 to 8 bits of every value's frequency; then for every lane the number
of its words (uint16), and for every lane its state and its words (uint16, little-endian).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.kernels import _native
from trimtab.kernels.bits import pack_bits, packed_bytes, unpack_bits

__all__ = ["LANE", "decode", "encode", "estimate", "size"]

Bytes = npt.NDArray[np.uint8]
_Longs = npt.NDArray[np.int64]

#: The most symbols of a lane, and so the most that a hostile file can ask for with the eight bytes of a lane's head.
LANE = _native.LANE

_PRECISION = _native.PRECISION  # frequencies add up to 2^12
_LISTED = 0x80  # flag of a table that lists its values, in place of a range of them
_FINEST = 4  # bits of mantissa of a stored frequency


@dataclass(frozen=True)
class _Table:
    """The frequency of each of 256 symbols (256,), and the bytes that say so."""

    frequencies: npt.NDArray[np.uint16]
    stored: Bytes


def estimate(symbols: Bytes) -> int:
    """Return about how many bytes `encode` makes of an array, in much less time."""
    return _Fit(symbols).estimate


def size(symbols: Bytes, most: int) -> int:
    """Return how many bytes `encode` makes of an array; `most`, where that or the estimate is not below it."""
    fit = _Fit(symbols)
    if fit.estimate >= most:
        return most
    return min(most, fit.stored_size + 2 * len(_native.encode(symbols, fit.table)))


def encode(symbols: Bytes) -> Bytes:
    """Return an array (n,) of uint8, n > 0, in about as many bytes as its entropy says, and its table."""
    fit = _Fit(symbols)
    return np.concatenate([fit.stored, _native.encode(symbols, fit.table).astype("<u2", copy=False).view(np.uint8)])


def decode(coded: Bytes, count: int) -> Bytes:
    """Return the array (count,) that `encode` made `coded` from; raises ValueError where it made it from nothing.

    Time and memory are in proportion to the bytes given: at most LANE symbols for every eight of them.
    """
    table = _read_table(coded)
    data = coded[len(table.stored) :]
    if len(data) % 2 or not 0 < count <= LANE * len(data):
        raise ValueError(f"{len(data)} bytes are not {count} coded symbols")
    symbols = _native.decode(
        np.frombuffer(data.tobytes(), "<u2").astype(np.uint16, copy=False), table.frequencies, count
    )
    if symbols is None:
        raise ValueError(f"{len(data)} bytes are not {count} coded symbols: they are damaged")
    return symbols


# tables


class _Fit:
    """The table with which an array's code is smallest: the `present` symbols (k,), and all frequencies (256,)."""

    def __init__(self, symbols: Bytes) -> None:
        counts = np.bincount(symbols, minlength=256)
        self.present = np.flatnonzero(counts)
        self._counts = counts[self.present]
        self._span = int(self.present[-1] - self.present[0]) + 1
        self._listed = 9 * len(self.present) < 5 * self._span
        self._entries = len(self.present) if self._listed else self._span
        heads = 3 * -(-len(symbols) // LANE)  # of a state's 6 bytes about 5 hold symbols
        found = [(*self._at(mantissa), mantissa) for mantissa in range(_FINEST + 1)]
        bytes_, frequencies, self._mantissa = min(found, key=lambda each: each[0])
        self.table = _spread(self.present, frequencies)
        self.estimate = bytes_ + heads

    @property
    def stored(self) -> Bytes:
        """The bytes that say what the table is."""
        head = [self._mantissa | (_LISTED if self._listed else 0), self._entries - 1]
        values = self.present if self._listed else self.present[:1]
        logarithms = np.zeros(self._entries, np.uint8)
        places = np.arange(self._entries) if self._listed else self.present - self.present[0]
        logarithms[places] = self._logarithms(self._mantissa)
        packed = pack_bits(logarithms, 4 + self._mantissa)
        return np.concatenate([np.array(head), values, packed]).astype(np.uint8)

    @property
    def stored_size(self) -> int:
        """Their number."""
        return self._size(self._mantissa)

    def _at(self, mantissa: int) -> tuple[int, _Longs]:
        """Bytes of the table and the symbols, and the symbols' frequencies."""
        frequencies = _normalised(_LEVELS[mantissa][self._logarithms(mantissa)])
        return self._size(mantissa) + int(self._counts @ _BITS[frequencies] / 8), frequencies

    def _size(self, mantissa: int) -> int:
        return 2 + (self._entries if self._listed else 1) + packed_bytes(self._entries, 4 + mantissa)

    def _logarithms(self, mantissa: int) -> npt.NDArray[np.int64]:
        """Each frequency as a number of `mantissa` bits and an exponent of 4."""
        wanted = self._counts * (float(_LEVELS[mantissa][-1]) / self._counts.max())
        return np.asarray(1 + np.searchsorted(_BETWEEN[mantissa], wanted))


def _level(logarithm: npt.NDArray[np.int64], mantissa: int) -> npt.NDArray[np.int64]:
    """The number that 1 + (exponent << mantissa | digits) stands for; 0 for 0."""
    exponent, digits = (logarithm - 1) >> mantissa, (logarithm - 1) & ((1 << mantissa) - 1)
    return np.where(logarithm > 0, ((1 << mantissa) + digits) << np.maximum(exponent, 0), 0)


_LEVELS = tuple(_level(np.arange(1 << (4 + mantissa)), mantissa) for mantissa in range(_FINEST + 1))
_BETWEEN = tuple(np.sqrt(levels[2:].astype(np.float64) * levels[1:-1]) for levels in _LEVELS)

#: The bits of a symbol, by its frequency.
_BITS = _PRECISION - np.log2(np.maximum(np.arange((1 << _PRECISION) + 1), 1))


def _read_table(data: Bytes) -> _Table:
    if len(data) < 2:
        raise ValueError(f"{len(data)} bytes hold no table of frequencies")
    mantissa, entries, listed = int(data[0]) & ~_LISTED, int(data[1]) + 1, bool(data[0] & _LISTED)
    start = 2 + (entries if listed else 1)
    end = start + packed_bytes(entries, 4 + mantissa)
    if mantissa > _FINEST or end > len(data) or not (listed or int(data[2]) + entries <= 256):
        raise ValueError(f"{len(data)} bytes hold no table of {entries} frequencies of {4 + mantissa} bits")
    symbols = data[2:start] if listed else data[2] + np.arange(entries, dtype=np.uint8)
    if (np.diff(symbols.astype(np.int64)) <= 0).any():
        raise ValueError("a table of values in no order")
    levels = _level(unpack_bits(data[start:end], 4 + mantissa)[:entries].astype(np.int64), mantissa)
    present = levels > 0
    if not present.any():
        raise ValueError("a table of frequencies that are all 0")
    return _Table(_spread(symbols[present], _normalised(levels[present])), data[:end])


def _spread(symbols: npt.NDArray[Any], frequencies: _Longs) -> npt.NDArray[np.uint16]:
    """The frequencies of all 256 symbols, given those of some."""
    table = np.zeros(256, np.uint16)
    table[symbols] = frequencies
    return table


def _normalised(levels: npt.NDArray[np.int64]) -> _Longs:
    """Frequencies of at least 1 that add up to 2^12, as near to `levels` as whole numbers are."""
    whole, total = 1 << _PRECISION, int(levels.sum())
    frequencies = np.maximum(1, (2 * levels * whole + total) // (2 * total))
    while missing := whole - int(frequencies.sum()):
        largest = np.argsort(-frequencies, kind="stable")[: abs(missing)]
        if missing < 0:
            largest = largest[frequencies[largest] > 1]
        frequencies[largest] += np.sign(missing)
    return np.asarray(frequencies)
