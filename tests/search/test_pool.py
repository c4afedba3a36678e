from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.accuracy import Judge, Judgement
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.timing import timing_cores, worker_cores
from trimtab.search.loop.pool import RETRIES, LocalPool, RayPool, make_pool, start_ray
from trimtab.search.setup.problem import Problem
from trimtab.spaces import LayerDecision, Policy
from trimtab.spaces.numbers.formats import INT8

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves its log files open


def draws(problem: Problem, count: int) -> list[Policy]:
    rng, knobs = np.random.default_rng(0), problem.space.knobs
    return [problem.space.decode([int(rng.integers(len(knob.choices))) for knob in knobs]) for _ in range(count)]


def worth(judgement: Judgement) -> tuple[Answers, float, int]:
    """All of it but the time that it took."""
    return judgement.answers, judgement.loss, judgement.size


def toy_policies(count: int) -> list[Policy]:
    return [Policy("toy", {"a": i + 1}, {"a": LayerDecision()}) for i in range(count)]


@dataclass
class Scripted:
    """A judge that does what the policy's number says, and leaves notes."""

    notes: Path
    die_once: tuple[int, ...] = ()
    die_always: tuple[int, ...] = ()
    fail: tuple[int, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        self.note("shipped")
        return self.__dict__

    def note(self, name: str) -> int:
        with open(self.notes / name, "a") as file:
            file.write("x")
        return (self.notes / name).stat().st_size

    def __call__(self, policy: Policy) -> Judgement:
        number = policy.channels["a"] - 1
        tries = self.note(f"judged-{number}")
        if number in self.die_always or (number in self.die_once and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if number in self.fail:
            raise BadInput(f"policy {number} is not wanted")
        cores = os.sched_getaffinity(0)
        answers = Answers.of(np.arange(10) < number)
        return Judgement(answers, float(number), 100 * number, {str(core): 1.0 for core in cores})


def scripted(tmp_path: Path, **what: tuple[int, ...]) -> Judge:
    return cast(Judge, Scripted(tmp_path, **what))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray cluster for the module, started as a run starts it."""
    import ray

    pool = RayPool(cast(Judge, None), 2)
    for worker in pool._workers:  # they hold the CPUs that the tests' workers need
        ray.kill(worker)
    yield
    pool.close()


def test_the_local_pool_is_the_judge(problem: Problem) -> None:
    policies = draws(problem, 3)
    pool = make_pool(problem.judge, 0)
    assert isinstance(pool, LocalPool)
    found = list(pool.judge(policies))
    assert [policy for policy, _ in found] == policies
    assert [worth(j) for _, j in found] == [worth(problem.judge(policy)) for policy in policies]
    pool.close()


def test_the_address_of_a_job_server_is_no_cluster_s() -> None:
    with pytest.raises(BadInput, match="trimtab submit takes it"):
        start_ray(1, "http://127.0.0.1:8265")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_workers_judge_exactly_as_this_process_does(problem: Problem) -> None:
    policies = draws(problem, 6)
    pool = RayPool(problem.judge, 2)
    found = {policy: worth(judgement) for policy, judgement in pool.judge(policies)}
    pool.close()
    assert found == {policy: worth(problem.judge(policy)) for policy in policies}
    assert len(set(found.values())) > 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_stay_off_the_timing_core_and_get_the_judge_once(tmp_path: Path) -> None:
    pool = RayPool(scripted(tmp_path), 2)
    found = dict(pool.judge(toy_policies(8)))
    pool.close()
    assert [found[policy].accuracy for policy in toy_policies(8)] == [i / 10 for i in range(8)]
    assert [found[policy].size for policy in toy_policies(8)] == [100 * i for i in range(8)]
    cores = {int(core) for judgement in found.values() for core in judgement.seconds}
    assert cores == worker_cores()
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores & timing_cores()
    assert (tmp_path / "shipped").stat().st_size == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_policy_whose_worker_died_is_judged_by_another(tmp_path: Path) -> None:
    pool = RayPool(scripted(tmp_path, die_once=(1, 3)), 2)
    found = dict(pool.judge(toy_policies(5)))
    again = dict(pool.judge(toy_policies(2)))  # the pool lives on
    pool.close()
    assert {policy.channels["a"]: j.accuracy for policy, j in found.items()} == {i + 1: i / 10 for i in range(5)}
    assert len(again) == 2
    assert (tmp_path / "judged-1").stat().st_size >= 2
    assert (tmp_path / "judged-0").stat().st_size == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_policy_that_kills_every_worker_is_reported(tmp_path: Path) -> None:
    pool = RayPool(scripted(tmp_path, die_always=(0,)), 1)
    with pytest.raises(TrimtabError, match=rf"workers died {RETRIES + 1} times on policy {toy_policies(1)[0].id}"):
        list(pool.judge(toy_policies(1)))
    pool.close()
    assert (tmp_path / "judged-0").stat().st_size == RETRIES + 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_judge_arrives_as_itself(tmp_path: Path) -> None:
    pool = RayPool(scripted(tmp_path, fail=(0,)), 1)
    with pytest.raises(BadInput, match=r"^policy 0 is not wanted$"):
        list(pool.judge(toy_policies(1)))
    pool.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_more_workers_than_the_cluster_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="workers = 50"):
        RayPool(scripted(tmp_path), 50)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be both timed on and busy")
def test_latency_is_the_same_beside_a_busy_worker(problem: Problem) -> None:
    from threading import Event, Thread

    bench = LatencyBench(make_engine("native", 1), problem.space, problem.judge.images)
    link, policy, policies = bench.tie(problem.space.int8(), 3.0), problem.space.uniform(0.5, INT8), draws(problem, 6)
    pool = RayPool(problem.judge, 1)
    done = Event()
    judged: list[tuple[Policy, Judgement]] = []

    def keep_busy() -> None:
        while not done.is_set():
            judged.extend(pool.judge(policies))

    differences, bounds = [], []
    for _ in range(3):  # other tenants of the machine may disturb one attempt
        idle = bench.measure(policy, link, 1.0)
        floor = bench.noise_floor(link)
        done.clear()
        thread = Thread(target=keep_busy)
        thread.start()
        before = len(judged)
        busy = bench.measure(policy, link, 1.0)
        done.set()
        thread.join()
        assert len(judged) > before
        differences.append(abs(busy.ratio / idle.ratio - 1))
        bounds.append(max(3 * floor, 0.05))
        if differences[-1] < bounds[-1]:
            break
    pool.close()
    assert differences[-1] < bounds[-1], (differences, bounds)
