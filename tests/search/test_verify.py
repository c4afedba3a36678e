"""Verification with a bench whose measurements are made up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from trimtab.evaluators.answers import Answers
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency, Link
from trimtab.evaluators.price.cost import Cost, TableFit
from trimtab.kernels import stored_bytes
from trimtab.search.loop.candidates import CandidateFolder, candidate_of
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Journal
from trimtab.search.loop.verify import TRIES, Verifier
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting
from trimtab.spaces import Policy
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.numbers.formats import INT8

ONE = Interval.exactly(1.0)
COST = Cost(1.0, 10**6, 10**6, 10**4)
LIMITS = {"latency": 1.0, "size": 1e9}


@dataclass
class MadeUpBench:
    """Measures the first networks as too slow."""

    slow: int
    measured: list[str] = field(default_factory=list)

    def measure(self, network: Candidate, link: Link, seconds: float, limit: Interval) -> Latency:
        self.measured.append(network.policy.id)
        ratio = Interval.exactly(1.5 if len(self.measured) <= self.slow else 0.5)
        return Latency(*ratio, ratio, ratio, 1.0, 4, 40, 0, 0.4, "decision")


def setting_of(problem: Problem, limits: dict[str, float] = LIMITS) -> Setting:
    link = Link(problem.space.int8(), ONE, ONE, ONE, 48, 0.1, 1.0, "interval")
    return Setting(problem, Baseline(COST, COST, 0.9, 0.9, link, 0.01, TableFit(), limits, ONE, 0.0), ("", ""), {})


def evaluations_of(problem: Problem, count: int) -> list[Evaluation]:
    """Random policies, the first one best."""
    rng, space = np.random.default_rng(0), problem.space
    found: dict[str, Policy] = {}
    while len(found) < count:
        policy = space.decode([int(rng.integers(len(knob.choices))) for knob in space.knobs])
        found[policy.id] = policy
    return [
        Evaluation(policy, Answers.of(np.arange(200) < 190 - 10 * i), 0.1 * i, COST, {"latency": -0.5}, {})
        for i, policy in enumerate(found.values())
    ]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as opened:
        yield opened


@pytest.mark.parametrize("slow", [0, 2])
def test_the_winner_is_the_first_in_order_of_preference_that_is_within(
    problem: Problem, journal: Journal, tmp_path: Path, slow: int
) -> None:
    setting, evaluations, bench = setting_of(problem), evaluations_of(problem, 4), MadeUpBench(slow)
    verifier = Verifier(journal, CandidateFolder(tmp_path))
    winner, tried = verifier.winner(setting, cast(LatencyBench, bench), reversed(evaluations))
    assert winner is not None
    assert tried == slow + 1
    assert bench.measured == [e.policy.id for e in evaluations[: slow + 1]]
    assert winner.policy == evaluations[slow].policy
    assert winner.cost.size == stored_bytes(lower(problem.judge.candidate(winner.policy)))
    assert winner.latency is not None


def test_what_was_measured_is_remembered_by_the_journal(problem: Problem, journal: Journal, tmp_path: Path) -> None:
    setting, evaluations, bench = setting_of(problem), evaluations_of(problem, 3), MadeUpBench(1)
    folder = CandidateFolder(tmp_path)
    first = Verifier(journal, folder).winner(setting, cast(LatencyBench, bench), evaluations)
    again = Verifier(journal, folder).winner(setting, cast(LatencyBench, bench), evaluations)
    assert first == again
    assert len(bench.measured) == 2


def test_no_more_than_a_few_networks_are_tried(problem: Problem, journal: Journal, tmp_path: Path) -> None:
    evaluations, bench = evaluations_of(problem, TRIES + 2), MadeUpBench(10**6)
    found = Verifier(journal, CandidateFolder(tmp_path)).winner(
        setting_of(problem), cast(LatencyBench, bench), evaluations
    )
    assert found == (None, TRIES)
    assert Verifier(journal, CandidateFolder(tmp_path)).winner(setting_of(problem), cast(LatencyBench, bench), []) == (
        None,
        0,
    )


def test_a_finished_network_that_is_too_big_is_refused(problem: Problem, journal: Journal, tmp_path: Path) -> None:
    setting = setting_of(problem, {"latency": 1.0, "size": 1.0})
    verifier = Verifier(journal, CandidateFolder(tmp_path))
    found, _ = verifier.winner(setting, cast(LatencyBench, MadeUpBench(0)), evaluations_of(problem, 2))
    assert found is None


def test_an_exported_file_that_is_over_refutes_its_network(problem: Problem, journal: Journal, tmp_path: Path) -> None:
    setting, evaluations, bench = setting_of(problem), evaluations_of(problem, 2), cast(LatencyBench, MadeUpBench(0))
    verifier = Verifier(journal, CandidateFolder(tmp_path))
    winner, _ = verifier.winner(setting, bench, evaluations)
    assert winner is not None
    verifier.exported(setting, replace(winner, violations={"latency": 0.1}))
    second, tried = verifier.winner(setting, bench, evaluations)
    assert second is not None
    assert (second.policy, tried) == (evaluations[1].policy, 2)


def test_a_network_is_opened_from_its_file_and_not_built_again(problem: Problem, tmp_path: Path) -> None:
    policy, folder = problem.space.uniform(0.5, INT8), CandidateFolder(tmp_path)
    built = folder.repaired(problem.judge, policy)

    class NoJudge:
        space, database = problem.space, None

        def candidate(self, policy: Policy) -> Candidate:
            raise AssertionError("it was built again")

    judge = cast("type[problem.judge]", NoJudge())
    for opened in (folder.repaired(judge, policy), candidate_of(replace(problem, judge=judge), policy, tmp_path)):
        assert opened.policy == policy
        for name, (values, scale) in built.int8.items():
            np.testing.assert_array_equal(opened.int8[name][0], values)
            np.testing.assert_array_equal(opened.int8[name][1], scale)
    folder.keep([problem.space.base()])
    assert not folder.file(policy).exists()
    with pytest.raises(AssertionError, match="built again"):
        candidate_of(replace(problem, judge=judge), policy, tmp_path)
