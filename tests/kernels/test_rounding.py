"""Rounding to steps and its gradients, against the paper's formulas in NumPy, at every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.levels import EVERY_LEVEL

from trimtab.errors import BadInput
from trimtab.kernels.rounding import round_to_steps, round_to_steps_back

CASES = {
    "8 bits behind a ReLU": (0.02, 0, 255),
    "8 bits of both signs": (0.013, -97, 158),
    "2 bits": (0.7, -1, 2),
    "1 bit": (0.5, 0, 1),
}


def forward(x: np.ndarray, step: float, low: int, high: int) -> np.ndarray:
    ratio = x * np.float32(1 / np.float32(step))
    return np.rint(np.clip(ratio, low, high)).astype(np.float32) * np.float32(step)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_nearest_multiple(
    case: str, level: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", level)
    step, low, high = CASES[case]
    for count in (0, 1, 3, 16, 31, 1000):
        x = (rng.standard_normal(count) * 2).astype(np.float32)
        y = np.full_like(x, np.nan)
        round_to_steps(x, y, step, low, high)
        np.testing.assert_array_equal(y, forward(x, step, low, high))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_paper(
    case: str, level: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equation 5 for the values; equation 3 for the step: the rounding's error within the ends, the end beyond them."""
    monkeypatch.setenv("TRIMTAB_ISA", level)
    step, low, high = CASES[case]
    for count in (0, 1, 3, 16, 31, 5000):
        x, dy = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
        dx = np.full_like(x, np.nan)
        found = round_to_steps_back(x, dy, dx, step, low, high)
        ratio = x * np.float32(1 / np.float32(step))
        inside = (ratio >= low) & (ratio <= high)
        np.testing.assert_array_equal(dx, np.where(inside, dy, 0))
        each = np.where(inside, np.rint(ratio) - ratio, np.clip(ratio, low, high)).astype(np.float64)
        scale = np.abs(each * dy).sum() + 1e-6
        assert abs(found - (each * dy).sum()) < 1e-5 * scale


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40), st.floats(0.01, 2))
def test_what_is_rounded_stays_as_it_is(values: list[float], step: float) -> None:
    x = np.array(values, np.float32)
    once, twice = np.empty_like(x), np.empty_like(x)
    round_to_steps(x, once, step, -8, 7)
    round_to_steps(once, twice, step, -8, 7)
    np.testing.assert_array_equal(once, twice)


def test_what_is_not_a_number_goes_to_the_low_end() -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    y = np.empty_like(x)
    round_to_steps(x, y, 1.0, -2, 5)
    assert y.tolist() == [-2, 5, -2]


def test_other_arrays_are_refused() -> None:
    x = np.zeros(4, np.float32)
    for wrong in (np.zeros(3, np.float32), np.zeros(4), np.zeros((2, 2), np.float32), np.zeros(8, np.float32)[::2]):
        with pytest.raises(BadInput):
            round_to_steps(x, wrong, 1.0, 0, 1)
