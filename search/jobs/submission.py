"""A submission: a run that a cluster is asked for, named after its configuration, code, checkpoint and folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import trimtab
from trimtab.errors import BadInput
from trimtab.search.jobs.cluster import TIMING, Cluster, Job, Node
from trimtab.search.jobs.package import Package
from trimtab.search.report.run_report import duration
from trimtab.search.setup.config import Config, said_trials

__all__ = ["Submission"]


@dataclass(frozen=True)
class Submission:
    """A run under `config`, in a `folder` that all nodes see, of what is in `package`."""

    config: Config
    package: Package
    folder: str

    def __post_init__(self) -> None:
        if not PurePosixPath(self.folder).is_absolute() or ".." in PurePosixPath(self.folder).parts:
            raise BadInput(f"--out is a folder that all nodes see, with its absolute path, not {self.folder!r}")
        root = self.config.data.root
        if root is not None and not PurePosixPath(root).is_absolute():
            raise BadInput(f"data.root is read on the nodes: give its absolute path there, not {root!r}")

    @property
    def name(self) -> str:
        """The submission's name, by the content of all that it is made of."""
        return f"trimtab-{hashlib.sha256(f'{self.package.hash} {self.folder}'.encode()).hexdigest()[:16]}"

    def plan(self, address: str, nodes: Sequence[Node]) -> dict[str, str]:
        """Return what will be done, in words; a cluster on which it cannot be is a `BadInput`."""
        cpus = sum(node.resources.get("CPU", 0) for node in nodes)
        if self.config.workers > cpus:
            raise BadInput(f"workers = {self.config.workers}, and the cluster at {address} has {cpus:g} CPUs")
        timing = [node.name for node in nodes if TIMING in node.labels]
        code = self.config.network.import_
        return {
            "job": f"{self.name} at {address}, in {self.folder}",
            "package": f"trimtab {trimtab.__version__}, {self.package.size / 2**20:.1f} MiB in "
            f"{len(self.package.sizes)} files: {self.package.largest()}",
            **({} if code is None else {"not packed": f"the code of {code}, which nodes have to have"}),
            "nodes": "; ".join(map(str, nodes)),
            "timing": f"on {' or '.join(timing)} ({TIMING})"
            if timing
            else f"on the head: no node has the label {TIMING}",
            "question": ", ".join(self._question()),
            "search": f"{said_trials(self.config.trials)} evaluations by each of {', '.join(self.config.agents)}, "
            f"{self.config.workers or 'no'} worker(s)",
            "time": self._time(),
        }

    def attempt(self, cluster: Cluster) -> tuple[str, bool]:
        """Return the name of the attempt that goes on, or of one that is begun now, and whether it was begun."""
        before = cluster.jobs(self.folder)
        for job in before:
            if job.goes_on and job.submission == self.name:
                return job.name, False
            if job.goes_on:
                raise BadInput(f"another job writes into {self.folder}: stop it first ({job.name})")
        name = f"{self.name}-{self._next(before)}"
        entry = ["python", "-m", "trimtab.search.jobs.entry", self.folder, self.name, name]
        cluster.submit(name, entry, str(self.package.path), self.folder, self.name)
        return name, True

    def _next(self, before: Sequence[Job]) -> int:
        return 1 + sum(job.submission == self.name for job in before)

    def _question(self) -> Iterator[str]:
        if self.config.minimise is not None and self.config.keep is not None:
            yield f"the least {self.config.minimise} that loses at most {-self.config.keep.accuracy:g} points"
        for name, asked in self.config.budgets.items():
            yield f"{name} {asked}"

    def _time(self) -> str:
        limit, training = self.config.time_limit, self.config.finish
        if limit is not None:
            return f"about {duration(limit)} in all"
        return f"search: no limit; training: {f'at most {duration(training.time)}' if training.enabled else 'none'}"
