"""A load of bursts, to measure under."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["bursts"]

#: Computes and streams memory in bursts of up to half a second with pauses as long, until its parent is gone.
BURSTS = """
import os, random, sys, time
import numpy as np
parent, data = int(sys.argv[1]), np.ones(1 << 23)
while os.getppid() == parent:
    end = time.perf_counter() + random.uniform(0.05, 0.5)
    while time.perf_counter() < end:
        data[: 1 << 15].dot(data[: 1 << 15]) if random.random() < 0.5 else data.sum()
    time.sleep(random.uniform(0.05, 0.5))
"""


@contextmanager
def bursts() -> Iterator[list[int]]:
    """Keep every core that this process may use busy in bursts, and yield the ids of the processes that do."""
    command = [sys.executable, "-c", BURSTS, str(os.getpid())]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=env) for _ in os.sched_getaffinity(0)]
    try:
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
