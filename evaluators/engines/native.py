"""trimtab's own kernels as an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trimtab import kernels
from trimtab.evaluators.engines.base import Images, TimeSlice
from trimtab.graph import Graph
from trimtab.graph.padding import isolate

__all__ = ["NativeEngine"]

LAYER_SLICES = 7


class NativeEngine:
    """Runs programs on `trimtab.kernels`, at the best kernel level or the one that `TRIMTAB_ISA` forces."""

    name = "native"
    suffix = ".safetensors"
    tells_steps = True
    reader = """
from trimtab.kernels import load

def open_file(path):
    return load(path).run
"""

    def __init__(self, threads: int = 1, level: str | None = None) -> None:
        self.threads = threads
        self.level = level or kernels.active_level()

    @property
    def has_bf16(self) -> bool:
        """Whether the kernel level multiplies bf16 numbers."""
        return kernels.has_bf16(self.level)

    @property
    def build(self) -> str:
        """A hash of the kernels' sources."""
        return kernels.build()

    @property
    def signature(self) -> str:
        """Engine, kernel level, threads."""
        return f"native {self.level} threads={self.threads}"

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> NativeSession:
        """Compile a program for batches of up to `batch` images; additions are fused, so `ranges` are not needed."""
        return NativeSession(kernels.Session(graph, threads=self.threads, batch=batch, level=self.level))

    def save(self, graph: Graph, path: Path, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Write a program as `trimtab.kernels.load` reads it; `ranges` are not needed."""
        kernels.save(graph, path)

    def open(self, path: Path, batch: int = 1) -> NativeSession:
        """Open a file that `save` wrote."""
        return NativeSession(kernels.load(path, threads=self.threads, batch=batch, level=self.level))

    def layer_kernel(self, graph: Graph, layer: str) -> str:
        """Name the kernel: the bits that it reads and how it goes about it; empty for what is no layer."""
        return kernels.Session(isolate(graph), threads=self.threads, level=self.level).kernels.get(layer, "")

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
        """Time one layer in place, inside runs of the whole small program."""
        session = kernels.Session(isolate(graph), threads=self.threads, level=self.level)
        inputs = np.random.default_rng(0).normal(size=(4, 1, *graph.input_shape)).astype(np.float32)
        first = session.time(inputs, seconds / 2)
        runs = max(3, int(seconds * first.runs / first.seconds))
        times = []
        for _ in range(LAYER_SLICES):
            steps = dict(session.profile(inputs, runs))
            times.append(steps[layer])
        return times


class NativeSession:
    """A `trimtab.kernels.Session` as an `EngineSession`."""

    def __init__(self, session: kernels.Session) -> None:
        self.session = session
        self._each = 0.0

    def run(self, x: Images) -> Images:
        """Return the output for (N, C, H, W)."""
        return self.session.run(np.ascontiguousarray(x, dtype=np.float32))

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernel that runs each layer."""
        return self.session.kernels

    def profile(self, inputs: Images, seconds: float) -> Mapping[str, float]:
        """Return the seconds per run of every step, and of the conversion of input and output."""
        inputs = np.ascontiguousarray(inputs, dtype=np.float32)
        if not self._each:
            self._each = self.session.time(inputs, seconds / 2).per_run
        return dict(self.session.profile(inputs, max(2, round(seconds / self._each))))

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Time runs in the native loop."""
        return self.session.time(np.ascontiguousarray(inputs, dtype=np.float32), seconds)
