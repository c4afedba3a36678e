from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.evaluators.answers import Answers, Difference, paired

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
