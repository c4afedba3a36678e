"""The job server of a Ray cluster: its nodes, the jobs of a run, their logs, and commands that are run there."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.errors import BadInput, TrimtabError, in_one_line

__all__ = ["TIMING", "Cluster", "Gone", "Job", "JobServer", "Node", "follow"]

#: What a job's metadata calls the run's folder and the submission.
FOLDER, SUBMISSION = "trimtab.out", "trimtab.submission"

#: The label of nodes on which latency may be measured.
TIMING = "trimtab.timing"

#: How often a head that has no agent yet is asked again.
TRIES = 10

#: Seconds between two looks at a job, after which a silent stream is asked for again, and for which a server that does
#: not answer is waited for.
EVERY, QUIET, PATIENCE = 1.0, 60.0, 300.0


class Gone(TrimtabError):
    """The job is unknown to the server: its head was started again."""


@dataclass(frozen=True)
class Node:
    """A node that is alive; `labels` are those that somebody gave it."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    head: bool

    def __str__(self) -> str:
        has = [f"{self.resources.get('CPU', 0):g} CPU", f"{self.resources.get('GPU', 0):g} GPU"]
        labels = [f"{key}={value}" for key, value in self.labels.items()]
        return f"{self.name} ({', '.join([*(['head'] if self.head else []), *has, *labels])})"


@dataclass(frozen=True)
class Job:
    """An attempt at a run: Ray's name for it, the submission that it is of, whether it goes on, and its exit code.

    One that was killed, or whose node died, has ended without a code.
    """

    name: str
    submission: str
    status: str
    code: int | None
    message: str

    @property
    def goes_on(self) -> bool:
        """Whether it waits or runs."""
        return self.status in ("PENDING", "RUNNING")


class JobServer(Protocol):
    """The part of a server that is asked while a job's log is followed."""

    def job(self, name: str) -> Job:
        """Return a job as it is now; one that is not known is `Gone`."""
        ...

    def log(self, name: str) -> AsyncIterator[str]:
        """Yield a job's log from its beginning; the end says nothing."""
        ...


