"""A run that was submitted: looked at, stopped and fetched in its folder or, where that is not seen, by the cluster."""

from __future__ import annotations

import base64
import io
import shlex
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from trimtab.errors import BadInput, TrimtabError, in_one_line
from trimtab.files import check_folder, write_text
from trimtab.search.jobs.cluster import Cluster, Job
from trimtab.search.jobs.record import RECORD, STOP, WORDS, code_of, is_here, read_record
from trimtab.search.loop.journal import is_written
from trimtab.search.report.watch import RunState, read_state

__all__ = ["JobRun", "JobState"]

#: Files of a run's folder by which its state is known.
LOOKED_AT = f"{RECORD} journal config.yaml summary.json finishing/order.json finishing/progress.json"

#: MiB of a folder that a job server's log can bring.
MOST = 256


@dataclass(frozen=True)
class JobState:
    """A submitted run: as its files show it, if it has begun to search, Ray's word on its job, and its exit code.

    A `code` of None: it goes on.
    """

    run: RunState | None
    job: str
    ray: str
    code: int | None
    said: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "run": None if self.run is None else self.run.to_json()}

    def line(self) -> str:
        """Return the job in a line."""
        code = "goes on" if self.code is None else f"exit code {self.code}"
        return f"{self.job}: {code} (Ray: {self.ray})" + (f": {self.said}" if self.said else "")


@dataclass(frozen=True)
class JobRun:
    """The run in a folder of the nodes, with the cluster where one answers; `why` says why none does."""

    folder: str
    cluster: Cluster | None
    why: str = "no --address is given"

    @classmethod
    def find(cls, folder: str, address: str) -> JobRun:
        """Return a run; one that neither a cluster nor this machine knows is a `BadInput`."""
        here = is_here(Path(folder))
        if not address and not here:
            raise BadInput(f"{folder} is no submitted run that this machine sees: give the cluster's --address")
        try:
            found = cls(folder, Cluster(address) if address else None)
        except BadInput as error:
            if not here:
                raise
            found = cls(folder, None, str(error))
        if not here and found._last() is None:
            raise BadInput(f"the cluster at {address} knows no job that writes into {folder}")
        return found

    def there(self) -> Cluster:
        """Return the cluster; none is a `BadInput`."""
        if self.cluster is None:
            raise BadInput(self.why)
        return self.cluster

    def job(self) -> Job:
        """Return the last attempt; one that the cluster has forgotten is a `BadInput`."""
        self.there()
        job = self._last()
        if job is None:
            raise BadInput(f"the cluster knows no job that writes into {self.folder}; the same submit goes on with it")
        return job

    def state(self) -> JobState:
        """Return how the run is: by its journal and its record, and only where these do not say it, by Ray."""
        job = self._last()
        with self._files() as folder:
            known = (folder / RECORD).is_file()
            goes_on = is_written(folder / "journal") if job is None else job.goes_on
            code, said, name = None, "", "" if job is None else job.name
            if known:
                record = read_record(folder)
                name, said = name or record.job, record.said
                code = None if goes_on else code_of(folder)
            if code is None and not goes_on:
                code = job.code if job is not None and job.code in WORDS else TrimtabError.exit_code
                said = said or (
                    WORDS[code] if code != TrimtabError.exit_code else "it has died; the same submit goes on with it"
                )
            run = None
            with suppress(BadInput):  # nothing was searched yet
                run = read_state(folder, goes_on)
        ray = self.why if self.cluster is None else "unknown" if job is None else job.status
        return JobState(run, name, ray, code, said)

    def ask_to_stop(self) -> None:
        """Ask the run to end after the evaluations in flight."""
        if self._is_here():
            (Path(self.folder) / STOP).touch()
        else:
            self.job()
            self.there().run(f"cd {shlex.quote(self.folder)} && test -f {RECORD} && touch {STOP}")

    def kill(self) -> None:
        """Kill the job."""
        self.there().stop(self.job().name)

    def fetch(self, to: Path) -> None:
        """Bring the folder to another one, which is new or empty."""
        check_folder(to)
        if to.is_dir() and any(to.iterdir()):
            raise BadInput(f"{to} has files already: choose another --to")
        if self._is_here():
            copytree(self.folder, to, symlinks=True, dirs_exist_ok=True)
        else:
            self._bring(".", to)
        _moved(to, Path(self.folder))

    def _last(self) -> Job | None:
        jobs = [] if self.cluster is None else self.cluster.jobs(self.folder)
        return jobs[-1] if jobs else None

    def _is_here(self) -> bool:
        job = self._last()
        return is_here(Path(self.folder), None if job is None else job.submission)

    @contextmanager
    def _files(self) -> Iterator[Path]:
        """The files that show how the run is, here or brought here."""
        if self._is_here():
            yield Path(self.folder)
            return
        with TemporaryDirectory(prefix="trimtab-") as folder:
            with suppress(TrimtabError):  # a job that was refused has left no folder
                self._bring(f"$(ls -d {LOOKED_AT} 2>/dev/null)", Path(folder))
            yield Path(folder)

    def _bring(self, names: str, to: Path) -> None:
        """Unpack files of the run's folder here; the cluster prints them into a job's log."""
        place = shlex.quote(self.folder)
        found = self.there().run(
            f"cd {place} && test $(du -smc {names} | tail -1 | cut -f1) -le {MOST} && tar -czf - {names} | base64 -w0"
        )
        try:
            with tarfile.open(fileobj=io.BytesIO(base64.b64decode(found, validate=True)), mode="r:gz") as archive:
                archive.extractall(to, filter="data")
        except (ValueError, OSError, EOFError, tarfile.TarError) as error:
            raise TrimtabError(f"{self.folder} did not come whole: {in_one_line(error)}") from error


def _moved(folder: Path, before: Path) -> None:
    """Let the configuration of a run that was brought here name its checkpoint where that lies now."""
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    checkpoint = Path(config.get("network", {}).get("checkpoint") or "")
    if checkpoint.parent == before:
        config["network"]["checkpoint"] = str((folder / checkpoint.name).absolute())
        write_text(file, yaml.safe_dump(config, sort_keys=False))
