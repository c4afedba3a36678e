"""Entropy coding of bytes: range asymmetric numeral systems with one static table of frequencies per array.

Duda 2013 (arXiv:1311.2540, section 3.3, "range variants"). An array is cut into lanes of at most 4096 symbols, each a
stream of its own that ends in its own state, and the lanes of all arrays advance together, a symbol a step: that is
what NumPy does quickly. A lane starts from state 0 and so wastes nothing at its start; the decoder has to arrive there
again, which tells damage from data.

A coded array is: one byte for the table's form and precision, one for its number of entries - 1, the values (all of
them, or the lowest of a range), a logarithm of 4 to 8 bits of every value's frequency; then for every lane the number
of its words (uint16), and for every lane its state and its words (uint16, little-endian).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.kernels.bits import pack_bits, packed_bytes, unpack_bits

__all__ = ["LANE", "decode", "encode", "estimate", "size"]

Bytes = npt.NDArray[np.uint8]
_Longs = npt.NDArray[np.uint64]

#: The most symbols of a lane, and so the most that a hostile file can ask for with the eight bytes of a lane's head.
LANE = 4096

_PRECISION = 12  # frequencies add up to 2^12
_WORD = 16  # bits that a state gives away at once
_LOWEST = 32  # a state that has given bits away is at least 2^32
_HEAD = 3  # words of a lane's state, below 2^48
_LISTED = 0x80  # flag of a table that lists its values, in place of a range of them
_FINEST = 4  # bits of mantissa of a stored frequency
_TOGETHER = 64  # arrays that advance together: each holds a table of 32 KiB
_TOGETHER_LANES = 4096


@dataclass(frozen=True)
class _Table:
    """Symbols (k,) with their frequencies (k,), and the bytes that say so."""

    symbols: Bytes
    frequencies: _Longs
    stored: Bytes


def estimate(symbols: Bytes) -> int:
    """Return about how many bytes `encode` makes of an array, in much less time."""
    return _Fit(symbols).estimate


def size(symbols: Bytes, most: int) -> int:
    """Return how many bytes `encode` makes of an array, exactly, in much less time.

    `most`, where that or the estimate is not below it.
    """
    fit = _Fit(symbols)
    if fit.estimate >= most:
        return most
    frequency, first, bits = np.ones(256, np.int64), np.zeros(256, np.int64), np.zeros(256)
    frequency[fit.present] = fit.frequencies
    first[fit.present] = np.cumsum(fit.frequencies) - fit.frequencies
    bits[fit.present] = _BITS[fit.frequencies]
    lanes = np.split(symbols, np.cumsum(_shares(len(symbols)))[:-1])
    words = sum(_words(lane, frequency, first, bits) for lane in lanes)
    return min(most, fit.stored_size + 2 * ((1 + _HEAD) * len(lanes) + words))


def encode(arrays: Sequence[Bytes]) -> list[Bytes]:
    """Return each array (n,) of uint8, n > 0, in about as many bytes as its entropy says, and its table."""
    tables = [_read_table(_Fit(array).stored) for array in arrays]
    streams: list[Bytes] = []
    for group in _groups([len(array) for array in arrays]):
        streams += _encode([arrays[i] for i in group], [tables[i] for i in group])
    return [np.concatenate([table.stored, stream]) for table, stream in zip(tables, streams, strict=True)]


def decode(coded: Sequence[Bytes], counts: Sequence[int]) -> list[Bytes]:
    """Return the arrays (count,) that `encode` made `coded` from; raises ValueError where it made them from nothing.

    Time and memory are in proportion to the bytes given: at most LANE symbols for every eight of them.
    """
    found = []
    for data, count in zip(coded, counts, strict=True):
        table = _read_table(data)
        found.append((table, _read_words(data[len(table.stored) :], count)))
    arrays: list[Bytes] = []
    for group in _groups(counts):
        arrays += _decode([found[i] for i in group], [counts[i] for i in group])
    return arrays


def _groups(counts: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    lanes = 0
    for i, count in enumerate(counts):
        group.append(i)
        lanes += _lanes(count)
        if len(group) == _TOGETHER or lanes >= _TOGETHER_LANES:
            yield group
            group, lanes = [], 0
    if group:
        yield group


# tables


class _Fit:
    """The table with which an array's code is smallest: `present` symbols (k,), their `frequencies` (k,)."""

    def __init__(self, symbols: Bytes) -> None:
        counts = np.bincount(symbols, minlength=256)
        self.present = np.flatnonzero(counts)
        self._counts = counts[self.present]
        self._span = int(self.present[-1] - self.present[0]) + 1
        self._listed = 9 * len(self.present) < 5 * self._span
        self._entries = len(self.present) if self._listed else self._span
        heads = 3 * _lanes(len(symbols))  # of a state's 6 bytes about 5 hold symbols
        found = [(*self._at(mantissa), mantissa) for mantissa in range(_FINEST + 1)]
        bytes_, self.frequencies, self._mantissa = min(found, key=lambda each: each[0])
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
    levels = _level(unpack_bits(data[start:end], 4 + mantissa)[:entries].astype(np.int64), mantissa)
    present = levels > 0
    if not present.any():
        raise ValueError("a table of frequencies that are all 0")
    return _Table(symbols[present], _normalised(levels[present]), data[:end])


