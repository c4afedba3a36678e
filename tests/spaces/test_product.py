"""Product quantisation, against every partition of a tiny layer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from trimtab.errors import BadInput
from trimtab.spaces.network import Array
from trimtab.spaces.product import product_quantise

WEIGHT = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def best_error(rows: Array, entries: int) -> float:
    """Of all ways to put the rows into so many clusters."""
    best = np.inf
    for labels in product(range(entries), repeat=len(rows)):
        groups = [rows[np.array(labels) == k] for k in range(entries)]
        best = min(best, sum(float(np.square(group - group.mean(0)).sum()) for group in groups if len(group)))
    return best


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_segment_is_the_best_partition(length: int) -> None:
    restored = product_quantise(WEIGHT, length, 3)[2]
    for start in range(0, 6, length):
        part = slice(start, start + length)
        error = float(np.square(WEIGHT[:, part] - restored[:, part]).sum())
        assert error == pytest.approx(best_error(WEIGHT[:, part], 3), rel=1e-5)


def test_codes_look_up_the_nearest_vectors() -> None:
    weight = np.random.default_rng(1).normal(size=(300, 10)).astype(np.float32)
    codebooks, codes, restored = product_quantise(weight, 4, 16)
    assert codebooks.shape == (3, 16, 4)
    assert codes.shape == (300, 3)
    assert codes.dtype == np.uint8
    assert (codebooks[2, :, 2:] == 0).all()
    for row, code, found in zip(weight, codes, restored, strict=True):
        for s in range(3):
            segment = row[4 * s : 4 * s + 4]
            distance = np.square(codebooks[s, :, : len(segment)] - segment).sum(axis=1)
            assert distance[code[s]] == pytest.approx(distance.min(), rel=1e-4)
            np.testing.assert_array_equal(found[4 * s : 4 * s + 4], codebooks[s, code[s], : len(segment)])


def test_few_distinct_rows_are_kept_as_they_are() -> None:
    weight = np.repeat(WEIGHT[:3], 5, axis=0)
    np.testing.assert_array_equal(product_quantise(weight, 4, 4)[2], weight)


def test_the_same_seed_gives_the_same_bytes() -> None:
    weight = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    first, second = (product_quantise(weight, 4, 8, seed=3) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("shape", "length", "entries"), [((4, 3, 3, 3), 2, 4), ((4, 6), 0, 4), ((4, 6), 2, 0)])
def test_what_has_no_codes_is_refused(shape: tuple[int, ...], length: int, entries: int) -> None:
    with pytest.raises(BadInput, match="product quantisation takes a linear layer"):
        product_quantise(np.zeros(shape, np.float32), length, entries)
