"""The loop with made-up judgements and latencies: what becomes the best, what is measured, what agents are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from tests.evaluators.fakes import FakeEngine
from tests.search.runs import tiny

from trimtab.agents.base import Score
from trimtab.agents.random import Random
from trimtab.evaluators.accuracy import Judgement
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency, Link
from trimtab.evaluators.price.cost import Cost, CostModel, TableFit
from trimtab.evaluators.price.table import LatencyTable
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Journal, read_journal
from trimtab.search.loop.loop import AgentRun, Ledger, Memory, Searcher
from trimtab.search.loop.pool import Pool
from trimtab.search.loop.preference import preferred
from trimtab.search.progress import Progress
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting
from trimtab.spaces import Policy

LIMITS = {"latency": 1.0, "size": 1e9}
COST = Cost(1.0, 10**6, 10**6, 10**4)
ONE = Interval.exactly(1.0)
YARDSTICK = Policy("made up", {}, {})
LINK = Link(YARDSTICK, ONE, ONE, ONE, 24, 0.1, 1.0, "interval")
BASELINE = Baseline(COST, COST, 0.9, 0.9, LINK, 0.01, TableFit(), LIMITS, ONE, 0.0)
TRIALS = 40

#: With it a new leader makes one the best that was not when it came: the test of resumed runs asserts that.
SEED = 7


def draws(policy: Policy, what: int) -> np.random.Generator:
    return np.random.default_rng([int(policy.id, 16), what])


class MadeUpPool(Pool):
    """Judges by the policy's identity: the leader changes, some tie with it, and losses are anything.

    `last_first`: who waits for the oldest gets all others before it.
    """

    ahead = 3

    def __init__(self, last_first: bool = True) -> None:
        self.waiting: list[Policy] = []
        self.last_first = last_first

    def submit(self, policy: Policy) -> None:
        assert len(self.waiting) < self.ahead
        self.waiting.append(policy)

    def next(self) -> tuple[Policy, Judgement]:
        policy = self.waiting.pop(-1 if self.last_first else 0)
        rng = draws(policy, 0)
        right = np.arange(200) < rng.integers(150, 180)
        return policy, Judgement(Answers.of(right), float(rng.random()), 1000, {"run": 0.1})

    def close(self) -> None:
        """Nothing to stop."""


@dataclass
class MadeUpBench:
    """Measures every other network as too slow, and remembers which it measured."""

    measured: list[str] = field(default_factory=list)

    def measure(
        self, policy: Policy, link: Link, seconds: float, limit: Interval, precision: float, least: int
    ) -> Latency:
        self.measured.append(policy.id)
        ratio = Interval.exactly(0.5 if draws(policy, 1).random() < 0.5 else 1.5)
        return Latency(*ratio, ratio, ratio, 1.0, 4, 40, 0, 0.4, "decision")


def searcher(problem: Problem, ledger: Ledger, bench: MadeUpBench | None, trials: int = TRIALS) -> Searcher:
    problem = replace(problem, config=tiny(trials=trials, seed=SEED))
    model = CostModel(problem.space, LatencyTable(FakeEngine(), problem.space, ledger.journal.path.parent / "latency"))
    limits = BudgetLimits(model, LIMITS)
    setting = Setting(problem, BASELINE, ("fake 1", "made up"), {})
    return Searcher(setting, limits, cast(LatencyBench, bench), MadeUpPool(), ledger)


def feasible(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    return [e for e in evaluations if e.feasible]


def search(
    problem: Problem, folder: Path, bench: MadeUpBench | None, trials: int = TRIALS
) -> tuple[AgentRun, list[Evaluation | None], list[str]]:
    """Run a search; return it, the best after every batch, and what was measured after every batch."""
    bests: list[Evaluation | None] = []

    def watch(run: AgentRun) -> None:
        assert run.best is preferred(feasible(run.evaluations))
        bests.append(run.best)

    folder.mkdir(exist_ok=True)
    with Journal(folder / "journal") as journal:
        run = searcher(problem, Ledger(journal), bench, trials).run("random", Progress(), watch=watch)
    return run, bests, [] if bench is None else bench.measured


def test_the_best_is_what_is_preferred_of_all_that_was_told(problem: Problem, tmp_path: Path) -> None:
    run, bests, _ = search(problem, tmp_path, None)
    assert len(run.evaluations) == TRIALS
    assert all(bests)
    with Journal(tmp_path / "journal") as journal:
        memory = Memory(journal.records()).run("random")
    assert memory.evaluations == run.evaluations
    assert memory.best == run.best


def test_what_comes_to_be_the_best_is_measured_and_nothing_else(problem: Problem, tmp_path: Path) -> None:
    run, bests, measured = search(problem, tmp_path, MadeUpBench())
    assert all(best is None or best.verified for best in bests)
    assert len(measured) == len(set(measured))
    assert measured
    assert sorted(measured) == sorted(e.policy.id for e in run.evaluations if e.latency is not None)
    assert len(measured) < TRIALS
    refuted = [e for e in run.evaluations if e.latency is not None and not e.feasible]
    assert refuted
    assert len({best.policy.id for best in bests if best}) > 1


Told = list[tuple[str, float, Mapping[str, float]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """All that agents are told, in order."""
    found: Told = []

    def learn(self: Random, policy: Policy, score: Score) -> None:
        found.append((policy.id, score.accuracy, dict(score.violations)))

    monkeypatch.setattr(Random, "_learn", learn)
    return found


def test_a_resumed_run_tells_and_chooses_what_the_whole_one_did(problem: Problem, tmp_path: Path, told: Told) -> None:
    """A network that an agent was told of as feasible, and that came to be measured later, is told of so again."""
    whole, _, measured = search(problem, tmp_path / "whole", MadeUpBench())
    first = told.copy()
    assert any(violations != e.violations for (*_, violations), e in zip(first, whole.evaluations, strict=True))
    told.clear()
    search(problem, tmp_path / "parts", MadeUpBench(), trials=TRIALS // 2)
    told.clear()
    bench = MadeUpBench()
    parts, _, _ = search(problem, tmp_path / "parts", bench)
    assert told == first
    assert parts.best == whole.best
    assert parts.evaluations == whole.evaluations
    assert len(bench.measured) < len(measured)  # the rest was in the journal


def learning(problem: Problem, folder: Path, pool: MadeUpPool, trials: int = 14) -> list[str]:
    """The policies that an agent which learns was told of, in order."""
    folder.mkdir(exist_ok=True)
    with Journal(folder / "journal") as journal:
        given = searcher(problem, Ledger(journal), None, trials)
        given.pool = pool
        run = given.run("evolution(population=4, tournament=2)", Progress())
    return [e.policy.id for e in run.evaluations]


def test_what_is_proposed_does_not_depend_on_who_is_finished_first(problem: Problem, tmp_path: Path) -> None:
    first, last = (learning(problem, tmp_path / str(end), MadeUpPool(end)) for end in (False, True))
    assert first == last
    orders = [
        [record.data["policy"] for record in read_journal(tmp_path / str(end) / "journal") if record.kind == "result"]
        for end in (False, True)
    ]
    assert orders[0] != orders[1]  # results are remembered as they come


def test_a_search_that_died_anywhere_goes_on_as_the_whole_one_did(problem: Problem, tmp_path: Path) -> None:
    """With up to three policies in flight, some of them judged: its journal is cut behind every record."""
    whole = learning(problem, tmp_path / "whole", MadeUpPool())
    lines = (tmp_path / "whole" / "journal").read_bytes().splitlines(keepends=True)
    assert len(lines) > 3 * len(whole)
    for count in range(1, len(lines), 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "journal").write_bytes(b"".join(lines[:count]))
        assert learning(problem, folder, MadeUpPool()) == whole, count
        records = read_journal(folder / "journal")
        judged = [record.data["policy"]["channels"] for record in records if record.kind == "result"]
        assert len(judged) == len(whole)  # none twice


def test_more_than_one_policy_is_in_flight_and_no_more_than_the_pool_takes(problem: Problem, tmp_path: Path) -> None:
    learning(problem, tmp_path, MadeUpPool())
    flying, most = 0, 0
    for record in read_journal(tmp_path / "journal"):
        flying += {"ask": 1, "told": -1}.get(record.kind, 0)
        most = max(most, flying)
    assert (flying, most) == (0, MadeUpPool.ahead)
