"""Small whole numbers side by side: eight of `bits` bits each in `bits` bytes, the first one in the lowest bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["pack_bits", "packed_bytes", "unpack_bits"]

_GROUP = 8  # numbers that are packed together, so that they fill whole bytes


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` numbers of 1 to 8 bits take."""
    return -(-count // _GROUP) * bits


def pack_bits(numbers: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return numbers (n,), each below 2^bits, side by side; zeros fill up the last bytes."""
    groups = np.zeros((-(-len(numbers) // _GROUP), _GROUP), np.uint8)
    groups.reshape(-1)[: len(numbers)] = numbers
    words = np.zeros(len(groups), "<u8")
    for i in range(_GROUP):
        words |= groups[:, i].astype("<u8") << np.uint64(bits * i)
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)


def unpack_bits(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return the numbers in whole groups of `bits` bytes, those that filled up the last one included."""
    groups = packed.reshape(-1, bits)
    words = np.zeros((len(groups), 8), np.uint8)
    words[:, :bits] = groups
    whole = words.view("<u8")[:, 0]
    numbers = np.empty((len(groups), _GROUP), np.uint8)
    for i in range(_GROUP):
        numbers[:, i] = (whole >> np.uint64(bits * i)) & np.uint64(2**bits - 1)
    return numbers.reshape(-1)
