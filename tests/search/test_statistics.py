from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.evaluators.measure.intervals import Interval
from trimtab.search.contest.statistics import (
    at,
    best_so_far,
    curve,
    first_reaching,
    hypervolume,
    spread,
    verdict_over_seeds,
    wins,
)

shares = st.floats(0.0, 1.0)


def test_a_spread_is_the_median_and_the_range() -> None:
    values = [0.3, 0.1, 0.2, 0.9]
    assert spread(values) == Interval(float(np.median(values)), 0.1, 0.9)


@given(st.lists(st.one_of(st.none(), shares), max_size=30))
def test_the_best_so_far_is_the_running_maximum(values: list[float | None]) -> None:
    steps = best_so_far(range(1, len(values) + 1), values)
    for n in range(len(values) + 1):
        known = [value for value in values[:n] if value is not None]
        assert at(steps, n) == max(known, default=None)
    for level in (0.0, 0.3, 0.9):
        found = next((n for n, value in enumerate(values, 1) if value is not None and value >= level), None)
        assert first_reaching(steps, level) == found


def test_a_curve_begins_where_every_seed_has_something_feasible() -> None:
    runs = [[(1.0, 0.2), (4.0, 0.6)], [(3.0, 0.5)], [(2.0, 0.1), (5.0, 0.9)]]
    assert curve(runs) == [
        (3.0, Interval(0.2, 0.1, 0.5)),
        (4.0, Interval(0.5, 0.1, 0.6)),
        (5.0, Interval(0.6, 0.5, 0.9)),
    ]
    assert curve([*runs, []]) == []


def test_a_long_curve_keeps_its_ends() -> None:
    long = [[(float(i), i / 1000) for i in range(1, 1000)]]
    kept = curve(long, 50)
    assert len(kept) == 50
    assert (kept[0][0], kept[-1][0]) == (1.0, 999.0)


@given(st.lists(st.tuples(st.floats(0, 2), shares), max_size=12), shares.filter(lambda v: v < 0.95))
def test_the_hypervolume_is_the_area_counted_on_the_grid_of_all_coordinates(
    points: list[tuple[float, float]], value: float
) -> None:
    cost = 1.5
    across = sorted({0.0, cost, *(c for c, _ in points if c < cost)})
    up = sorted({value, 1.0, *(v for _, v in points if v > value)})
    area = sum(
        (right - left) * (high - low)
        for (left, right), (low, high) in itertools.product(itertools.pairwise(across), itertools.pairwise(up))
        if any(c <= left and v >= high for c, v in points)
    )
    assert hypervolume(points, cost, value) == pytest.approx(area / (cost * (1 - value)), abs=1e-12)


def test_the_hypervolume_of_known_fronts() -> None:
    assert hypervolume([], 1.0, 0.1) == 0.0
    assert hypervolume([(0.0, 1.0)], 2.0, 0.1) == pytest.approx(1.0)
    assert hypervolume([(0.5, 0.55)], 1.0, 0.1) == pytest.approx(0.5 * 0.45 / 0.9)
    assert hypervolume([(2.0, 1.0), (0.5, 0.05)], 1.0, 0.1) == 0.0  # beyond the reference


def test_one_agent_beats_another_if_its_worst_seed_beats_the_others_best() -> None:
    assert wins([0.5, 0.6], [0.4, 0.49])
    assert not wins([0.5, 0.6], [0.4, 0.5])


def test_how_often_agents_that_are_alike_win_by_chance() -> None:
    rng = random.Random(0)
    draws = [[rng.random() for _ in range(6)] for _ in range(4000)]
    won = sum(wins(d[:3], d[3:]) or wins(d[3:], d[:3]) for d in draws)
    assert won / len(draws) == pytest.approx(2 / 20, abs=0.02)


@pytest.mark.parametrize(
    ("bests", "said", "not_said"),
    [
        ({"a": [0.8, 0.9], "b": [0.7, 0.75], "c": [0.1, 0.2]}, "a (median 85.00%, 80.00% to 90.00%", "Nobody"),
        ({"a": [0.8, 0.9], "b": [0.7, 0.75], "c": [0.1, 0.2]}, "b (median 72.50%", "Nobody"),
        ({"a": [0.8, 0.9], "b": [0.7, 0.8], "c": [0.1, 0.2]}, "Nobody wins after 40 evaluations by more", "wins after"),
        ({"a": [0.8, 0.9], "b": [0.7, 0.8], "c": [0.1, 0.2]}, "overlaps b (median 75.00%", "c (median"),
        ({"a": [0.8, 0.9], "b": [0.7, 0.8], "c": [0.1, 0.2]}, "it beats c.", "it beats b"),
        ({"a": [0.8], "b": [0.7]}, "a (80.00%) leads", "wins"),
        ({"a": [0.8, 0.9]}, "ran alone", "wins"),
        ({"a": [0.0, 0.0], "b": [0.0, 0.0]}, "Nobody found a policy", "wins"),
        ({"a": [0.9, 0.0], "b": [0.3, 0.4]}, "Nobody wins", "wins after"),  # a seed that found nothing counts
    ],
)
def test_the_verdict(bests: dict[str, list[float]], said: str, not_said: str) -> None:
    text = verdict_over_seeds(bests, "40 evaluations")
    assert said in text
    assert not_said not in text.removeprefix("Nobody wins after")
