"""Benchmarks of what trimtab stands on: kernels, engines, and the measurement itself; `cli` is the way in."""
