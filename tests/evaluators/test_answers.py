from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from trimtab.evaluators.answers import Answers, Difference, lost, paired

right = st.lists(st.booleans(), min_size=1, max_size=40)
both = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(right)
def test_answers_keep_what_was_right_and_survive_json(given: list[bool]) -> None:
    answers = Answers.of(np.array(given))
    assert answers.accuracy == sum(given) / len(given)
    assert [bool(answers.bits >> (len(given) - 1 - i) & 1) for i in range(len(given))] == given
    assert Answers.from_json(json.loads(json.dumps(answers.to_json()))) == answers


def test_a_thousand_answers_take_a_line() -> None:
    answers = Answers.of(np.random.default_rng(0).random(1000) < 0.9)
    assert len(answers.to_json()["right"]) == 168


@given(both)
def test_a_paired_difference_is_the_mean_of_the_differences_with_its_error(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs).T
    differences = a.astype(float) - b
    found = paired(Answers.of(a), Answers.of(b))
    assert found.value == pytest.approx(differences.mean(), abs=1e-12)
    assert found.error == pytest.approx(differences.std() / np.sqrt(len(pairs)), abs=1e-7)
    assert paired(Answers.of(b), Answers.of(a)) == Difference(-found.value, found.error)


def test_answers_to_other_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="answers to 3 and to 2 images"):
        paired(Answers.of(np.ones(3, bool)), Answers.of(np.ones(2, bool)))


def drawn(n: int, only_a: float, only_b: float, trials: int) -> list[Difference]:
    """Paired differences of two networks, of which one alone is right with the given chances."""
    rng = np.random.default_rng(0)
    found = []
    for draws in rng.random((trials, n)):
        a, b = draws < only_a, (draws >= only_a) & (draws < only_a + only_b)
        easy = draws > 0.4
        found.append(paired(Answers.of(a | easy), Answers.of(b | easy)))
    return found


@pytest.mark.parametrize(("only_a", "only_b"), [(0.05, 0.05), (0.1, 0.06), (0.02, 0.01)])
def test_the_interval_of_two_errors_covers_the_true_difference(only_a: float, only_b: float) -> None:
    found = drawn(1000, only_a, only_b, 4000)
    covered = np.mean([abs(d.value - (only_a - only_b)) <= 2 * d.error for d in found])
    assert covered == pytest.approx(0.9545, abs=0.012)  # 0.9545 of a normal distribution


@pytest.mark.parametrize(("only_one", "images"), [(0.05, 1000), (0.01, 1000), (0.005, 400)])
def test_of_two_networks_that_are_alike_hardly_one_is_better(only_one: float, images: int) -> None:
    found = drawn(images, only_one, only_one, 4000)
    assert np.mean([abs(d.value) > 2 * d.error for d in found]) < 0.07


def answered(images: int, worse: int, better: int) -> tuple[Answers, Answers]:
    """Those of a network as given, and others that lose so many images and gain so many."""
    given = np.arange(images) >= better
    other = given.copy()
    other[:better], other[images - worse :] = True, False
    return Answers.of(given), Answers.of(other)


def covered(images: int, gains: float, loses: float, confidence: float) -> float:
    """The chance, summed over all outcomes, that the bound is not below the true loss."""
    total = 0.0
    for worse, chance in enumerate(binom.pmf(np.arange(images + 1), images, loses)):
        if chance < 1e-6:
            continue
        for better, other in enumerate(binom.pmf(np.arange(images - worse + 1), images - worse, gains / (1 - loses))):
            if other < 1e-6:
                continue
            holds = lost(*answered(images, worse, better), confidence).bound >= loses - gains
            total += chance * other * holds
    return total


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("gains", "loses"), [(0.0, 0.012), (0.001, 0.0045), (0.01, 0.02), (0.05, 0.06), (0.02, 0.12)])
def test_the_bound_on_what_is_lost_holds_as_often_as_it_promises(gains: float, loses: float, confidence: float) -> None:
    """Exactly, not by draws; and it is not so wide that it would always hold, where there is something to tell."""
    chance = covered(300, gains, loses, confidence)
    assert chance >= confidence - 1e-4
    if loses >= 0.02:
        assert chance <= confidence + 0.5 * (1 - confidence)


@given(both, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_bound_is_where_the_score_test_refutes_a_loss(pairs: list[tuple[bool, bool]], confidence: float) -> None:
    """The likelihood under each loss is maximised on a grid here."""
    given, other = np.array(pairs).T
    worse, better, images = (given & ~other).sum(), (other & ~given).sum(), len(pairs)
    found = lost(Answers.of(given), Answers.of(other), confidence)
    assert found.value == pytest.approx((worse - better) / images)
    assert max(found.value, 0) <= found.bound <= 1

    def refuted(loss: float) -> bool:
        gained = np.linspace(1e-9, max((1 - loss) / 2, 2e-9), 20001)[:-1]
        agree = images - worse - better
        likelihood = worse * np.log(gained + loss) + better * np.log(gained) + agree * np.log(1 - 2 * gained - loss)
        variance = images * (2 * gained[likelihood.argmax()] + loss - loss**2)
        return bool((images * loss - (worse - better) - 0.5) / np.sqrt(variance) > norm.ppf(confidence))

    assert found.bound >= 0.999 or refuted(found.bound + 1e-3)
    assert found.bound <= 1e-3 or not refuted(found.bound - 1e-3)


def test_equal_answers_lose_little_that_is_known_and_more_images_know_it_better() -> None:
    bounds = [lost(*answered(images, 0, 0), 0.95).bound for images in (100, 1000, 10000)]
    assert all(0 < bound < 4 / images for bound, images in zip(bounds, (100, 1000, 10000), strict=True))
    assert all((1 - bound) ** images <= 0.05 for bound, images in zip(bounds, (100, 1000, 10000), strict=True))


def test_what_was_lost_on_other_images_is_not_known() -> None:
    with pytest.raises(ValueError, match="answers to 3 and to 2 images"):
        lost(Answers.of(np.ones(3, bool)), Answers.of(np.ones(2, bool)), 0.95)
