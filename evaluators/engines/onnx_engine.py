"""The base of engines that run ONNX files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.evaluators.engines.base import EngineSession
from trimtab.evaluators.engines.loop import small_program_seconds
from trimtab.evaluators.engines.onnx_model import save_onnx, to_onnx
from trimtab.graph import Graph

__all__ = ["OnnxEngine"]


class OnnxEngine(ABC):
    """An engine that runs ONNX files; its optimiser leaves no layer that could be told apart."""

    name: str
    threads: int
    suffix = ".onnx"

    @property
    @abstractmethod
    def signature(self) -> str:
        """Engine, version, threads."""

    @property
    def has_bf16(self) -> bool:
        """Never: such layers run in float32."""
        return False

    @abstractmethod
    def load(self, model: bytes, batch: int = 1) -> EngineSession:
        """Compile the content of an ONNX file; see `open`."""

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> EngineSession:
        """Compile a program, to be timed on batches of `batch` images.

        `ranges` (`Candidate.ranges`) lets every integer convolution run in integers; see `to_onnx`.
        """
        return self.load(to_onnx(graph, ranges=ranges).SerializeToString(), batch)

    def save(self, graph: Graph, path: Path, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Write a program as an ONNX model; `ranges` as for `compile`."""
        save_onnx(to_onnx(graph, ranges=ranges), path)

    def open(self, path: Path, batch: int = 1) -> EngineSession:
        """Open an ONNX file with one input, whose first axis is the images, and one output."""
        return self.load(path.read_bytes(), batch)

    def layer_kernel(self, graph: Graph, layer: str) -> str:
        """Return nothing: it does not tell."""
        return ""

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
        """Time the whole small program."""
        return small_program_seconds(self, graph, layer, seconds)
