from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from trimtab.agents.additive import AdditiveModel
from trimtab.agents.surrogate import LearnedErrors
from trimtab.spaces import Options
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.testing.agents import ToyEstimates, ToyLimits, toy_space

SPACE = toy_space(Options(channels=4, bits=(LayerFormat.of(4, 8), INT8, FLOAT), ranks=(0.25,)))
MODEL = AdditiveModel(SPACE, ToyLimits(SPACE), ToyEstimates(SPACE))
WEIGHTS = np.random.default_rng(3).exponential(size=len(MODEL.factors)) ** 2


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, MODEL.sizes, (count, len(MODEL.sizes)))


def losses(found: np.ndarray) -> np.ndarray:
    """Five times a weighted sum of the layers' errors, (N,)."""
    return 5 * MODEL.values[MODEL.rows(found), 0] @ WEIGHTS  # type: ignore[no-any-return]


def drawn(learned: LearnedErrors, found: np.ndarray, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    return learned.draw(np.random.default_rng(seed), spread)[MODEL.rows(found)].sum(axis=1)  # type: ignore[no-any-return]


def test_before_anything_is_told_losses_are_as_estimated() -> None:
    found = vectors(200, 1)
    assert spearmanr(drawn(LearnedErrors(MODEL), found, spread=0.0), MODEL.totals(found)[:, 0])[0] > 0.999


def test_weights_are_learned_and_doubt_shrinks() -> None:
    learned, unseen = LearnedErrors(MODEL), vectors(200, 2)
    ranks, spreads = [], []
    for vector in vectors(120, 1):
        if len(ranks) in (0, 20, 119):
            spreads.append(np.std([drawn(learned, unseen, seed) for seed in range(8)], axis=0).mean())
        ranks.append(spearmanr(drawn(learned, unseen, spread=0.0), losses(unseen))[0] if len(ranks) in (0, 119) else 0)
        learned.tell(vector, float(np.exp(-losses(vector[None])[0])))
    assert ranks[-1] > 0.95 > ranks[0]
    assert spreads[0] > spreads[1] > spreads[2]


def test_errors_are_never_negative() -> None:
    learned = LearnedErrors(MODEL)
    for vector in vectors(10, 1):
        learned.tell(vector, 0.5)
    assert (learned.draw(np.random.default_rng(0), 5.0) >= 0).all()


def test_the_same_results_give_the_same_errors() -> None:
    one, other = LearnedErrors(MODEL), LearnedErrors(MODEL)
    for i, vector in enumerate(vectors(10, 1)):
        one.tell(vector, 0.5 + i / 30)
        other.tell(vector, 0.5 + i / 30)
        other.draw(np.random.default_rng(i))
    np.testing.assert_array_equal(one.draw(np.random.default_rng(9)), other.draw(np.random.default_rng(9)))
