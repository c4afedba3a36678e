from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import BadInput
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency
from trimtab.evaluators.price.cost import Cost
from trimtab.search.loop.evaluation import Evaluation, pareto, violations
from trimtab.search.loop.journal import Journal
from trimtab.search.loop.loop import Ledger, Spent
from trimtab.spaces import LayerDecision, Policy
from trimtab.spaces.numbers.formats import INT8

LATENCY = Latency(
    *(0.25, 0.24, 0.265), Interval(0.5, 0.49, 0.51), Interval(0.5, 0.48, 0.52), 1e-3, 8, 40, 1, 1.5, "decision"
)
LIMITS = {"latency": 1.0, "size": 100.0}


def make_policy(number: int) -> Policy:
    return Policy("net", {"a": number + 1}, {"a": LayerDecision(INT8, None)})


def make_evaluation(number: int, latency: float, accuracy: float, size: int = 50) -> Evaluation:
    cost = Cost(latency, size, 1000, 10)
    answers = Answers.of(np.arange(12) < round(12 * accuracy))
    return Evaluation(make_policy(number), answers, 0.25, cost, violations(cost, LIMITS), {"run": 0.1})


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    evaluations = [make_evaluation(i, float(x), y / 6) for i, (x, y) in enumerate(points)]
    front = pareto(evaluations)

    def beats(a: Evaluation, b: Evaluation) -> bool:
        no_worse = a.cost.latency <= b.cost.latency and a.accuracy >= b.accuracy
        return no_worse and (a.cost.latency, a.accuracy) != (b.cost.latency, b.accuracy)

    best = {(e.cost.latency, e.accuracy) for e in evaluations if not any(beats(other, e) for other in evaluations)}
    assert [(e.cost.latency, e.accuracy) for e in front] == sorted(best)


def test_the_front_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    evaluations = [make_evaluation(i, float(rng.integers(4)), float(rng.integers(4)) / 4) for i in range(20)]
    assert pareto(evaluations) == pareto(reversed(evaluations))


def test_a_cost_at_the_limit_is_feasible() -> None:
    assert make_evaluation(0, 1.0, 0.5, size=100).feasible
    assert not make_evaluation(0, 1.0, 0.5, size=101).feasible


def test_a_measured_latency_counts_by_its_upper_end() -> None:
    evaluation = make_evaluation(0, 5.0, 0.5)
    assert not evaluation.feasible
    met = evaluation.measured(LATENCY, Interval.exactly(0.52))
    assert met.violations["latency"] == pytest.approx(0)
    assert evaluation.measured(LATENCY, Interval.exactly(0.521)).verified
    missed = evaluation.measured(LATENCY, Interval.exactly(0.515))  # the narrower interval alone would fit
    assert missed.latency is not None
    assert not missed.verified
    assert not evaluation.measured(LATENCY, Interval(0.53, 0.5, 0.56)).verified


def test_without_a_latency_budget_a_measurement_violates_nothing() -> None:
    assert make_evaluation(0, 0.5, 0.5).measured(LATENCY, None).violations == make_evaluation(0, 0.5, 0.5).violations


def test_what_was_not_measured_is_not_verified() -> None:
    evaluation = make_evaluation(0, 0.5, 0.5)
    assert evaluation.feasible
    assert not evaluation.verified


@pytest.mark.parametrize("latency", [None, LATENCY])
def test_an_evaluation_survives_json(latency: Latency | None) -> None:
    evaluation = replace(make_evaluation(3, 0.1 + 0.2, 1 / 3), latency=latency)
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


def test_a_result_of_an_older_journal_is_refused() -> None:
    old = make_evaluation(0, 0.5, 0.5).to_json()
    del old["answers"], old["loss"]
    with pytest.raises(BadInput, match=r"older trimtab.* start the search again"):
        Evaluation.from_json(old)


def test_the_ledger_reads_back_what_it_wrote(tmp_path: Path) -> None:
    state = {"agent": "random", "proposals": 2, "pending": []}
    evaluations = [make_evaluation(i, 0.5 + i, 0.5) for i in range(3)]
    with Journal(tmp_path / "journal") as journal:
        ledger = Ledger(journal)
        ledger.asked("random", state, [e.policy for e in evaluations[:2]])
        ledger.asked("random", state, [evaluations[2].policy])
        for evaluation in evaluations:
            ledger.result(evaluation)
        ledger.measured(evaluations[0].policy, LATENCY)
        ledger.told("random", Spent(0.25, 1.5, 2.0))
    with Journal(tmp_path / "journal") as journal:
        again = Ledger(journal)
    assert again.judged == ledger.judged == {e.policy.id: e for e in evaluations}
    assert again.latencies == {evaluations[0].policy.id: LATENCY}
    assert [event for event in again.events["random"] if isinstance(event, Spent)] == [Spent(0.25, 1.5, 2.0)]
    asked = [policy for batch in again.batches("random") for policy in batch.policies]
    assert asked == [e.policy for e in evaluations]
    assert again.batches("random")[0].state["proposals"] == 2
