"""Export: the policy, the native artefact and ONNX, each run back and compared with what was measured."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab import kernels
from trimtab.evaluators.accuracy import accuracy_of, judging_session
from trimtab.evaluators.bench import LatencyBench
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.base import EngineSession
from trimtab.evaluators.engines.native import NativeSession
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.onnx_model import save_onnx, to_onnx
from trimtab.evaluators.timing import Latency, measure, timing_slot
from trimtab.search.problem import Problem
from trimtab.spaces.candidate import Candidate

__all__ = ["ExportCheck", "export_candidate", "write_text"]

#: Images on which an export is compared with the candidate that was measured.
PARITY_IMAGES = 1000


@dataclass(frozen=True)
class ExportCheck:
    """One export, run back: its file, its bytes, how it agrees with the candidate on the selection images, its latency.

    `agreement` is the share of images with the same class, `largest_difference` is of logits; `latency` is relative to
    the fp32 base on the same engine.
    """

    engine: str
    path: str
    file_bytes: int
    accuracy: float
    agreement: float
    largest_difference: float
    latency: Latency

    def line(self) -> str:
        """Say it in a line."""
        return (
            f"{self.engine}: {self.path} ({self.file_bytes / 1024:.1f} KiB), same class on {self.agreement:.2%} of "
            f"images, largest logit difference {self.largest_difference:.3g}, accuracy {self.accuracy:.2%}, "
            f"{self.latency.seconds * 1e3:.4f} ms = {self.latency.ratio:.4f}x fp32 "
            f"[{self.latency.low:.4f}, {self.latency.high:.4f}]"
        )


def export_candidate(problem: Problem, candidate: Candidate, folder: Path) -> list[ExportCheck]:
    """Write `policy.json`, `model.safetensors` and `model.onnx` into a folder, run both models back, and compare."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = lower(candidate)
    write_text(folder / "policy.json", json.dumps(candidate.policy.to_json(), indent=1) + "\n")
    native, onnx = folder / "model.safetensors", folder / "model.onnx"
    kernels.save(graph, native)
    save_onnx(to_onnx(graph, ranges=candidate.ranges), onnx)

    images, labels = problem.judge.images[:PARITY_IMAGES], problem.judge.labels[:PARITY_IMAGES]
    threads = problem.config.engine.threads
    expected = judging_session(candidate).run(images)
    checks = []
    for name, path in (("native", native), ("onnxruntime", onnx)):
        bench = LatencyBench(make_engine(name, threads), problem.space, images)
        session = _load(name, path, threads)
        found = session.run(images)
        with timing_slot(threads):
            latency = measure(session, bench.reference, bench.inputs, seconds=problem.config.measure.final_seconds / 2)
        checks.append(
            ExportCheck(
                name,
                str(path),
                path.stat().st_size,
                accuracy_of(session, images, labels),
                float((found.argmax(1) == expected.argmax(1)).mean()),
                float(np.abs(found - expected).max()),
                latency,
            )
        )
    return checks


def _load(engine: str, path: Path, threads: int) -> EngineSession:
    """Open an exported file as anybody would who has nothing but the file."""
    if engine == "native":
        return NativeSession(kernels.load(path, threads=threads))
    from trimtab.evaluators.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads).open(path)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)
