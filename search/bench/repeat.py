"""How well measurements repeat: one network measured again and again, on a busy machine where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.evaluators.bench import LatencyBench
from trimtab.evaluators.engines import make_engine
from trimtab.search.bench.networks import load_network

__all__ = ["bench_repeat", "bursts"]

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


def bench_repeat(
    network: str, engine: str, threads: int, seconds: float, repetitions: int, minutes: float, load: bool
) -> list[dict[str, Any]]:
    """Measure the int8 form of a network against its fp32 form, for `seconds` each, `repetitions` times spread evenly
    over `minutes`, under a load of bursts where `load` is set.

    The rows are the ratio and the raw seconds: `median`, and the median and 95th percentile of single measurements'
    relative deviation from it, `deviation_p50` and `deviation_p95`.
    """
    if repetitions < 2:
        raise BadInput(f"a spread needs at least two repetitions, got {repetitions}")
    space, images = load_network(network)
    bench = LatencyBench(make_engine(engine, threads), space, images, precision=1e-6)
    policy = space.int8()
    found = []
    with bursts() if load else nullcontext():
        start = time.perf_counter()
        for index in range(repetitions):
            due = start + index * minutes * 60 / repetitions
            time.sleep(max(0.0, due - time.perf_counter()))
            found.append(bench.measure(policy, seconds))
        took = time.perf_counter() - start
    values = {
        "ratio to fp32": np.array([latency.ratio for latency in found]),
        "raw seconds": np.array([latency.seconds for latency in found]),
    }
    return [
        {
            "network": network,
            "engine": bench.engine.signature,
            "load": load,
            "repetitions": repetitions,
            "minutes": took / 60,
            "seconds_each": seconds,
            "what": what,
            "median": float(np.median(v)),
            "deviation_p50": float(np.quantile(np.abs(v / np.median(v) - 1), 0.5)),
            "deviation_p95": float(np.quantile(np.abs(v / np.median(v) - 1), 0.95)),
        }
        for what, v in values.items()
    ]


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
