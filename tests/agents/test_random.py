from __future__ import annotations

import numpy as np
from tests.agents.toys import toy_space

from trimtab.agents.random import draw

SPACE = toy_space()


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