def _normalised(levels: npt.NDArray[np.int64]) -> _Longs:
    """Frequencies of at least 1 that add up to 2^12, as near to `levels` as whole numbers are."""
    whole, total = 1 << _PRECISION, int(levels.sum())
    frequencies = np.maximum(1, (2 * levels * whole + total) // (2 * total))
    while missing := whole - int(frequencies.sum()):
        largest = np.argsort(-frequencies, kind="stable")[: abs(missing)]
        if missing < 0:
            largest = largest[frequencies[largest] > 1]
        frequencies[largest] += np.sign(missing)
    return frequencies.astype(np.uint64)


# lanes


def _lanes(count: int) -> int:
    return -(-count // LANE)


@dataclass(frozen=True)
class _Lanes:
    """The lanes of several arrays, longest first: which array each is of, where in it it starts, its length."""

    array: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]

    @classmethod
    def of(cls, counts: Sequence[int]) -> _Lanes:
        array = np.repeat(np.arange(len(counts)), [_lanes(count) for count in counts])
        length = np.concatenate([_shares(count) for count in counts])
        start = np.concatenate([np.cumsum(_shares(count)) - _shares(count) for count in counts])
        order = np.argsort(-length, kind="stable")
        return cls(array[order], start[order], length[order])

    def active(self) -> list[int]:
        """The number of lanes that have a symbol at each step."""
        steps = np.arange(self.length[0])
        return [int(n) for n in len(self.length) - np.searchsorted(self.length[::-1], steps, side="right")]


def _shares(count: int) -> npt.NDArray[np.int64]:
    lanes = _lanes(count)
    return count // lanes + (np.arange(lanes) < count % lanes)


def _words(
    lane: Bytes, frequency: npt.NDArray[np.int64], first: npt.NDArray[np.int64], bits: npt.NDArray[np.float64]
) -> int:
    """The words that a lane gives away; frequencies, their sums before a symbol, and a symbol's bits are (256,).

    A state that has come to 2^32 stays between that and 2^48. A symbol multiplies it by 2^12 / frequency and a word
    divides it by 2^16, both within 2^-20, so that the sum of the symbols' bits says how many words there are, unless
    its error leaves two possible. Then, and until the state has come so far, the lane is coded to see.
    """
    state, words, at, lowest = 0, 0, len(lane), 1 << _LOWEST
    while at:
        if state >= lowest:
            total = (np.log2(state) + float(bits[lane[:at]].sum()) - _LOWEST) / _WORD
            error = 2 * np.log2(1 + 2.0**-20) * (at + 1) / _WORD
            if int(total - error) == int(total + error):
                return words + int(total)
        at -= 1
        symbol = lane[at]
        share = int(frequency[symbol])
        if state >= share << (_LOWEST + _WORD - _PRECISION):
            state, words = state >> _WORD, words + 1
        state = (state // share << _PRECISION) + state % share + int(first[symbol])
    return words


def _encode(arrays: Sequence[Bytes], tables: Sequence[_Table]) -> list[Bytes]:
    lanes = _Lanes.of([len(array) for array in arrays])
    frequency, first = np.ones((len(tables), 256), np.uint64), np.zeros((len(tables), 256), np.uint64)
    for i, table in enumerate(tables):
        frequency[i, table.symbols] = table.frequencies
        first[i, table.symbols] = np.cumsum(table.frequencies) - table.frequencies
    symbols = np.zeros((lanes.length[0], len(lanes.array)), np.uint8)
    for column, array, start, length in zip(symbols.T, lanes.array, lanes.start, lanes.length, strict=True):
        column[:length] = arrays[array][start : start + length]
    states = np.zeros(len(lanes.array), np.uint64)
    words, given = np.zeros(symbols.shape, np.uint16), np.zeros(symbols.shape, bool)
    row = lanes.array * 256
    for step, active in reversed(list(enumerate(lanes.active()))):
        entry = row[:active] + symbols[step, :active]
        share, x = frequency.take(entry), states[:active]
        full = x >= share << np.uint64(_LOWEST + _WORD - _PRECISION)
        words[step, :active], given[step, :active] = x & np.uint64((1 << _WORD) - 1), full
        x = np.where(full, x >> np.uint64(_WORD), x)
        quotient = x // share
        states[:active] = (quotient << np.uint64(_PRECISION)) + (x - quotient * share) + first.take(entry)
    heads = states[:, None] >> (np.uint64(_WORD) * np.arange(_HEAD, dtype=np.uint64))
    streams = []
    for i in range(len(arrays)):
        own = np.flatnonzero(lanes.array == i)
        lengths = given[:, own].sum(0).astype("<u2")
        parts = [
            part for lane in own for part in (heads[lane].astype("<u2"), words[:, lane][given[:, lane]].astype("<u2"))
        ]
        streams.append(np.concatenate([lengths, *parts]).view(np.uint8))
    return streams


def _read_words(data: Bytes, count: int) -> npt.NDArray[np.uint16]:
    """The lengths, states and words of the lanes of `count` symbols, checked to be as many as they say."""
    words = np.frombuffer(data.tobytes(), "<u2") if len(data) % 2 == 0 else np.empty(0, np.uint16)
    lanes = _lanes(count) if count > 0 else 0
    if not lanes or len(words) < (1 + _HEAD) * lanes or len(words) != (1 + _HEAD) * lanes + int(words[:lanes].sum()):
        raise ValueError(f"{len(data)} bytes are not {count} coded symbols")
    return words


def _decode(found: Sequence[tuple[_Table, npt.NDArray[np.uint16]]], counts: Sequence[int]) -> list[Bytes]:
    lanes = _Lanes.of(counts)
    entries = np.concatenate([_entries(table) for table, _ in found])
    words = np.concatenate([*(words for _, words in found), np.zeros(1, np.uint16)]).astype(np.uint64)
    states, at, end = (np.zeros(len(lanes.array), dtype) for dtype in (np.uint64, np.int64, np.int64))
    origin = 0
    for i, (_, own) in enumerate(found):
        number, lane = _lanes(counts[i]), np.flatnonzero(lanes.array == i)
        ends = origin + number + np.cumsum(own[:number].astype(np.int64) + _HEAD)
        end[lane], at[lane] = ends, ends - own[:number]
        origin += len(own)
    for digit in range(_HEAD):
        states |= words[at - _HEAD + digit] << np.uint64(_WORD * digit)
    symbols = np.zeros((lanes.length[0], len(lanes.array)), np.uint8)
    row = lanes.array.astype(np.uint64) << np.uint64(_PRECISION)
    for step, active in enumerate(lanes.active()):
        x = states[:active]
        entry = entries.take(row[:active] + (x & np.uint64((1 << _PRECISION) - 1)))
        symbols[step, :active] = entry & np.uint64(255)
        x = (x >> np.uint64(_PRECISION)) * (entry >> np.uint64(32)) + (entry >> np.uint64(8) & np.uint64(0xFFFF))
        low = (x < np.uint64(1 << _LOWEST)) & (at[:active] < end[:active])
        states[:active] = np.where(low, x << np.uint64(_WORD) | words.take(at[:active]), x)
        at[:active] += low
    if states.any() or (at != end).any():
        raise ValueError("the coded symbols are damaged")
    arrays = [np.empty(count, np.uint8) for count in counts]
    for column, array, start, length in zip(symbols.T, lanes.array, lanes.start, lanes.length, strict=True):
        arrays[array][start : start + length] = column[:length]
    return arrays


def _entries(table: _Table) -> _Longs:
    """For each of 2^12 slots its symbol, its place among the symbol's slots, and the symbol's frequency."""
    frequencies = table.frequencies.astype(np.int64)
    symbol, frequency = np.repeat(table.symbols, frequencies), np.repeat(table.frequencies, frequencies)
    place = np.arange(1 << _PRECISION) - np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
    entries: _Longs = frequency << np.uint64(32) | place.astype(np.uint64) << np.uint64(8) | symbol.astype(np.uint64)
    return entries
