"""Tensor trains for the weights of linear layers (Novikov et al. 2015, arXiv:1509.06569, section 4).

No engine here runs one: it is a form of storage, and `tt_dense` makes the layer of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.spaces.network import Array

__all__ = ["tt_dense", "tt_factors", "tt_modes"]


def tt_modes(size: int, count: int) -> tuple[int, ...]:
    """Return `count` factors of a number of channels, as equal as greedy division makes them, smallest first."""
    modes = [1] * count
    for prime in reversed(_primes(size)):
        modes[modes.index(min(modes))] *= prime
    return tuple(sorted(modes))


def tt_factors(weight: Array, ranks: Sequence[int]) -> list[Array]:
    """Return the len(ranks) + 1 cores (r, m, n, r') of a weight (O, I), whose modes m and n multiply to O and I.

    By successive truncated singular value decompositions (Oseledets 2011, algorithm 1): the squared error is at most
    the sum of those of the unfoldings, and at most len(ranks) times the smallest possible. A rank larger than its
    unfolding's is lowered to it. float32, computed in float64.
    """
    count = len(ranks) + 1
    rows, columns = tt_modes(weight.shape[0], count), tt_modes(weight.shape[1], count)
    pairs = weight.astype(np.float64).reshape(*rows, *columns)
    rest = pairs.transpose([axis for k in range(count) for axis in (k, count + k)])
    cores, before = [], 1
    for m, n, rank in zip(rows, columns, ranks, strict=False):
        left, values, right = np.linalg.svd(rest.reshape(before * m * n, -1), full_matrices=False)
        rank = min(rank, len(values))
        cores.append(left[:, :rank].reshape(before, m, n, rank))
        rest, before = values[:rank, None] * right[:rank], rank
    cores.append(rest.reshape(before, rows[-1], columns[-1], 1))
    return [np.ascontiguousarray(core, np.float32) for core in cores]


def tt_dense(cores: Sequence[Array]) -> Array:
    """Return the weight (O, I), float32, that cores (r, m, n, r') stand for."""
    product = np.ones((1, 1, 1))
    for core in cores:
        joined = np.einsum("oir,rmns->omins", product, core.astype(np.float64), optimize=True)
        outputs, m, inputs, n, rank = joined.shape
        product = joined.reshape(outputs * m, inputs * n, rank)
    return product[:, :, 0].astype(np.float32)


def _primes(number: int) -> list[int]:
    """Prime factors, ascending."""
    found = []
    for divisor in range(2, math.isqrt(number) + 1):
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
    return found + ([number] if number > 1 else [])
