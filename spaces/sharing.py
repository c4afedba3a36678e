"""Sharing: the weight nearest to a given one among those whose values are shared in some way.

A way is written as text: "hashed 0.1" (a tenth as many values as weights), "circulant 4" (blocks of 4 x 4 channels),
"kernels 64" (64 different kernels), "product 64" (64 different vectors of 4 weights at each position of the rows).
`trimtab.sharing` says what they stand for. The engine runs the dense weight: what sharing saves is bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from trimtab.sharing import LARGEST_CODEBOOK, SUBVECTOR, circulant_index, expand, hashed_index, subvectors
from trimtab.spaces.network import Array, Op
from trimtab.spaces.quantise import quantise_weight

__all__ = ["SHARINGS", "check_amount", "parameters", "share", "share_integers"]

#: Starts of k-means, of which the best counts.
STARTS = 4

#: The largest block of channels that is made circulant.
LARGEST_BLOCK = 1024

#: Way of sharing -> whether a layer can take it at all.
SHARINGS: Mapping[str, Callable[[Op], bool]] = {
    "hashed": lambda op: True,
    "circulant": lambda op: op.groups == 1,
    "kernels": lambda op: op.kind == "conv2d" and op.weight is not None and math.prod(op.weight.shape[2:]) > 1,
    "product": lambda op: op.kind == "linear",
}


def check_amount(name: str, amount: float) -> str | None:
    """Return what is wrong with a way's number, if anything is."""
    if name == "hashed":
        return None if 0 < amount < 1 else "the number is a fraction between 0 and 1"
    largest = LARGEST_BLOCK if name == "circulant" else LARGEST_CODEBOOK
    whole = amount == int(amount) and 2 <= amount <= largest
    return None if whole else f"the number is a whole one from 2 to {largest}"


def share(weight: Array, how: str) -> dict[str, Array]:
    """Return the float32 parameters (and uint8 indices) whose weight is nearest to the given one.

    Hashed and circulant weights are exact least squares: every value is the mean of those that it stands for. Codebooks
    are k-means', from the best of several seeded starts: near the optimum.
    """
    name, amount = how.split()
    return _SHARE[name](weight.astype(np.float64), float(amount))


def share_integers(weight: Array, how: str, bits: int, grid: str = "uniform") -> tuple[Array, Array]:
    """Return (int8 weight, float32 scale (O,)) of 1 to 8 bits that shares values.

    The shared values have one scale, because weights of all output channels share them.
    """
    parts = share(weight, how)
    values = "codebook" if "codebook" in parts else "values"
    integers, scale = quantise_weight(parts[values].reshape(1, -1), bits, grid)
    dense = expand(how.split()[0], {**parts, values: integers.reshape(parts[values].shape)}, weight.shape)
    return np.ascontiguousarray(dense), np.repeat(scale, len(weight))


def parameters(shape: tuple[int, ...], how: str) -> tuple[int, int, int]:
    """Return how many values a weight of this shape is left with, how many indices, and the bits of an index."""
    name, amount = how.split()[0], float(how.split()[1])
    taps = math.prod(shape[2:])
    if name == "hashed":
        return max(1, round(amount * math.prod(shape))), 0, 0
    if name == "circulant":
        return math.ceil(shape[0] / amount) * math.ceil(shape[1] / amount) * int(amount) * taps, 0, 0
    positions = 1 if name == "kernels" else math.ceil(shape[1] / SUBVECTOR)
    indices = shape[0] * (shape[1] if name == "kernels" else positions)
    entries = min(int(amount), indices // positions, LARGEST_CODEBOOK)
    width = taps if name == "kernels" else SUBVECTOR
    return positions * entries * width, indices, max(1, (entries - 1).bit_length())


def _share_hashed(weight: Array, amount: float) -> dict[str, Array]:
    buckets = max(1, round(amount * weight.size))
    index, sign = hashed_index(weight.size, buckets)
    sums = np.bincount(index, weight.reshape(-1) * sign, buckets)
    return {"values": (sums / np.maximum(np.bincount(index, minlength=buckets), 1)).astype(np.float32)}


def _share_circulant(weight: Array, amount: float) -> dict[str, Array]:
    size = int(amount)
    outputs, inputs, taps = *weight.shape[:2], weight.shape[2:]
    fill = ((0, -outputs % size), (0, -inputs % size), *[(0, 0)] * len(taps))
    sums, counts = (
        _along_diagonals(np.pad(array, fill), size) for array in (weight, np.ones((outputs, inputs, *[1] * len(taps))))
    )
    return {"values": (sums / np.maximum(counts, 1)).astype(np.float32)}


def _along_diagonals(padded: Array, size: int) -> Array:
    """Sums over the circulant diagonals of blocks, (P, Q, size, ...)."""
    rows, columns = padded.shape[0] // size, padded.shape[1] // size
    blocks = np.moveaxis(padded.reshape(rows, size, columns, size, *padded.shape[2:]), 2, 1)
    diagonal = circulant_index(size)
    return np.stack([blocks[:, :, diagonal == k].sum(axis=2) for k in range(size)], axis=2)


def _share_kernels(weight: Array, amount: float) -> dict[str, Array]:
    kernels = weight.reshape(-1, math.prod(weight.shape[2:]))
    codebook, index = _k_means(kernels, int(amount))
    return {"codebook": codebook.reshape(-1, *weight.shape[2:]), "index": index.reshape(weight.shape[:2])}


def _share_product(weight: Array, amount: float) -> dict[str, Array]:
    found = [_k_means(part, int(amount)) for part in subvectors(weight)]
    return {"codebook": np.stack([book for book, _ in found]), "index": np.stack([index for _, index in found], 1)}


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


_SHARE: Mapping[str, Callable[[Array, float], dict[str, Array]]] = {
    "hashed": _share_hashed,
    "circulant": _share_circulant,
    "kernels": _share_kernels,
    "product": _share_product,
}
