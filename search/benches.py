"""Benchmarks of what trimtab stands on: kernels, engines, and the measurement itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.bench import LatencyBench
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.timing import measure, timing_slot
from trimtab.spaces.space import Space, build_space
from trimtab.spaces.zoo import ZOO, build

__all__ = ["run"]

KINDS = ("kernels", "engines", "measure")

#: Measurements of one network whose spread `bench measure` reports.
REPETITIONS = 20


def run(
    what: str, networks: Sequence[str], engines: Sequence[str], threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Run a benchmark and return its rows; an unknown name is a `BadInput`."""
    if what == "kernels":
        from trimtab.kernels.bench import bench_kernels

        with timing_slot(threads):
            return bench_kernels(threads=threads, seconds=seconds)
    if what == "engines":
        return [row for name in networks for row in _engines(name, engines, threads, seconds)]
    if what == "measure":
        return _measure(networks[0], engines[0], threads, seconds)
    raise unknown_name("benchmark", what, KINDS)


def _engines(name: str, engines: Sequence[str], threads: int, seconds: float) -> list[dict[str, Any]]:
    """A network in fp32 and uniform int8 on every engine, all timed in turn with the first engine's fp32."""
    space, images = _network(name)
    benches = [LatencyBench(make_engine(engine, threads), space, images) for engine in engines]
    reference = benches[0]
    rows: list[dict[str, Any]] = []
    for bench in benches:
        for form, policy in (("fp32", space.base()), ("int8", space.int8())):
            session = bench.session(_timed(space, policy))
            with timing_slot(threads):
                latency = measure(session, reference.reference, reference.inputs, precision=0.003, seconds=seconds)
            rows.append(
                {
                    "network": name,
                    "engine": bench.engine.signature,
                    "form": form,
                    "ms": latency.seconds * 1e3,
                    "ratio": latency.ratio,
                    "low": latency.low,
                    "high": latency.high,
                }
            )
    for row in rows:
        others = [float(r["ratio"]) for r in rows if r["form"] == row["form"] and r["engine"] != row["engine"]]
        row["times_the_best_other"] = float(row["ratio"]) / min(others) if others else None
    return rows


def _measure(name: str, engine: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """The same network measured again and again: how far single measurements are from their median."""
    space, images = _network(name)
    bench = LatencyBench(make_engine(engine, threads), space, images, precision=1e-6)
    found = [bench.measure(space.int8(), seconds) for _ in range(REPETITIONS)]
    ratios = np.array([latency.ratio for latency in found])
    raw = np.array([latency.seconds for latency in found])
    return [
        {
            "network": name,
            "engine": bench.engine.signature,
            "repetitions": REPETITIONS,
            "seconds_each": seconds,
            "what": what,
            "median": float(np.median(values)),
            "deviation_p50": float(np.quantile(np.abs(values / np.median(values) - 1), 0.5)),
            "deviation_p95": float(np.quantile(np.abs(values / np.median(values) - 1), 0.95)),
        }
        for what, values in (("ratio to fp32", ratios), ("raw seconds", raw))
    ]


def _timed(space: Space, policy: Any) -> Any:
    from trimtab.evaluators.accuracy import timing_candidate

    return timing_candidate(space, policy)


def _network(name: str) -> tuple[Space, np.ndarray]:
    """A network with random weights, on which no time depends, and random images of its size."""
    torch.manual_seed(0)
    if name in ZOO:
        model, size = build(name), 32
    else:
        from torchvision import models

        if name not in models.list_models(module=models):
            raise BadInput(str(unknown_name("network", name, [*ZOO, *models.list_models(module=models)])))
        model, size = models.get_model(name, weights=None), 224
    images = np.random.default_rng(0).normal(size=(8, 3, size, size)).astype(np.float32)
    return build_space(model, torch.from_numpy(images[:1])), images
