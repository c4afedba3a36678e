"""Verification: the networks of evaluated policies, finished, weighed, and measured end to end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from trimtab import kernels
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.search.loop.candidates import CandidateFolder
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Journal
from trimtab.search.loop.preference import ranked
from trimtab.search.setup.setting import Setting
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.policy import Policy

__all__ = ["Verifier", "contenders", "judged"]

#: The most networks of one agent that are finished and measured until one meets every budget.
TRIES = 12


class Verifier:
    """The verification of an experiment: every network is finished and measured once, and the journal remembers it."""

    def __init__(self, journal: Journal, candidates: CandidateFolder) -> None:
        self.journal, self.candidates = journal, candidates
        self.found: dict[tuple[str, str], Evaluation] = {}
        for record in journal.records():
            if record.kind == "verified":
                evaluation = Evaluation.from_json(record.data["evaluation"])
                self.found[record.data["budget"], evaluation.policy.id] = evaluation

    def winner(
        self, setting: Setting, bench: LatencyBench, evaluations: Iterable[Evaluation]
    ) -> tuple[Evaluation | None, int]:
        """Return the preferred evaluation of those whose finished network meets every budget, and how many networks
        were tried."""
        tried = 0
        for tried, evaluation in enumerate(contenders(evaluations), 1):
            found = self.verify(setting, bench, evaluation)
            if found.feasible:
                return found, tried
        return None, tried

    def verify(self, setting: Setting, bench: LatencyBench, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the latency of the finished network, measured for `measure.final_seconds`, and its
        stored bytes, in place of predicted ones."""
        policy = evaluation.policy
        key = setting.budget, policy.id
        if key not in self.found:
            baseline, seconds = setting.baseline, setting.problem.config.measuring.final_seconds
            candidate = self.candidate(setting, policy)
            latency = bench.measure(candidate, baseline.link, seconds, baseline.limit)
            size = kernels.stored_bytes(lower(candidate))
            if baseline.kept is not None:  # of the network itself, which a proxy only stands for
                evaluation = judged(setting, evaluation, candidate)
            self.found[key] = evaluation.measured(latency, baseline.limit).with_size(size, baseline.limits)
            self.journal.append("verified", {"budget": setting.budget, "evaluation": self.found[key].to_json()})
        return self.found[key]

    def exported(self, setting: Setting, evaluation: Evaluation) -> None:
        """Put what was measured of a network's exported file in place of what was measured before."""
        self.found[setting.budget, evaluation.policy.id] = evaluation

    def candidate(self, setting: Setting, policy: Policy) -> Candidate:
        """Return the finished network of a policy."""
        return self.candidates.repaired(setting.problem.judge, policy)


def judged(setting: Setting, of: Evaluation, candidate: Candidate) -> Evaluation:
    """Return an evaluation with what a candidate of its policy answers to the selection images now."""
    judge = setting.problem.judge
    outputs = judge.outputs(candidate, judge.images)
    return of.answered(judge.graded(outputs), judge.loss(outputs), setting.baseline.kept)


def contenders(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Return the evaluations to verify, the preferred one first, until one passes."""
    feasible = {e.policy.id: e for e in evaluations if e.feasible}.values()
    return list(islice(ranked(feasible), TRIES))
