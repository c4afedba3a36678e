"""Jobs on a real cluster: a head of this test's own, its job server on loopback, killed and started again."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.search.runs import CommandLine, Ran

from trimtab.search.loop.journal import Record, read_journal

pytestmark = [pytest.mark.slow, pytest.mark.ray]


class Head:
    """A head of two CPUs. `address` is its job server's; all that it starts has its mark."""

    def __init__(self, folder: Path, free_port: Callable[[], int]) -> None:
        self.folder, self.mark, self.free_port = folder, f"CLUSTER={folder}", free_port
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def start(self) -> None:
        ports = [self.free_port() for _ in range(4)]
        self.address = f"http://127.0.0.1:{ports[0]}"
        names = ("dashboard-port", "port", "dashboard-agent-listen-port", "ray-client-server-port")
        command = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]
        command += ["start", "--head", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={self.folder}"]
        command += ["--dashboard-host=127.0.0.1", "--labels=trimtab.timing=true"]
        command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **self.environment, "PATH": path, "CLUSTER": str(self.folder)}
        quiet = subprocess.DEVNULL
        # Ray gives up where its own processes take too long to start.
        for _ in range(3):
            if subprocess.run(command, env=environment, stdout=quiet, stderr=quiet, check=False).returncode == 0:
                return
            self.kill()

    def kill(self) -> None:
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Head]:
    head = Head(tmp_path_factory.mktemp("ray"), free_port)
    head.start()
    yield head
    head.kill()


def asked(trimtab: CommandLine, head: Head, *arguments: str | Path) -> Ran:
    """A command, asked again while the head comes up."""
    trimtab.environment |= head.environment
    for _ in range(120):
        ran = trimtab(*arguments, "--address", head.address)
        if "no job server answers" not in ran.err:
            return ran
        time.sleep(1)
    raise AssertionError(ran.err)


def wait_for(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.1)


def results(run: Path) -> list[Record]:
    return [r for r in read_journal(run / "journal") if r.kind == "result"] if (run / "journal").is_file() else []


def test_a_job_survives_its_head_and_is_stopped_with_its_best(
    trimtab: CommandLine, written: Callable[..., Path], head: Head, tmp_path: Path
) -> None:
    config, run = written(trials=5000, agent="random", baselines=[], workers=1), tmp_path / "shared" / "run"
    submit = ("submit", config, "--out", run, "--json")
    plan = json.loads(asked(trimtab, head, *submit, "--dry-run").out)
    assert "trimtab.timing" in plan["plan"]["timing"]
    assert not run.exists()

    first = json.loads(asked(trimtab, head, *submit, "--detach").out)
    wait_for(lambda: len(results(run)) > 5)
    again = asked(trimtab, head, *submit, "--detach")
    assert json.loads(again.out)["job"] == first["job"]
    assert "goes on already" in again.err

    head.kill()
    before = results(run)
    assert trimtab("status", run).code == 1
    head.start()
    assert json.loads(asked(trimtab, head, *submit, "--detach").out)["submission"] == first["submission"]
    wait_for(lambda: len(results(run)) > len(before) + 5)
    assert asked(trimtab, head, "status", run).code == 0

    assert asked(trimtab, head, "stop", run).code == 0
    assert asked(trimtab, head, "logs", run).code == 4
    found = json.loads((ran := asked(trimtab, head, "status", run, "--json")).out)
    assert (ran.code, found["code"], found["run"]["stage"]) == (4, 4, "finished")
    after = results(run)
    assert after[: len(before)] == before
    assert len({json.dumps(r.data["policy"]) for r in after}) == len(after)
    assert asked(trimtab, head, "fetch", run, "--to", tmp_path / "got").code == 0
    assert trimtab("report", tmp_path / "got").code == 0


def test_a_folder_that_is_not_seen_here_is_looked_at_and_fetched_through_the_cluster(
    trimtab: CommandLine, written: Callable[..., Path], head: Head, tmp_path: Path
) -> None:
    config, run = written(trials=3, baselines=["random"]), tmp_path / "shared" / "run"
    ran = asked(trimtab, head, "submit", config, "--out", run)
    assert ran.code == 0, ran.err
    assert "trimtab: done" in ran.out
    # With another submission's name in it, this machine takes the folder for another run's.
    hidden = (run / "job.json").read_text()
    (run / "job.json").write_text(hidden.replace("trimtab-", "other-"))
    found = json.loads(asked(trimtab, head, "status", run, "--json").out)
    assert (found["code"], found["run"]["stage"]) == (0, "finished")
    assert asked(trimtab, head, "fetch", run, "--to", tmp_path / "got").code == 0
    assert {path.name for path in (tmp_path / "got").iterdir()} == {path.name for path in run.iterdir()}
    (run / "job.json").write_text(hidden)
    assert "finished before" in asked(trimtab, head, "submit", config, "--out", run).out

    infeasible = asked(trimtab, head, "submit", written(budgets={"size": "0.01x"}), "--out", tmp_path / "none")
    assert infeasible.code == 3
    assert "smallest reachable size" in infeasible.out
    assert asked(trimtab, head, "status", tmp_path / "none").code == 3
    unwritable = asked(trimtab, head, "submit", config, "--out", "/proc/none")
    assert unwritable.code == 2
    assert "/proc/none cannot be written to" in unwritable.out
