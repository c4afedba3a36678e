"""The speed of judging candidates, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.search.bench.feasible import random_feasible
from trimtab.search.progress import ConsoleProgress
from trimtab.search.setup.config import Config
from trimtab.search.setup.fill import fill_database
from trimtab.search.setup.problem import load_problem

__all__ = ["bench_judge"]

#: The row that holds the sum of all parts.
ALL = "evaluation"


def bench_judge(config: Config, policies: int, workers: int) -> list[dict[str, Any]]:
    """Judge random feasible policies on one thread, with the layer database filled where the proxy is made of it.

    Rows: seconds of each part of an evaluation, mean, median and 95th percentile over the policies; the last one is
    the whole evaluation, with evaluations per second as they were, and for every second of processor time: as many
    there would be on a core with nothing else to do.
    """
    progress = ConsoleProgress()
    problem = load_problem(config, progress)
    if problem.judge.database is not None:
        fill_database(problem, workers, progress)
    drawn = random_feasible(problem, policies)
    problem.judge(drawn[0])  # reads what every evaluation shares
    with progress.bar("policies judged", len(drawn)) as bar:
        seconds, start = [], time.process_time()
        for policy in drawn:
            seconds.append(problem.judge(policy).seconds)
            bar.update(len(seconds))
    processor = (time.process_time() - start) / len(drawn)
    parts = {part: [each[part] for each in seconds] for part in seconds[0]}
    whole = np.sum(list(parts.values()), axis=0)
    rows = [_row(part, found, float(whole.mean())) for part, found in parts.items()]
    last = _row(ALL, whole.tolist(), float(whole.mean()))
    counts = {"policies": len(drawn), "images": len(problem.judge.images)}
    rates = {"per_second": 1 / float(whole.mean()), "per_core_second": 1 / processor}
    return [*rows, {**last, **counts, **rates}]


def _row(part: str, seconds: Sequence[float], whole: float) -> dict[str, Any]:
    mean, (median, high) = float(np.mean(seconds)), np.percentile(seconds, [50, 95])
    row = {"part": part, "seconds": mean, "p50": float(median), "p95": float(high), "share": mean / whole}
    return {**row, "policies": None, "images": None, "per_second": None, "per_core_second": None}
