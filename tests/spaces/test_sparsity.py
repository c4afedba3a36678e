"""Sparsity patterns against plain loops, brute force over all masks, and least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.pairwise import pairwise

from trimtab.errors import BadInput
from trimtab.graph import Array
from trimtab.spaces.forms import sparsity
from trimtab.spaces.forms.sparsity import PATTERNS, parse_pattern, pattern_mask, refit, sparsify

TEXTS = ["weights 0.5", "weights 0.9", "2:4", "1:4", "2:8", "block 0.5", "filters 0.5"]


def weight_of(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gram_of(inputs: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5 * inputs, inputs)) @ rng.normal(size=(inputs, inputs)) + 0.3
    return np.asarray(x.T @ x / len(x))


def error(found: Array, weight: Array, gram: Array) -> float:
    change = (found - weight).reshape(len(weight), -1).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", change, gram, change))


@pairwise(
    text=[text for text in TEXTS if not text.startswith("block")],
    shape=[(10, 16, 3, 3), (20, 8, 1, 1), (17, 16)],
    with_gram=[False, True],
)
def test_the_share_of_zeros_is_the_pattern_s(text: str, shape: tuple[int, ...], with_gram: bool) -> None:
    weight = weight_of(*shape)
    found = sparsify(weight, text, gram_of(weight[0].size) if with_gram else None)
    assert found.shape == shape
    assert found.dtype == np.float32
    assert abs(float((found == 0).mean()) - parse_pattern(text).zeros) <= 0.5 / weight[0].size


@pytest.mark.parametrize("with_gram", [False, True])
@pytest.mark.parametrize(("text", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:8", 3, 8)])
def test_n_of_m_input_channels_stay_at_every_tap(text: str, kept: int, of: int, with_gram: bool) -> None:
    weight = weight_of(6, 10, 3, 3)  # 10 channels: the last sequence is shorter
    found = sparsify(weight, text, gram_of(90) if with_gram else None)
    for o, start, row, column in itertools.product(range(6), range(0, 10, of), range(3), range(3)):
        part = found[o, start : start + of, row, column]
        assert np.count_nonzero(part) == min(kept, len(part))


@pytest.mark.parametrize("with_gram", [False, True])
def test_blocks_are_whole(with_gram: bool) -> None:
    weight = weight_of(40, 10, 3, 3)
    zero = sparsify(weight, "block 0.6", gram_of(90) if with_gram else None) == 0
    gone = 0
    for first, start, row, column in itertools.product(range(0, 40, 16), range(0, 10, 4), range(3), range(3)):
        block = zero[first : first + 16, start : start + 4, row, column]
        assert block.all() == block.any()
        gone += bool(block.all())
    assert gone == round(0.6 * 3 * 3 * 9)


@pytest.mark.parametrize("with_gram", [False, True])
def test_all_filters_have_the_same_positions(with_gram: bool) -> None:
    zero = sparsify(weight_of(12, 5, 3, 3), "filters 0.4", gram_of(45) if with_gram else None) == 0
    assert (zero == zero[0]).all()
    assert zero[0].sum() == 18


def test_without_moments_the_smallest_go() -> None:
    weight = weight_of(8, 4, 3, 3)
    threshold = np.sort(np.abs(weight), axis=None)[weight.size // 2]
    assert np.array_equal(sparsify(weight, "weights 0.5"), np.where(np.abs(weight) >= threshold, weight, 0))
    norms = np.square(weight).sum(axis=0)
    stays = norms >= np.sort(norms, axis=None)[18]
    assert np.array_equal(sparsify(weight, "filters 0.5"), weight * stays)


def cheapest(rows: Array, gram: Array, masks: list[Array]) -> tuple[float, Array]:
    """The least squared error of all masks (O, I), each with its least-squares weights by numpy."""
    best = (np.inf, rows)
    root = np.linalg.cholesky(gram).T
    for mask in masks:
        fitted = np.zeros_like(rows)
        for o, stays in enumerate(mask):
            fitted[o, stays] = np.linalg.lstsq(root[:, stays], root @ rows[o], rcond=None)[0]
        best = min(best, (error(fitted, rows, gram), fitted), key=lambda pair: pair[0])
    return best


def test_refitting_is_least_squares_on_what_stays() -> None:
    rng = np.random.default_rng(0)
    rows, gram = rng.normal(size=(6, 9)), gram_of(9)
    mask = rng.random((6, 9)) < 0.5
    mask[3] = False
    assert np.allclose(refit(rows, mask, gram), cheapest(rows, gram, [mask])[1])


@pytest.mark.parametrize("seed", range(4))
def test_the_surgeon_removes_what_costs_least_and_refits_the_rest(seed: int) -> None:
    # By brute force: refit without each weight that is left, take the best, three times.
    weight, gram = weight_of(1, 6, seed=seed).astype(np.float64), gram_of(6, seed + 10)
    mask = np.ones((1, 6), dtype=bool)
    for _ in range(3):
        options = []
        for i in np.flatnonzero(mask[0]):
            option = mask.copy()
            option[0, i] = False
            options.append((cheapest(weight, gram, [option])[0], int(i)))
        mask[0, min(options)[1]] = False
    found = sparsify(weight, "weights 0.5", gram)
    assert np.array_equal(found != 0, mask)
    assert np.allclose(found, cheapest(weight, gram, [mask])[1], atol=1e-4)


@pytest.mark.parametrize("text", ["weights 0.5", "2:4", "filters 0.5"])
@pytest.mark.parametrize("seed", range(3))
def test_the_surgeon_is_near_the_best_of_all_masks(text: str, seed: int) -> None:
    weight, gram = weight_of(2, 8, seed=seed).astype(np.float64), gram_of(8, seed + 20)
    rows = [np.array(bits, dtype=bool) for bits in itertools.product([0, 1], repeat=8)]
    if text == "2:4":
        rows = [row for row in rows if row[:4].sum() == row[4:].sum() == 2]
        best = sum(cheapest(weight[o : o + 1], gram, [row[None] for row in rows])[0] for o in range(2))
    elif text == "filters 0.5":
        best = cheapest(weight, gram, [np.stack([row, row]) for row in rows if row.sum() == 4])[0]
    else:
        by_count = [
            {n: cheapest(weight[o : o + 1], gram, [r[None] for r in rows if r.sum() == n])[0] for n in range(9)}
            for o in range(2)
        ]
        best = min(by_count[0][n] + by_count[1][8 - n] for n in range(9))
    by_surgeon = error(sparsify(weight, text, gram), weight, gram)
    assert best * 0.999 <= by_surgeon <= 3 * best  # one by one is not all at once
    assert by_surgeon < error(sparsify(weight, text), weight, gram)


@pytest.mark.parametrize("text", TEXTS)
def test_the_surgeon_costs_less_than_the_smallest_weights_refitted(text: str) -> None:
    surgeon, plain = 0.0, 0.0
    for seed in range(5):
        weight, gram = weight_of(16, 12, 1, 1, seed=seed), gram_of(12, seed)
        rows = weight.reshape(16, 12).astype(np.float64)
        mask = pattern_mask(weight.astype(np.float64) ** 2, parse_pattern(text)).reshape(16, 12)
        surgeon += error(sparsify(weight, text, gram), weight, gram)
        plain += error(refit(rows, mask, gram), rows, gram)
    assert surgeon < plain


@pytest.mark.parametrize("text", TEXTS)
def test_all_zeros_at_once_are_made_up_for_too(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity, "SURGEON_INPUTS", 0)
    weight, gram = weight_of(20, 8, 3, 3), gram_of(72)
    found = sparsify(weight, text, gram)
    monkeypatch.undo()
    plain = error(sparsify(weight, text), weight, gram)
    assert error(found, weight, gram) < 0.95 * plain
    rows = weight.reshape(20, -1).astype(np.float64)
    assert error(found, weight, gram) <= 1.01 * error(refit(rows, found.reshape(20, -1) != 0, gram), rows, gram)


def test_uncorrelated_inputs_make_the_surgeon_a_magnitude() -> None:
    weight = weight_of(6, 8, 1, 1)
    assert np.allclose(sparsify(weight, "weights 0.5", np.eye(8)), sparsify(weight, "weights 0.5"), atol=1e-5)


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "blocks 0.5", "block 1.5", "block", "weights 0", "n:m 0.5", ""])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no sparsity pattern"):
        parse_pattern(text)
    assert set(PATTERNS) == {"weights", "n:m", "block", "filters"}
