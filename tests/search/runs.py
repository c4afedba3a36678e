"""Small searches that the tests share: a narrow ResNet-8 on the digits data set, trained for two epochs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.search.setup.config import Config, make_config

torch.set_num_threads(1)

#: A run of seconds.
TINY: dict[str, Any] = {
    "network": {"zoo": "resnet8", "options": {"width": 8, "channels": 1}, "training": {"epochs": 2}},
    "data": {"name": "digits", "selection": 100, "calibration": 64},
    "budgets": {"latency": "1.2x", "size": "0.5x"},
    "space": {"channels": 3, "bits": [[8, 8], [32, 32]], "ranks": []},
    "measure": {"seconds": 0.1, "final_seconds": 0.2, "link_seconds": 0.3, "probes": 2},
    "agent": "milp",
    "baselines": ["uniform", "random"],
    "trials": 6,
    "workers": 0,
    "finish": False,
}


#: What the small configuration asks for, for searches from Python.
FROM_PYTHON: dict[str, Any] = {
    "trials": 3,
    "workers": 0,
    "baselines": ["random"],
    "measure": TINY["measure"],
    "space": TINY["space"],
}


def tiny(**changes: Any) -> Config:
    """The small configuration, with some of its sections replaced."""
    return make_config({**TINY, **changes})


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs `trimtab` in a process of its own, as a user does."""

    def __init__(self, cache: Path, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TRIMTAB_CACHE": str(cache), "COLUMNS": "120"}
        self.environment.pop("TRIMTAB_DATA", None)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        code = "import sys; from trimtab.search.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, cwd=self.folder, env=self.environment, start_new_session=True
        )

    def __call__(self, *arguments: str | Path) -> Ran:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=240)
        return Ran(process.returncode, out, err)

    def stop_when(self, ready: Callable[[], bool], how: signal.Signals, *arguments: str | Path) -> Ran:
        """Start a command, send it a signal as soon as `ready`, and wait for its end."""
        with self.start(*arguments) as process:
            while not ready() and process.poll() is None:
                time.sleep(0.002)
            if process.poll() is None:
                os.kill(process.pid, how)
            out, err = process.communicate(timeout=120)
        return Ran(process.returncode, out, err)
