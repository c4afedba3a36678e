"""Product quantisation: a linear layer's weights as codes of short vectors."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from trimtab.errors import BadInput
from trimtab.spaces.network import Array

__all__ = ["product_quantise"]

#: Starts of k-means, of which the best counts.
STARTS = 4


def product_quantise(weight: Array, length: int, entries: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Cluster the rows of every `length` columns of a weight (O, I) into at most `entries` vectors.

    Returns (codebooks (S, entries, length) float32, codes (O, S) of the least unsigned type, the weight (O, I) float32
    that they stand for), S = ceil(I / length). The last segment may be shorter: its codebook ends in zeros, and so do
    the vectors of a segment with fewer distinct rows than entries. Gong et al. 2014 (arXiv:1412.6115, section
    3.2.3) after Jegou et al. 2011; k-means by scikit-learn, seeded. A weight of another shape, or numbers that are not
    at least 1, are a `BadInput`.
    """
    if weight.ndim != 2 or length < 1 or entries < 1:
        raise BadInput(
            f"product quantisation takes a linear layer's weight, a length and entries of at least 1, not a weight of "
            f"shape {weight.shape}, length {length} and {entries} entries"
        )
    outputs, inputs = weight.shape
    segments = -(-inputs // length)
    padded = np.pad(weight.astype(np.float32), ((0, 0), (0, segments * length - inputs)))
    codebooks = np.zeros((segments, entries, length), np.float32)
    codes = np.empty((outputs, segments), np.min_scalar_type(entries - 1))
    # One thread: the order of sums would show in the last bits.
    with threadpool_limits(1):
        for s in range(segments):
            vectors, codes[:, s] = _clusters(padded[:, s * length : (s + 1) * length], entries, seed)
            codebooks[s, : len(vectors)] = vectors
    restored = codebooks[np.arange(segments), codes].reshape(outputs, -1)[:, :inputs]
    return codebooks, codes, restored


def _clusters(rows: Array, entries: int, seed: int) -> tuple[Array, Array]:
    """Vectors (at most `entries`, L) and each row's, exact where the distinct rows are few enough."""
    distinct, codes = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= entries:
        return distinct, codes.ravel()
    means = KMeans(entries, n_init=STARTS, random_state=seed, tol=0.0).fit(rows)
    return means.cluster_centers_, means.labels_
