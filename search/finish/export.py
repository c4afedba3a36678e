"""Export: the policy, the native artefact and ONNX, each run back and compared with what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trimtab import kernels
from trimtab.evaluators.accuracy import accuracy_of, judging_session
from trimtab.evaluators.comparison import Verdict
from trimtab.evaluators.end_to_end import LatencyBench
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.base import EngineSession
from trimtab.evaluators.engines.native import NativeSession
from trimtab.evaluators.intervals import Interval
from trimtab.evaluators.latency import Latency, Link
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.onnx_model import save_onnx, to_onnx
from trimtab.files import write_text
from trimtab.search.setup.problem import Problem
from trimtab.spaces.candidate import Candidate

__all__ = ["IN_WORDS", "ExportCheck", "export_candidate"]

#: Images on which an export is compared with the candidate that was measured.
PARITY_IMAGES = 1000

#: How a verdict is said.
IN_WORDS: Mapping[Verdict, str] = {
    "within": "within the latency budget",
    "over": "over the latency budget",
    "open": "too near to the latency budget to tell",
}


@dataclass(frozen=True)
class ExportCheck:
    """One export, run back: its file, its bytes, how it agrees with the candidate on the selection images, its latency.

    `agreement` is the share of images with the same class, `largest_difference` is of logits; `latency` is relative to
    the fp32 base on the same engine. `verdict` says of the file for the engine that the budgets are meant for on which
    side of the latency budget it was measured; it is None for other files, and without such a budget. `measuring` is
    the seconds that measuring took, the base on the same engine included.
    """

    engine: str
    path: str
    file_bytes: int
    accuracy: float
    agreement: float
    largest_difference: float
    latency: Latency
    verdict: Verdict | None
    measuring: float

    def line(self) -> str:
        """Say it in a line."""
        return (
            f"{self.engine}: {self.path} ({self.file_bytes / 1024:.1f} KiB), same class on {self.agreement:.2%} of "
            f"images, largest logit difference {self.largest_difference:.3g}, accuracy {self.accuracy:.2%}, "
            f"{self.latency.seconds * 1e3:.4f} ms = {self.latency.ratio:.4f}x fp32 "
            f"[{self.latency.low:.4f}, {self.latency.high:.4f}]"
            + ("" if self.verdict is None else f", {IN_WORDS[self.verdict]}")
        )


def export_candidate(
    problem: Problem, candidate: Candidate, folder: Path, link: Link, limit: Interval | None
) -> list[ExportCheck]:
    """Write `policy.json`, `model.safetensors` and `model.onnx` into a folder, run both models back, and compare.

    `link` and `limit` are those of the run's engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = lower(candidate)
    write_text(folder / "policy.json", json.dumps(candidate.policy.to_json(), indent=1) + "\n")
    native, onnx = folder / "model.safetensors", folder / "model.onnx"
    kernels.save(graph, native)
    save_onnx(to_onnx(graph, ranges=candidate.ranges), onnx)

    images, labels = problem.judge.images[:PARITY_IMAGES], problem.judge.labels[:PARITY_IMAGES]
    engine, measured = problem.config.engine, problem.config.measure
    expected = judging_session(candidate).run(images)
    checks = []
    for name, path in (("native", native), ("onnxruntime", onnx)):
        bench = LatencyBench(make_engine(name, engine.threads), problem.space, images, measured.precision)
        opened = partial(_load, name, path, engine.threads)
        session = opened()
        found = session.run(images)
        budgeted = name == engine.name
        seconds = measured.final_seconds if budgeted else measured.final_seconds / 3
        tied = link if budgeted else bench.tie(link.yardstick, seconds)
        latency = bench.measure(opened, tied, seconds, limit if budgeted else None)
        checks.append(
            ExportCheck(
                name,
                str(path),
                path.stat().st_size,
                accuracy_of(session, images, labels),
                float((found.argmax(1) == expected.argmax(1)).mean()),
                float(np.abs(found - expected).max()),
                latency,
                latency.verdict(limit) if budgeted and limit is not None else None,
                bench.took,
            )
        )
    return checks


def _load(engine: str, path: Path, threads: int) -> EngineSession:
    """Open an exported file as anybody would who has nothing but the file."""
    if engine == "native":
        return NativeSession(kernels.load(path, threads=threads))
    from trimtab.evaluators.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads).open(path)
