"""Pools that judge accuracy: this process, or local Ray workers that stay off the timing core."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.accuracy import Judge, Judgement
from trimtab.evaluators.measure.timing import worker_cores
from trimtab.spaces.policy import Policy

__all__ = ["LocalPool", "Pool", "RayPool", "make_pool", "start_ray"]

#: How often a policy is given to another worker after one has died on it.
RETRIES = 2


class Pool(Protocol):
    """Judges policies; results come as they are finished."""

    size: int

    def judge(self, policies: Sequence[Policy]) -> Iterator[tuple[Policy, Judgement]]:
        """Yield (policy, judgement) for every policy, in the order of completion."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class LocalPool:
    """Judges one policy after the other in this process, on one thread."""

    def __init__(self, judge: Judge) -> None:
        self.size = 1
        self._judge = judge
        torch.set_num_threads(1)

    def judge(self, policies: Sequence[Policy]) -> Iterator[tuple[Policy, Judgement]]:
        """Yield results in the given order."""
        for policy in policies:
            yield policy, self._judge(policy)

    def close(self) -> None:
        """Nothing to stop."""


class RayPool:
    """Local Ray workers: the judge is shipped once, into the object store; workers are pinned off the timing core."""

    def __init__(self, judge: Judge, workers: int, threads: int = 1) -> None:
        import ray

        self._ray = ray
        self._started = start_ray(workers)
        self.size = workers
        self._cores = sorted(worker_cores(threads))
        self._shipped = ray.put(judge)
        self._worker = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
        self._workers = [self._start() for _ in range(workers)]

    def judge(self, policies: Sequence[Policy]) -> Iterator[tuple[Policy, Judgement]]:
        """Yield results as workers finish; a policy whose worker died is tried again on a new one."""
        waiting = [(policy, 0) for policy in reversed(policies)]
        running: dict[Any, tuple[int, Policy, int]] = {}
        idle = list(range(self.size))
        while waiting or running:
            while waiting and idle:
                slot = idle.pop(0)
                policy, tries = waiting.pop()
                running[self._workers[slot].judge.remote(policy.to_json())] = (slot, policy, tries)
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            slot, policy, tries = running.pop(done)
            try:
                judgement = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
                if tries >= RETRIES:
                    raise TrimtabError(
                        f"workers died {tries + 1} times on policy {policy.id}: {' '.join(str(error).split())[:300]}"
                    ) from error
                self._workers[slot] = self._start()
                waiting.append((policy, tries + 1))
            else:
                yield policy, judgement
            idle.append(slot)

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
