"""What is chosen of evaluations, and that all who choose choose alike."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.evaluators.answers import Answers, paired
from trimtab.evaluators.price.cost import Cost
from trimtab.search.loop.best_policy import keep_best
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.loop import AgentRun
from trimtab.search.loop.preference import ERRORS, preferred, ranked, tie
from trimtab.search.loop.verify import TRIES, contenders
from trimtab.search.report.summary import Winner, best_of, verdict_on_images
from trimtab.spaces import LayerDecision, Policy
from trimtab.spaces.numbers.formats import INT8

IMAGES = 24


def evaluation(name: int, right: int | np.ndarray, loss: float = 0.5, size: int = 50, over: bool = False) -> Evaluation:
    """An evaluation of policy `name`, with so many right answers, from the first image on, or those given."""
    answers = Answers.of(np.arange(1000) < right if isinstance(right, int) else right)
    policy = Policy("net", {"a": name + 1}, {"a": LayerDecision(INT8, None)})
    return Evaluation(policy, answers, loss, Cost(1.0, size, 1000, 10), {"size": 0.1 if over else -0.1}, {})


rows = st.tuples(st.integers(0, 2**IMAGES - 1), st.integers(0, 3), st.integers(1, 2))


@st.composite
def evaluations(draw: st.DrawFn) -> list[Evaluation]:
    """A few, often alike in their answers, losses and sizes."""
    found = draw(st.lists(rows, min_size=1, max_size=8))
    seldom_wrong = draw(st.booleans())
    return [
        replace(
            evaluation(i, 0, loss / 4, size), answers=Answers(IMAGES, bits | (0xFFFFF0 if seldom_wrong else bits >> 1))
        )
        for i, (bits, loss, size) in enumerate(found)
    ]


@given(evaluations(), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(found: list[Evaluation], rng: random.Random) -> None:
    shuffled = rng.sample(found, len(found))
    assert preferred(found) is preferred(shuffled)
    assert list(ranked(found)) == list(ranked(shuffled))


@given(evaluations(), st.randoms(use_true_random=False))
def test_the_choice_depends_on_names_only_where_all_else_is_equal(found: list[Evaluation], rng: random.Random) -> None:
    names = rng.sample([e.policy for e in found], len(found))
    renamed = [replace(e, policy=name) for e, name in zip(found, names, strict=True)]
    before, after = preferred(found), preferred(renamed)
    assert before is not None
    assert after is not None
    assert replace(before, policy=after.policy) == after


@given(evaluations())
def test_the_choice_by_its_definition(found: list[Evaluation]) -> None:
    best = preferred(found)
    assert best is not None
    highest = [e for e in found if e.accuracy == max(o.accuracy for o in found)]
    leaders = [e for e in highest if e.loss == min(o.loss for o in highest)]
    assert any(tie(best, e) for e in leaders)
    for other in found:
        if all(tie(other, e) for e in leaders):
            assert (best.loss, best.cost.size) <= (other.loss, other.cost.size)


@given(evaluations())
def test_a_ranking_is_the_choice_among_those_that_are_left(found: list[Evaluation]) -> None:
    order = list(ranked(found))
    assert sorted(e.policy.id for e in order) == sorted(e.policy.id for e in found)
    for place, each in enumerate(order):
        assert preferred(order[place:]) is each


def test_nothing_is_preferred_among_none() -> None:
    assert preferred([]) is None
    assert list(ranked([])) == []


def test_ties_go_to_the_lower_loss_then_to_the_smaller_then_by_name() -> None:
    best = evaluation(0, 903, loss=0.30)
    assert preferred([best, evaluation(1, 900, loss=0.20)]) == evaluation(1, 900, loss=0.20)
    assert preferred([best, evaluation(1, 900, loss=0.40)]) is best
    small = evaluation(2, 903, loss=0.30, size=49)
    assert preferred([best, small]) is small
    twin = evaluation(3, 903, loss=0.30)
    assert preferred([best, twin]) == min(best, twin, key=lambda e: e.policy.id)


def test_a_difference_beyond_the_noise_counts_whatever_the_loss() -> None:
    better, worse = evaluation(0, 910, loss=0.9), evaluation(1, 900, loss=0.1)
    assert not tie(better, worse)
    assert preferred([worse, better]) is better


def test_the_same_difference_is_a_tie_where_the_answers_differ_much() -> None:
    """Ten more right answers: of ten images on which the two differ, and of ninety."""
    rng = np.random.default_rng(0)
    a = np.arange(1000) < 910
    b = a.copy()
    b[rng.permutation(910)[:50]] = False
    b[910 + rng.permutation(90)[:40]] = True
    apart, together = evaluation(1, b), evaluation(2, 900)
    assert apart.accuracy == together.accuracy
    assert tie(evaluation(0, a), apart)
    assert not tie(evaluation(0, a), together)


def test_a_chain_of_ties_does_not_lead_away_from_the_leader() -> None:
    """Each ties with the next one, and the last, of the lowest loss, is well below the first."""
    chain = [evaluation(i, 910 - 3 * i, loss=0.5 - 0.1 * i) for i in range(5)]
    assert all(tie(a, b) for a, b in itertools.pairwise(chain))
    assert preferred(chain) is chain[1]


def test_who_is_over_a_budget_is_no_contender() -> None:
    found = [evaluation(0, 950, over=True), *(evaluation(i, 900 - i, loss=i / 100) for i in range(1, 30))]
    assert contenders([*found, *found]) == list(itertools.islice(ranked(found[1:]), TRIES))


def test_the_best_so_far_on_disk_is_the_preferred_one_of_all_agents(tmp_path: Path) -> None:
    bests = [evaluation(0, 903, 0.3), evaluation(1, 900, 0.2), evaluation(2, 880, 0.1)]
    for order in itertools.permutations(bests):
        keep = keep_best(tmp_path)
        for best in order:
            keep(AgentRun(f"agent {best.policy.id}", best=best))
        keep(AgentRun("nothing yet"))
        assert json.loads((tmp_path / "policy.json").read_text()) == bests[1].policy.to_json()


def winners(**found: Evaluation | None) -> dict[str, Winner | None]:
    return {name: None if e is None else Winner(name, e, 0.5) for name, e in found.items()}


def test_the_exported_winner_is_the_preferred_one() -> None:
    best = best_of(winners(uniform=None, random=evaluation(0, 903, 0.3), milp=evaluation(1, 900, 0.2)))
    assert best is not None
    assert best.agent == "milp"
    assert best_of(winners(random=None)) is None


def test_the_verdict_counts_on_the_images_that_tell_two_winners_apart() -> None:
    """Ten of 1,000 images: far less than the error of two independent proportions, 1.3 points."""
    better, worse = evaluation(0, 910, 0.1), evaluation(1, 900, 0.2)
    difference = "1.00 points of proxy accuracy (paired standard error 0.31)"
    assert verdict_on_images("milp", winners(milp=better, random=worse)) == f"milp beats random by {difference}."
    assert verdict_on_images("milp", winners(milp=worse, random=better)) == f"random beats milp by {difference}."
    apart = paired(better.answers, worse.answers)
    assert (apart.value, apart.error) == pytest.approx((0.01, np.sqrt(10 - 0.1) / 1000))
    assert apart.value > ERRORS * apart.error


def test_the_verdict_on_a_tie_names_the_losses_and_the_preferred_rival() -> None:
    found = winners(milp=evaluation(0, 903, 0.3), random=evaluation(1, 902, 0.21), tpe=evaluation(2, 903, 0.4))
    assert verdict_on_images("milp", found) == (
        "milp and random differ by 0.10 points of proxy accuracy (paired standard error 0.10): within the noise, milp "
        "does not win. Their losses are 0.3 against 0.21 nats."
    )


def test_the_verdict_without_anybody_to_compare_with() -> None:
    assert "ran alone" in verdict_on_images("milp", winners(milp=evaluation(0, 900), random=None))
    assert "found no network" in verdict_on_images("milp", winners(milp=None, random=evaluation(0, 900)))
