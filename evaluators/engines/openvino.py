"""OpenVINO's CPU kernels as an engine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.evaluators.engines.base import Images, TimeSlice
from trimtab.evaluators.engines.loop import time_runs
from trimtab.evaluators.engines.onnx_engine import OnnxEngine

__all__ = ["OpenVinoEngine", "OpenVinoSession"]

#: Images per call of `run`, which bounds the memory that its activations take.
RUN_BATCH = 64


class OpenVinoEngine(OnnxEngine):
    """Runs programs on OpenVINO, in one stream, float layers in float32 on every processor.

    On processors without VNNI its kernels for uint8 times int8 add two products in 16 bits and saturate: fast, and
    wrong where the products are large. It has no exact ones to ask for.
    """

    name = "openvino"
    reader = """
import openvino

def open_file(path):
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(path, "CPU", settings)
"""

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise BadInput(f"openvino needs at least one thread, given {threads}")
        self.threads = threads
        self._openvino = _library()
        self._core = self._openvino.Core()

    @property
    def signature(self) -> str:
        """Engine, version, threads."""
        return f"openvino {self._openvino.__version__.split('-')[0]} threads={self.threads}"

    def load(self, model: bytes, batch: int = 1) -> OpenVinoSession:
        """Compile the content of an ONNX file; see `open`."""
        return OpenVinoSession(self._openvino, self._core, model, batch, self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            # On AMX machines bfloat16 is its default.
            "INFERENCE_PRECISION_HINT": "f32",
            # Its threads inherit the cores of the thread that compiles; pinned, they would take the first cores.
            "ENABLE_CPU_PINNING": False,
        }


def _library() -> Any:
    try:
        return import_module("openvino")
    except ImportError as error:
        raise BadInput("the engine openvino needs its package: pip install 'trimtab[openvino]'") from error


class OpenVinoSession:
    """A model as an `EngineSession`, compiled for the batch that it is timed with; `run` compiles others on demand."""

    def __init__(self, library: Any, core: Any, model: bytes, batch: int, settings: dict[str, Any]) -> None:
        self._tensor = library.Tensor
        self._core, self._settings = core, settings
        self._model = core.read_model(model, b"")
        self._requests: dict[int, Any] = {}
        self.batch = batch
        self._request(batch)

    def _request(self, batch: int) -> Any:
        # A fixed shape lets it choose kernels and memory for exactly that; a dynamic one is slower.
        if batch not in self._requests:
            model = self._model.clone()
            model.reshape([batch, *[axis.get_length() for axis in list(model.input().partial_shape)[1:]]])
            self._requests[batch] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        return self._requests[batch]

    def run(self, x: Images) -> Images:
        """Return the output (N, ...) for (N, C, H, W)."""
        step = max(self.batch, min(RUN_BATCH, len(x)))
        return np.concatenate([self._run(x[start : start + step]) for start in range(0, len(x), step)])

    def _run(self, x: Images) -> Images:
        request = self._request(len(x))
        request.infer(self._tensor(np.array(x, order="C")))
        result: Images = np.array(request.get_output_tensor().data)
        return result

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        """Time runs on inputs (R, batch, C, H, W), whose memory is read in place."""
        images = np.ascontiguousarray(inputs)
        infer = self._request(images.shape[1]).infer
        tensors = [self._tensor(image, shared_memory=True) for image in images]
        return time_runs(lambda tensor: infer(tensor, share_inputs=True, share_outputs=True), tensors, seconds)
