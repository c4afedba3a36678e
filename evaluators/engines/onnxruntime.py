"""onnxruntime's CPU kernels as an engine."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import onnxruntime as ort

from trimtab.errors import BadInput
from trimtab.evaluators.engines.base import Images, TimeSlice
from trimtab.evaluators.onnx_model import product_name, to_onnx
from trimtab.kernels.graph import Graph

__all__ = ["OnnxRuntimeEngine", "OnnxRuntimeSession"]

LAYER_SLICES = 7

#: Range of what a layer computes before its residual, where it is timed alone: the time does not depend on it.
LAYER_RANGE = (-4.0, 4.0)

#: Images per call of `run`, which bounds the memory that its activations take.
RUN_BATCH = 64


class OnnxRuntimeEngine:
    """Runs programs on onnxruntime.

    On processors with AVX2 or AVX-512 but without VNNI, onnxruntime's default kernels for uint8 times int8 add two
    products in 16 bits and saturate: fast, and wrong. With `exact` its slower kernels are taken there, which give what
    the program says; on other processors it changes nothing.
    """

    name = "onnxruntime"

    def __init__(self, threads: int = 1, exact: bool = True) -> None:
        if threads < 1:
            raise BadInput(f"onnxruntime needs at least one thread, given {threads}")
        self.threads = threads
        self.exact = exact

    @property
    def signature(self) -> str:
        """Engine, version, threads."""
        return f"onnxruntime {ort.__version__} threads={self.threads}{'' if self.exact else ' saturating'}"

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> OnnxRuntimeSession:
        """Compile a program, to be timed on batches of `batch` images.

        `ranges` (`Candidate.ranges`) lets every integer convolution run in integers; see `to_onnx`.
        """
        return self._session(to_onnx(graph, ranges=ranges).SerializeToString(), batch)

    def open(self, path: Path) -> OnnxRuntimeSession:
        """Open an ONNX file, with nothing but the file."""
        return self._session(path.read_bytes(), 1)

    def _session(self, model: bytes, batch: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(
            ort.InferenceSession(model, self._options(), providers=["CPUExecutionProvider"]), batch
        )

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
        """Time the whole small program: onnxruntime's optimiser leaves no layer that could be told apart."""
        if layer not in {node.name for node in graph.nodes}:
            raise BadInput(f"the program has no layer {layer!r}")
        # As inside a network that is compiled with ranges, where a residual is added to a rounded result.
        session = self.compile(graph, ranges={product_name(layer): LAYER_RANGE})
        inputs = np.random.default_rng(0).normal(size=(4, 1, *graph.input_shape)).astype(np.float32)
        session.time(inputs, seconds / 2)
        slices = [session.time(inputs, seconds) for _ in range(LAYER_SLICES)]
        return [piece.seconds / piece.runs for piece in slices]

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Threads that wait by spinning are faster within a run, but between runs they would take the core from
        # whatever is measured in turn with this session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.x64quantprecision", "1" if self.exact else "0")
        return options


class OnnxRuntimeSession:
    """An onnxruntime session as an `EngineSession`; `session` is onnxruntime's own."""

    def __init__(self, session: ort.InferenceSession, batch: int) -> None:
        self.session, self.batch = session, batch
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(self, x: Images) -> Images:
        """Return the output (N, ...) for (N, C, H, W)."""
        step = max(self.batch, RUN_BATCH)
        starts = range(0, max(len(x), 1), step)
        return np.concatenate([self._run(x[start : start + step]) for start in starts])

    def _run(self, x: Images) -> Images:
        result: Images = self.session.run([self._output], {self._input: np.ascontiguousarray(x)})[0]
        return result

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Time runs on inputs (R, batch, C, H, W), bound beforehand and all with the same output memory."""
        images = np.ascontiguousarray(inputs, dtype=np.float32)
        bindings = cycle(self._bindings(images))
        run = self.session.run_with_iobinding
        clock = time.perf_counter_ns
        runs = 0
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        start = clock()
        end, now = start + round(seconds * 1e9), start
        while now < end or not runs:
            run(next(bindings))
            runs += 1
            now = clock()
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - switches
        return TimeSlice(runs, (now - start) / 1e9, switches)

    def _bindings(self, images: Images) -> list[ort.IOBinding]:
        output = ort.OrtValue.ortvalue_from_numpy(self._run(images[0]))
        bindings = []
        for image in images:
            binding = self.session.io_binding()
            binding.bind_cpu_input(self._input, image)
            binding.bind_ortvalue_output(self._output, output)
            bindings.append(binding)
        return bindings
