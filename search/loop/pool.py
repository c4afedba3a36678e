"""Pools that judge accuracy: this process, or local Ray workers."""

from __future__ import annotations

import logging
import os
import stat
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.accuracy import Judge, Judgement
from trimtab.evaluators.measure.timing import worker_cores
from trimtab.spaces.policy import Policy

__all__ = ["LocalPool", "Pool", "RayPool", "make_pool", "start_ray"]

#: How often a policy is given to another worker after one has died on it.
RETRIES = 2

#: Policies that a worker is given at a time: the one that it judges, and the next.
EACH = 2


class Pool(ABC):
    """A pool that judges policies while others are asked for: they are submitted, and their results come as they are
    finished.

    With `ahead` policies in it nobody in it waits: one for every worker, and one that is next.
    """

    ahead: int

    @abstractmethod
    def submit(self, policy: Policy) -> None:
        """Take a policy on, to be judged in its turn."""

    @abstractmethod
    def next(self) -> tuple[Policy, Judgement]:
        """Return the next finished one of those that were submitted, waiting for it; there has to be one."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers."""

    def judge(self, policies: Sequence[Policy]) -> Iterator[tuple[Policy, Judgement]]:
        """Yield (policy, judgement) for every policy, in the order of completion; nothing else may be in the pool."""
        for policy in policies:
            self.submit(policy)
        for _ in policies:
            yield self.next()


class LocalPool(Pool):
    """Judges one policy after the other in this process, on one thread, when the result is asked for."""

    ahead = 1

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiting: deque[Policy] = deque()
        torch.set_num_threads(1)

    def submit(self, policy: Policy) -> None:
        """Put a policy behind the others."""
        self._waiting.append(policy)

    def next(self) -> tuple[Policy, Judgement]:
        """Judge the first one."""
        policy = self._waiting.popleft()
        return policy, self._judge(policy)

    def close(self) -> None:
        """Nothing to stop."""


@dataclass
class _Submitted:
    """A policy, and how many workers have died on it."""

    policy: Policy
    deaths: int = 0


class RayPool(Pool):
    """Local Ray workers: the judge is shipped once, into the object store.

    Workers are pinned off the timing core, as long as there is a core for each; more of them use that one too, while
    nothing is timed. Each has the policy that it judges and the next one, so that none waits for this process.
    """

    def __init__(self, judge: Judge, workers: int, threads: int = 1) -> None:
        import ray

        self._ray = ray
        self._started = start_ray(workers)
        self.ahead = workers + 1
        free = worker_cores(threads)
        self._cores = sorted(free if workers <= len(free) else os.sched_getaffinity(0))
        self._shipped = ray.put(judge)
        self._worker = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
        self._workers = [self._start() for _ in range(workers)]
        self._waiting: deque[_Submitted] = deque()
        #: What every worker has been given, the oldest first: that is the one that it judges.
        self._given: list[dict[Any, _Submitted]] = [{} for _ in range(workers)]

    def submit(self, policy: Policy) -> None:
        """Give a policy to the worker that has the least to do, or keep it until one has."""
        self._waiting.append(_Submitted(policy))
        self._feed()

    def next(self) -> tuple[Policy, Judgement]:
        """Return the result of whichever worker has the next one; a policy whose worker died is tried again."""
        while True:
            (done,), _ = self._ray.wait([task for given in self._given for task in given], num_returns=1)
            slot = next(slot for slot, given in enumerate(self._given) if done in given)
            try:
                judgement: Judgement = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
                self._replace(slot, error)
                continue
            finished = self._given[slot].pop(done)
            self._feed()
            return finished.policy, judgement

    def _feed(self) -> None:
        while self._waiting:
            slot = min(range(len(self._given)), key=lambda slot: len(self._given[slot]))
            if len(self._given[slot]) >= EACH:
                return
            submitted = self._waiting.popleft()
            self._given[slot][self._workers[slot].judge.remote(submitted.policy.to_json())] = submitted

    def _replace(self, slot: int, error: Exception) -> None:
        """Start a worker in a dead one's place, and give it again what that one had: it died on the first of that."""
        lost = list(self._given[slot].values())
        lost[0].deaths += 1
        if lost[0].deaths > RETRIES:
            raise TrimtabError(
                f"workers died {lost[0].deaths} times on policy {lost[0].policy.id}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        self._workers[slot], self._given[slot] = self._start(), {}
        self._waiting.extendleft(reversed(lost))
        self._feed()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        if self._started:
            self._ray.shutdown()

    def _start(self) -> Any:
        return self._worker.remote(self._shipped, self._cores, _machine())


class _Worker:
    """Runs in a Ray worker process."""

    def __init__(self, judge: Judge, cores: Sequence[int], machine: str) -> None:
        if machine == _machine():  # nothing is timed on others
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(1)
        self._judge = judge

    def judge(self, policy: dict[str, Any]) -> Judgement:
        return self._judge(Policy.from_json(policy))


def _machine() -> str:
    """The machine that this process is on, whatever container or node it runs in, until it is started again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def make_pool(judge: Judge, workers: int, threads: int = 1) -> Pool:
    """Return a pool of that many Ray workers, or one without Ray for 0. `threads` are the timing slot's."""
    return RayPool(judge, workers, threads) if workers > 0 else LocalPool(judge)


def start_ray(workers: int, address: str | None = None) -> bool:
    """Start a local Ray cluster, on loopback, or join the one at an address; False where this process has one already.

    A cluster of fewer CPUs than workers is a `BadInput`: they would wait for ever.
    """
    # Ray lowers its workers' priority by default, and warns about settings that do not concern a local cluster.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    starting = not ray.is_initialized()
    if starting:
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if address is None:
            with _loopback_stays():
                ray.init(
                    address="local",
                    num_cpus=max(workers, 1),
                    include_dashboard=False,
                    object_store_memory=512 * 1024**2,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            _protect_token()
        elif address.startswith(("http://", "https://")):
            raise BadInput(f"{address} is a job server's: trimtab submit takes it; workers join a cluster at HOST:6379")
        else:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError) as error:
                raise BadInput(f"there is no Ray cluster at {address}: {error}") from error
    if ray.cluster_resources().get("CPU", 0) < workers:
        raise BadInput(f"workers = {workers}, but the Ray cluster that is running here has fewer CPUs")
    return starting


@contextmanager
def _loopback_stays() -> Iterator[None]:
    """Keep Ray from putting the machine's own address in the place of 127.0.0.1: it would listen on all of them."""
    from ray._private import services

    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = resolve


def _protect_token() -> None:
    """Ray writes the token of a local cluster world-readable."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        token.chmod(0o600)
