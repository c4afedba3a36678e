from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trimtab.errors import BadInput
from trimtab.evaluators import timing_slot
from trimtab.evaluators.measure.timing import timing_cores, worker_cores
from trimtab.files import cache_dir

State = tuple[set[int], int, int, bool]


def state() -> State:
    return os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, gc.isenabled()


@pytest.mark.parametrize("collecting", [True, False])
def test_the_slot_leaves_the_process_as_it_was(collecting: bool) -> None:
    try:
        if not collecting:
            gc.disable()
        before = state()
        with timing_slot():
            assert os.sched_getaffinity(0) == timing_cores()
            assert not gc.isenabled()
        assert state() == before
        with pytest.raises(RuntimeError, match="inside"), timing_slot():
            raise RuntimeError("inside")
        assert state() == before
    finally:
        gc.enable()


def test_the_slot_serves_where_priority_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.sched_setscheduler

    def refuse(pid: int, policy: int, parameters: os.sched_param) -> None:
        if policy == os.SCHED_FIFO:
            raise PermissionError("not allowed")
        original(pid, policy, parameters)

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = state()
    with timing_slot():
        assert os.sched_getaffinity(0) == timing_cores()
    assert state() == before


def test_a_process_forked_inside_does_not_keep_the_slot() -> None:
    reading, writing = os.pipe()
    with timing_slot():
        forked = os.fork()
        if not forked:
            os.close(writing)
            os.read(reading, 1)  # until the parent is done
            os._exit(0)
    with timing_slot():  # would wait for ever if the fork still had it
        os.close(writing)
    os.close(reading)
    assert os.waitpid(forked, 0)[1] == 0


def test_the_slot_can_be_taken_again() -> None:
    for _ in range(3):
        with timing_slot():
            pass


OTHER = """
import sys, time
from trimtab.evaluators.measure.timing import timing_slot
print("ready", flush=True)
with timing_slot():
    print(time.monotonic(), flush=True)
"""


def test_a_second_process_waits_for_the_slot_whatever_its_cache(tmp_path: Path) -> None:
    with timing_slot():
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TRIMTAB_CACHE": str(tmp_path / "other"), "TMPDIR": str(tmp_path)},
        )
        assert other.stdout is not None
        os.sched_setaffinity(other.pid, os.sched_getaffinity(os.getppid()))
        assert other.stdout.readline() == "ready\n"
        time.sleep(0.3)
        assert other.poll() is None
        released = time.monotonic()
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    assert float(output) >= released


# cores


def allow(monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)


def test_workers_keep_off_the_timing_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 2, 5, 7})
    for threads in (1, 2, 3):
        assert len(timing_cores(threads)) == threads
        assert timing_cores(threads) | worker_cores(threads) == {0, 2, 5, 7}
        assert not timing_cores(threads) & worker_cores(threads)
    assert timing_cores() == {7}


def test_where_no_core_would_be_left_workers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {3})
    assert timing_cores() == worker_cores() == {3}
    allow(monkeypatch, {0, 1})
    assert timing_cores(2) == timing_cores(4) == worker_cores(2) == {0, 1}


# the cache's place


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "trimtab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "trimtab"
    assert (tmp_path / "own").is_dir()
    monkeypatch.setenv("TRIMTAB_CACHE", "/proc/none")
    with pytest.raises(BadInput, match="TRIMTAB_CACHE"):
        cache_dir()


def test_all_threads_get_their_priority_back() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    tasks = [threading.get_native_id(), thread.native_id or 0]
    before = [os.sched_getscheduler(task) for task in tasks]
    with timing_slot(1, pools=True):
        within = {os.sched_getscheduler(task) for task in tasks}
    after = [os.sched_getscheduler(task) for task in tasks]
    done.set()
    thread.join()
    assert len(within) == 1  # raised together, where the system allows it
    assert before == after
