"""onnxruntime's CPU kernels as an engine."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from trimtab.errors import BadInput
from trimtab.evaluators.engines.base import Images, TimeSlice
from trimtab.evaluators.engines.loop import time_runs
from trimtab.evaluators.engines.onnx_engine import OnnxEngine

__all__ = ["OnnxRuntimeEngine", "OnnxRuntimeSession"]

#: Images per call of `run`, which bounds the memory that its activations take.
RUN_BATCH = 64


class OnnxRuntimeEngine(OnnxEngine):
    """Runs programs on onnxruntime.

    On processors with AVX2 or AVX-512 but without VNNI, onnxruntime's default kernels for uint8 times int8 add two
    products in 16 bits and saturate: fast, and wrong. With `exact` its slower kernels are taken there, which give what
    the program says; on other processors it changes nothing.
    """

    reader = """
import onnxruntime

def open_file(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})
"""

    def __init__(self, threads: int = 1, exact: bool = True) -> None:
        if threads < 1:
            raise BadInput(f"onnxruntime needs at least one thread, given {threads}")
        self.name = "onnxruntime" if exact else "onnxruntime-saturating"
        self.threads = threads
        self.exact = exact

    @property
    def signature(self) -> str:
        """Engine, version, threads."""
        return f"{self.name} {ort.__version__} threads={self.threads}"

    def load(self, model: bytes, batch: int = 1) -> OnnxRuntimeSession:
        """Open the content of an ONNX file; see `open`."""
        session = ort.InferenceSession(model, self._options(), providers=["CPUExecutionProvider"])
        return OnnxRuntimeSession(session, batch)

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
        self._results: dict[int, ort.OrtValue] = {}

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
        return time_runs(self.session.run_with_iobinding, self._bindings(np.ascontiguousarray(inputs)), seconds)

    def _bindings(self, images: Images) -> list[ort.IOBinding]:
        batch = images.shape[1]
        if batch not in self._results:
            self._results[batch] = ort.OrtValue.ortvalue_from_numpy(self._run(images[0]))
        bindings = []
        for image in images:
            binding = self.session.io_binding()
            binding.bind_cpu_input(self._input, image)
            binding.bind_ortvalue_output(self._output, self._results[batch])
            bindings.append(binding)
        return bindings
