"""Benchmarks of what trimtab stands on: kernels, engines, and the measurement itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import BadInput, unknown_name
from trimtab.search.bench.coverage import bench_coverage
from trimtab.search.bench.judge import bench_judge
from trimtab.search.bench.layers import bench_kernels
from trimtab.search.bench.methods import bench_methods
from trimtab.search.bench.networks import bench_networks
from trimtab.search.bench.proxy import bench_proxy
from trimtab.search.bench.table import bench_table
from trimtab.search.setup.config import Config

__all__ = ["BenchOptions", "run"]


@dataclass(frozen=True)
class BenchOptions:
    """Options of benchmarks; the command line's help says which benchmark reads which."""

    networks: tuple[str, ...]
    engines: tuple[str, ...]
    forms: tuple[str, ...]
    threads: tuple[int, ...]
    seconds: float
    level: str | None
    layers: str
    minutes: float
    load: bool
    finished: Path | None = None
    config: Config | None = None
    cases: tuple[str, ...] = ()
    final: bool = False
    policies: int = 20
    steps: int = 100
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.networks or not self.engines or not self.forms or not self.threads:
            raise BadInput("a benchmark needs at least one network, engine, form and number of threads")
        if len(set(self.engines)) < len(self.engines):
            raise BadInput(f"engines are named twice: {', '.join(self.engines)}")


def run(what: str, options: BenchOptions) -> list[dict[str, Any]]:
    """Run a benchmark and return its rows; an unknown name is a `BadInput`."""
    if what not in _BENCHMARKS:
        raise unknown_name("benchmark", what, _BENCHMARKS)
    return _BENCHMARKS[what](options)


def _engines(o: BenchOptions) -> list[dict[str, Any]]:
    return bench_networks(o.networks, o.engines, o.forms, o.threads, o.seconds, o.level)


def _kernels(o: BenchOptions) -> list[dict[str, Any]]:
    return bench_kernels(o.layers, o.engines, o.threads, o.seconds, o.level)


def _measure(o: BenchOptions) -> list[dict[str, Any]]:
    return bench_coverage(o.networks[0], o.engines[0], o.threads[0], o.minutes, o.load, o.finished)


def _methods(o: BenchOptions) -> list[dict[str, Any]]:
    if o.config is None or not o.cases:
        raise BadInput("bench methods needs a configuration and cases: --config FILE --cases '4/8; keep 0.7; svd 0.5'")
    return bench_methods(o.config, o.cases, o.final)


def _proxy(o: BenchOptions) -> list[dict[str, Any]]:
    if o.config is None:
        raise BadInput("bench proxy needs a configuration: --config FILE")
    return bench_proxy(o.config, o.policies, o.steps, o.workers)


def _judge(o: BenchOptions) -> list[dict[str, Any]]:
    if o.config is None:
        raise BadInput("bench judge needs a configuration: --config FILE")
    return bench_judge(o.config, o.policies, o.workers)


def _table(o: BenchOptions) -> list[dict[str, Any]]:
    if o.config is None:
        raise BadInput("bench table needs a configuration: --config FILE")
    return bench_table(o.config, o.policies)


_BENCHMARKS: Mapping[str, Callable[[BenchOptions], list[dict[str, Any]]]] = {
    "kernels": _kernels,
    "engines": _engines,
    "judge": _judge,
    "measure": _measure,
    "methods": _methods,
    "proxy": _proxy,
    "table": _table,
}