class Cluster:
    """The job server at an address like http://10.0.0.1:8265; one that does not answer is a `BadInput`."""

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise BadInput(f"the address of a job server is like http://10.0.0.1:8265, not {address!r}")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        for module in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
        self.address = address
        with _as_given(), self._answers():
            self._client = JobSubmissionClient(address)

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive, the head first."""
        from ray.util.state import list_nodes

        with _as_given(), self._answers():
            found = list_nodes(self.address, filters=[("state", "=", "ALIVE")], detail=True)
        nodes = [
            Node(
                each.node_name,
                each.resources_total,
                {key: value for key, value in each.labels.items() if not key.startswith("ray.io/")},
                each.is_head_node,
            )
            for each in found
        ]
        return sorted(nodes, key=lambda node: (not node.head, node.name))

    def jobs(self, folder: str) -> list[Job]:
        """Return the attempts at the run in a folder that the cluster remembers, the first one first."""
        with self._answers():
            found = [each for each in self._client.list_jobs() if (each.metadata or {}).get(FOLDER) == folder]
        return [_job(each) for each in sorted(found, key=lambda each: each.start_time or 0)]

    def job(self, name: str) -> Job:
        """Return a job as it is now."""
        with self._answers():
            return _job(self._client.get_job_info(name))

    def log(self, name: str) -> AsyncIterator[str]:
        """Yield a job's log from its beginning."""
        stream: AsyncIterator[str] = self._client.tail_job_logs(name)
        return stream

    def submit(self, name: str, command: Sequence[str], package: str, folder: str, submission: str) -> None:
        """Start a job; one of this name that is there already stays the one."""
        labels = sorted({node.labels[TIMING] for node in self.nodes() if TIMING in node.labels})
        options: dict[str, Any] = {"entrypoint_label_selector": {TIMING: f"in({', '.join(labels)})"}} if labels else {}
        self._start(
            name,
            f"exec {shlex.join(command)}",
            runtime_env={"working_dir": package, "env_vars": {"COLUMNS": "120"}},
            metadata={FOLDER: folder, SUBMISSION: submission},
            **options,
        )

    def stop(self, name: str) -> None:
        """Kill a job: Ray's SIGTERM, and SIGKILL three seconds later."""
        with self._answers():
            self._client.stop_job(name)

    def run(self, command: str, seconds: float = 120.0) -> str:
        """Run a shell command on the cluster and return the last line of its output; what fails is a `TrimtabError`."""
        name = f"trimtab-command-{secrets.token_hex(8)}"
        self._start(name, command)
        until = time.monotonic() + seconds
        while (job := self.job(name)).goes_on and time.monotonic() < until:
            time.sleep(EVERY / 2)
        if job.goes_on:
            self.stop(name)
            raise TrimtabError(f"{self.address} has not done what was asked within {seconds:.0f} s")
        with self._answers():
            lines = self._client.get_job_logs(name).strip().splitlines()
            self._client.delete_job(name)
        said = lines[-1] if lines else ""
        if job.code != 0:
            raise TrimtabError(f"{self.address} could not do what was asked: {said[:300]}")
        return said

    def _start(self, name: str, command: str, **options: Any) -> None:
        for left in reversed(range(TRIES)):
            try:
                with self._answers():
                    self._client.submit_job(submission_id=name, entrypoint=command, **options)
                return
            except TrimtabError as error:
                with suppress(Gone):
                    self.job(name)
                    return
                if left == 0 or "No available agent" not in str(error):
                    raise
                time.sleep(EVERY)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn what Ray raises within the block into an error of ours."""
        from ray.exceptions import AuthenticationError
        from ray.util.state.exception import RayStateApiException

        try:
            yield
        except AuthenticationError as error:
            raise BadInput(
                f"the cluster at {self.address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or "
                "RAY_AUTH_TOKEN"
            ) from error
        except OSError as error:  # those of requests are, too
            raise BadInput(f"no job server answers at {self.address}: {in_one_line(error)}") from error
        except (RuntimeError, RayStateApiException) as error:
            if "does not exist" in str(error):
                raise Gone(f"the cluster at {self.address} does not know this job") from error
            raise TrimtabError(f"the job server at {self.address}: {in_one_line(error)}") from error


def follow(server: JobServer, name: str, write: Callable[[str], Any], patience: float = PATIENCE) -> Job:
    """Write a job's log until the job has ended, and return it as it is then.

    A stream that ends says nothing of the job: it is asked for again, and what was written is not written twice. A
    server that has not answered for `patience` seconds is a `TrimtabError`.
    """
    written, silent = 0, time.monotonic()
    while True:
        try:
            job = server.job(name)
        except Gone:
            raise
        except TrimtabError as error:
            if time.monotonic() - silent > patience:
                raise TrimtabError(f"{error}; it has been waited for {patience:.0f} s") from error
            time.sleep(EVERY)
            continue
        silent = time.monotonic()
        written += asyncio.run(_rest(server.log(name), written, write))
        # What a job has written before it ended was there when the stream was asked for.
        if not job.goes_on:
            return job
        time.sleep(EVERY)


async def _rest(stream: AsyncIterator[str], written: int, write: Callable[[str], Any]) -> int:
    """Write what a stream has beyond so many characters, and return how many that were."""
    import aiohttp

    seen = new = 0
    with suppress(StopAsyncIteration, RuntimeError, OSError, asyncio.TimeoutError, aiohttp.ClientError):
        while True:
            # A machine that is gone closes no connection.
            text = await asyncio.wait_for(anext(stream), QUIET)
            fresh = text[max(0, written + new - seen) :]
            seen += len(text)
            new += len(fresh)
            if fresh:
                write(fresh)
    return new


def _job(found: Any) -> Job:
    submission = (found.metadata or {}).get(SUBMISSION, "")
    return Job(found.submission_id, submission, str(found.status), found.driver_exit_code, found.message or "")


@contextmanager
def _as_given() -> Iterator[None]:
    """Keep Ray from putting the address of its environment variables in the place of the one that is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
