"""Candidates of an experiment, each in a file of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from trimtab.evaluators.accuracy import Judge
from trimtab.files import write_bytes
from trimtab.search.setup.problem import Problem
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.candidate_file import Provenance, load_candidate, save_candidate
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["CandidateFolder", "candidate_of"]


class CandidateFolder:
    """The folder `candidates/` of an experiment: a file for every policy whose network was finished."""

    def __init__(self, experiment: Path) -> None:
        self.path = experiment / "candidates"

    def file(self, policy: Policy) -> Path:
        """Return where a policy's candidate lies, or would."""
        return self.path / f"{policy.id}.safetensors"

    def current(self, judge: Judge, policy: Policy) -> tuple[Candidate, Provenance]:
        """Return a policy's candidate as it is now, and what made it."""
        if not self.file(policy).is_file():
            self.repaired(judge, policy)
        return load_candidate(self.file(policy), judge.space)

    def repaired(self, judge: Judge, policy: Policy) -> Candidate:
        """Return a policy's candidate as it was before any training, from its file; where there is none, repair the
        network under it and write it."""
        for file in (self.unfinished(policy), self.file(policy)):
            if file.is_file():
                return load_candidate(file, judge.space)[0]
        candidate = judge.candidate(policy)
        self.path.mkdir(parents=True, exist_ok=True)
        recipe = {"images": len(judge.calibration.images), "repairs": asdict(judge.calibration.repairs)}
        save_candidate(self.file(policy), candidate, Provenance("repaired", recipe), judge.space)
        return candidate

    def finish(self, policy: Policy, candidate: Candidate, provenance: Provenance, space: Space) -> None:
        """Put a finished candidate in the place of a policy's; the one that was not finished stays beside it."""
        if self.file(policy).is_file() and not self.unfinished(policy).is_file():
            write_bytes(self.unfinished(policy), self.file(policy).read_bytes())
        save_candidate(self.file(policy), candidate, provenance, space)

    def unfinished(self, policy: Policy) -> Path:
        """Return where a policy's candidate lies as it was before it was finished, where it was."""
        return self.path / f"{policy.id}.repaired.safetensors"

    def keep(self, policies: Collection[Policy]) -> None:
        """Remove the files of all other policies."""
        kept = {path for policy in policies for path in (self.file(policy), self.unfinished(policy))}
        for path in self.path.glob("*.safetensors"):
            if path not in kept:
                path.unlink()


def candidate_of(problem: Problem, policy: Policy, experiment: Path | None) -> Candidate:
    """Return a policy's candidate from its file in an experiment's folder, or else the network repaired under it."""
    file = None if experiment is None else CandidateFolder(experiment).file(policy)
    if file is not None and file.is_file():
        return load_candidate(file, problem.space)[0]
    return problem.judge.candidate(policy)
