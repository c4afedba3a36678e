"""What repairs observe, against plain loops and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import BadInput
from trimtab.kernels.compensated import descend, round_in_order
from trimtab.kernels.observe import extremes, read_fields, storage_error

SEEDS = st.integers(0, 2**32 - 1)


@given(st.tuples(*[st.integers(1, 3)] * 6), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5), SEEDS)
def test_fields_are_what_a_convolution_reads(
    window: tuple[int, ...], top: int, left: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width, down, across, dilation_h, dilation_w = window
    images = rng.normal(size=(2, 7, 6, channels)).astype(np.float32)
    image, row, column = rng.integers(0, 2, 9), rng.integers(0, 4, 9), rng.integers(0, 4, 9)
    found = read_fields(images, image, row, column, (*window, top, left))
    assert found.shape == (9, channels * height * width)
    padded = np.pad(images, ((0, 0), (top, 30), (left, 30), (0, 0)))
    for field, n, r, c in zip(found.reshape(9, channels, height, width), image, row, column, strict=True):
        for y, x in itertools.product(range(height), range(width)):
            pixel = padded[n, r * down + y * dilation_h, c * across + x * dilation_w]
            np.testing.assert_array_equal(field[:, y, x], pixel)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_extremes_wherever_they_are(count: int, rng: np.random.Generator) -> None:
    values = rng.normal(size=count).astype(np.float32)
    for at in {0, count // 2, count - 1}:
        for outlier in (-9.0, 9.0):
            values[at] = outlier
            assert extremes(values) == (values.min(), values.max())


@given(st.integers(1, 2000), st.sampled_from([(0, 255), (-97, 158), (-1, 2), (0, 1)]), st.floats(0.01, 2), SEEDS)
def test_storage_errors_are_those_of_the_nearest_multiples(
    count: int, ends: tuple[int, int], step: float, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    step = float(np.float32(step))
    stored = np.clip(np.rint(values.astype(np.float64) / step), *ends) * step
    expected = np.square(stored - values).sum()
    assert storage_error(values, step, *ends) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_other_arrays_are_refused() -> None:
    images, places = np.zeros((2, 3, 3, 4), np.float32), np.zeros(3, np.int64)
    geometry = (1, 1, 1, 1, 1, 1, 0, 0)
    for wrong in (places + 2, places - 1, places[:2], places.astype(np.int32), np.zeros(6, np.int64)[::2]):
        with pytest.raises(BadInput):
            read_fields(images, wrong, places, places, geometry)
    for flawed in (images.astype(np.float64), images[..., ::2], images[0]):
        with pytest.raises(BadInput):
            read_fields(flawed, places, places, places, geometry)
    for values in (np.zeros(0, np.float32), np.zeros(4), np.zeros(8, np.float32)[::2]):
        with pytest.raises(BadInput):
            extremes(values)
        with pytest.raises(BadInput):
            storage_error(values, 1.0, 0, 1)
    rows, scale, levels, square = (
        np.zeros((2, 3), np.float32),
        np.ones(2, np.float32),
        np.array([-1, 0, 1], np.int8),
        np.eye(3, dtype=np.float32),
    )
    for arguments in (
        (rows[0], scale, levels, square),
        (rows, scale[:1], levels, square),
        (rows, scale, levels[:0], square),
        (rows, scale, levels.astype(np.int64), square),
        (rows, scale, levels, square[:2]),
        (rows, scale, levels, np.asfortranarray(np.tri(3, dtype=np.float32))),
        (rows.astype(np.float64), scale, levels, square),
    ):
        with pytest.raises(BadInput):
            round_in_order(*arguments)
    with pytest.raises(BadInput):
        descend(rows, scale, levels, square, rows.copy(), rows[:, :2].copy(), 1)
