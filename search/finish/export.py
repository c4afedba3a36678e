"""Export: the policy, the native artefact and ONNX, each run back and compared with what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trimtab.evaluators.accuracy import judging_session
from trimtab.evaluators.engines import EXPORTED, make_engine
from trimtab.evaluators.engines.base import FileEngine
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.comparison import Verdict
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency, Link
from trimtab.evaluators.targets import taken
from trimtab.files import write_text
from trimtab.graph import Array
from trimtab.search.finish.run_link import PATIENCE
from trimtab.search.setup.problem import Problem
from trimtab.spaces.candidate import Candidate

__all__ = ["IN_WORDS", "ExportCheck", "export_candidate"]

#: Images on which an export is compared with the candidate that was measured.
PARITY_IMAGES = 1000

#: Outputs that are no classes agree within this share of their standard deviation.
NEAR = 0.01

#: On engines that no budget is meant for, measuring takes this share of the time.
ELSEWHERE = 0.2

#: How a verdict is said.
IN_WORDS: Mapping[Verdict, str] = {
    "within": "within the latency budget",
    "over": "over the latency budget",
    "open": "too near to the latency budget to tell",
}


@dataclass(frozen=True)
class ExportCheck:
    """One export, run back: its file, its bytes, how it agrees with the candidate on the selection images, its latency.

    `accuracy` is the metric; `agreement` is the share of images (of their places, where every one has a class) with the
    same class, or of values that differ by less than NEAR times their standard deviation where outputs are no classes;
    `largest_difference` is of outputs; `latency` is relative to
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
            f"{self.engine}: {self.path} ({self.file_bytes / 1024:.1f} KiB), the same on {self.agreement:.2%} of "
            f"images, largest difference of an output {self.largest_difference:.3g}, accuracy {self.accuracy:.2%}, "
            f"{self.latency.seconds * 1e3:.4f} ms = {self.latency.ratio:.4f}x fp32 "
            f"[{self.latency.low:.4f}, {self.latency.high:.4f}]"
            + ("" if self.verdict is None else f", {IN_WORDS[self.verdict]}")
        )


def export_candidate(
    problem: Problem, candidate: Candidate, folder: Path, link: Link, limit: Interval | None
) -> list[ExportCheck]:
    """Write `policy.json`, and the network in every form that engines run, into a folder, run all back, and compare.

    `link` and `limit` are those of the run's engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = lower(candidate)
    write_text(folder / "policy.json", json.dumps(candidate.policy.to_json(), indent=1) + "\n")
    judge, part = problem.judge, slice(PARITY_IMAGES)
    images, wanted = judge.images[part], taken(judge.wanted(judge.images, judge.targets), part)
    measured = problem.config.measuring
    expected = judging_session(candidate).run(images)
    checks = []
    for name, engine in _file_engines(problem).items():
        path = folder / f"model{engine.suffix}"
        engine.save(graph, path, candidate.ranges)
        bench = LatencyBench(engine, problem.space, images, measured.precision)
        opened = partial(engine.open, path)
        found = opened().run(images)
        budgeted = name == problem.config.engine.name
        seconds = measured.final_seconds * (1 if budgeted else ELSEWHERE)
        tied = link if budgeted else bench.tie(link.yardstick, seconds)
        decides = budgeted and limit is not None
        latency = bench.measure(opened, tied, seconds * (PATIENCE if decides else 1), limit if budgeted else None)
        checks.append(
            ExportCheck(
                name,
                str(path),
                path.stat().st_size,
                judge.metric.value(found, wanted),
                _agreement(found, expected, bool(judge.metric.classes)),
                float(np.abs(found - expected).max()),
                latency,
                latency.verdict(limit) if budgeted and limit is not None else None,
                bench.took,
            )
        )
    return checks


def _agreement(found: Array, expected: Array, classes: bool) -> float:
    """The share of outputs (N, ...) that say the same as those expected."""
    if classes:
        return float((found.argmax(1) == expected.argmax(1)).mean())
    return float((np.abs(found - expected) <= NEAR * expected.std()).mean())


def _file_engines(problem: Problem) -> dict[str, FileEngine]:
    """The engines that files are written for: the run's own, where it runs files, and one for every other form."""
    engines: dict[str, FileEngine] = {}
    for name in (problem.config.engine.name, *EXPORTED):
        engine = make_engine(name, problem.config.engine.threads)
        if isinstance(engine, FileEngine) and engine.suffix not in {other.suffix for other in engines.values()}:
            engines[name] = engine
    return engines
