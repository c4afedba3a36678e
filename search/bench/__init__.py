"""Benchmarks of what trimtab stands on."""

from trimtab.search.bench.benchmarks import BenchOptions, run

__all__ = ["BenchOptions", "run"]
