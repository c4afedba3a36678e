"""The contract of engines: one compiles a program into a session that runs it and can be timed."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from trimtab.graph import Graph
from trimtab.kernels.session import TimeSlice

__all__ = [
    "Engine",
    "EngineSession",
    "FileEngine",
    "Images",
    "StepEngine",
    "StepSession",
    "TimeSlice",
    "cpu_name",
    "own_cache_bytes",
]

Images = npt.NDArray[np.float32]


class EngineSession(Protocol):
    """A compiled network."""

    def run(self, x: Images) -> Images:
        """Return the output (N, ...) for inputs (N, C, H, W), any N, float32."""
        ...

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Run on inputs (R, batch, C, H, W) in rotation until `seconds` have passed."""
        ...


class Engine(Protocol):
    """A runtime of networks. Latency belongs to (candidate, engine, threads, batch)."""

    name: str
    threads: int

    @property
    def signature(self) -> str:
        """What the latency table is keyed by: engine, version or kernel level, and threads.

        An engine may have a `build` beside it, a text that changes with its kernels.
        """
        ...

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 numbers faster than float32 ones; it runs such layers in any case."""
        ...

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> EngineSession:
        """Compile a program; one that the engine lacks an operator for is a `BadInput`.

        `ranges` are the calibrated (low, high) of tensors, for engines that cannot fuse an addition into an integer
        convolution and have to round its operand.
        """
        ...

    def layer_kernel(self, graph: Graph, layer: str) -> str:
        """Name the kernel that runs a layer of a small program; empty where the engine does not tell."""
        ...

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
        """Time one layer of a small program, several slices of `seconds` each: seconds per run of each slice."""
        ...


class StepSession(EngineSession, Protocol):
    """A compiled network that tells its steps apart."""

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernel that runs each layer, by the layer's tensor."""
        ...

    def profile(self, inputs: Images, seconds: float) -> Mapping[str, float]:
        """Run on inputs (R, batch, C, H, W) for about so long; return every step's seconds per run, by its tensor."""
        ...


@runtime_checkable
class StepEngine(Engine, Protocol):
    """An engine whose sessions tell their steps apart, so that steps can be timed in place."""

    tells_steps: bool

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> StepSession:
        """Compile a program; see `Engine`."""
        ...


@runtime_checkable
class FileEngine(Engine, Protocol):
    """An engine that runs files, which a network can be exported to. `suffix` is the ending of their names.

    It may have a `reader` too: Python for a process without `trimtab.evaluators`, which defines `open_file(path)`, a
    function that returns one of a batch of images. `trimtab bench start` times it.
    """

    suffix: str

    def save(self, graph: Graph, path: Path, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Write a program into a folder that exists, whole or not at all; `ranges` as for `compile`."""
        ...

    def open(self, path: Path, batch: int = 1) -> EngineSession:
        """Open a file as anybody would who has nothing but the file."""
        ...


@cache
def cpu_name() -> str:
    """Return the processor's model name, as the latency table is keyed by it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def own_cache_bytes() -> int | None:
    """Return the bytes of the second-level cache, which every core has for itself; None where Linux does not tell."""
    for level in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/level"):
        if level.read_text().strip() == "2":
            size = level.with_name("size").read_text().strip()
            return int(size.removesuffix("K")) * 1024
    return None
