from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from trimtab.agents import Random
from trimtab.agents.random import BLOCK, draw, walk
from trimtab.spaces import Options, Policy
from trimtab.spaces.numbers.formats import INT8
from trimtab.testing.agents import ToyLimits, toy_space

SPACE = toy_space()
TINY = toy_space(Options(channels=3, min_keep=0.3, bits=(INT8,), ranks=()))


class KnownLimits(ToyLimits):
    """Remembers what it priced, so that long walks over few policies are quick."""

    def __init__(self, size: float, macs: float) -> None:
        super().__init__(TINY, size, macs)
        self._known: dict[Policy, bool] = {}

    def feasible(self, policy: Policy) -> bool:
        if policy not in self._known:
            self._known[policy] = super().feasible(policy)
        return self._known[policy]


def uniformity(limits: ToyLimits, vectors: Sequence[Sequence[int]]) -> float:
    """The p-value of a chi-square test that vectors are drawn uniformly from all feasible ones, by enumeration."""
    every = itertools.product(*(range(len(knob.choices)) for knob in TINY.knobs))
    counts = {vector: 0 for vector in every if limits.feasible(TINY.decode(vector))}
    assert 30 < len(counts) < TINY.size
    found = Counter(map(tuple, vectors))
    assert set(found) <= set(counts)
    return float(stats.chisquare([found[vector] for vector in counts]).pvalue)


@pytest.mark.parametrize("shares", [(0.15, 0.9), (0.2, 0.6)])
def test_walks_have_forgotten_their_start_and_are_uniform(shares: tuple[float, float]) -> None:
    limits = KnownLimits(*shares)
    firsts = [next(walk(TINY, limits, np.random.default_rng(seed))) for seed in range(1500)]
    assert 0.01 < uniformity(limits, firsts) < 0.999


def test_one_long_walk_is_uniform() -> None:
    limits = KnownLimits(0.2, 0.6)
    long = list(itertools.islice(walk(TINY, limits, np.random.default_rng(0)), 8000))
    assert 0.01 < uniformity(limits, long[::5]) < 0.999


def test_the_test_of_uniformity_finds_projections_out() -> None:
    limits = KnownLimits(0.2, 0.6)
    rng = np.random.default_rng(0)
    vectors = [[int(rng.integers(len(knob.choices))) for knob in TINY.knobs] for _ in range(1500)]
    assert uniformity(limits, [TINY.encode(limits.project(TINY.decode(vector))) for vector in vectors]) < 1e-6


def test_a_proposal_depends_on_its_number_alone() -> None:
    limits = ToyLimits(SPACE)
    one = Random(SPACE, limits, 7)
    in_order = [one._propose(number) for number in range(BLOCK + 3)]
    for number in (BLOCK + 2, BLOCK, 5, 4, 5, 6):
        assert one._propose(number) == in_order[number]


def shares(count: int) -> np.ndarray:
    """Per policy and kind the mean position of the drawn knobs in their range: 0 smallest, 1 untouched. (count, 3)"""
    spans = np.array([len(knob.choices) - 1 for knob in SPACE.knobs])
    kinds = np.array([knob.kind for knob in SPACE.knobs])
    vectors = np.array([draw(SPACE, np.random.default_rng(seed)) for seed in range(count)])
    assert (vectors >= 0).all()
    assert (vectors <= spans).all()
    assert {tuple(column) for column in zip(vectors.max(0), vectors.min(0), strict=True)} == {
        (span, 0) for span in spans
    }
    levels = vectors / spans
    return np.stack([levels[:, kinds == kind].mean(1) for kind in ("channels", "bits", "form")], 1)


def test_draws_cover_every_tightness_of_every_kind() -> None:
    positions = shares(400)
    assert (np.quantile(positions, 0.1, axis=0) < 0.3).all()
    assert (np.quantile(positions, 0.9, axis=0) > 0.7).all()


def test_kinds_are_drawn_independently() -> None:
    correlation = np.corrcoef(shares(400).T)
    assert (np.abs(correlation[np.triu_indices(3, 1)]) < 0.15).all()
