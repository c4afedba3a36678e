"""The proxy's ranking of candidates, held to what they are worth after a short training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from trimtab.evaluators.accuracy import Judge
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.intervals import Interval
from trimtab.search.bench.feasible import random_feasible
from trimtab.search.bench.rows import named
from trimtab.search.progress import ConsoleProgress, Progress
from trimtab.search.setup.config import Config
from trimtab.search.setup.problem import load_problem, with_database
from trimtab.search.setup.processes import in_processes
from trimtab.search.training.distillation import Distillation
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.trainer import train
from trimtab.search.training.training import Lessons
from trimtab.spaces.policy import Policy
from trimtab.spaces.repairs.repair import Calibration, Repairs
from trimtab.threads import torch_threads

__all__ = ["bench_proxy", "rank_correlation"]

#: Draws of the bootstrap behind an interval.
RESAMPLES = 2000

#: Name -> the repairs that a candidate gets before it is judged.
VARIANTS: Mapping[str, Repairs] = {
    "all repairs": Repairs(),
    "no reconstruction": Repairs(reconstruct=False),
    "no batch norm": Repairs(batch_norm=False),
    "no bias": Repairs(bias=False),
    "none": Repairs(reconstruct=False, batch_norm=False, bias=False),
}

#: The variant that judges what is stitched from the layer database.
LAYERS = "layers"


def bench_proxy(config: Config, policies: int, steps: int, workers: int) -> list[dict[str, Any]]:
    """Judge random feasible policies in every way, train each in so many steps, and correlate the two.

    Limits are those of the budgets, by the latency table. The accuracy after training is read on the final images,
    which chose nothing here. Rows: Spearman's correlation with its 95 % interval (bootstrap over the policies), the
    accuracies' means, and seconds of a judgement.
    """
    drawn = random_feasible(load_problem(config, Progress()), policies)
    found: dict[str, dict[str, float]] = {}
    with ConsoleProgress().bar("policies judged and tuned", len(drawn)) as bar:
        for policy, figures in in_processes(_Worker, (config, steps), drawn, workers):
            found[policy.id] = figures
            bar.update(len(found))
    rows = [found[policy.id] for policy in drawn]
    tuned = np.array([row["tuned"] for row in rows])
    return [_row(name, rows, tuned) for name in (*VARIANTS, LAYERS)]


def rank_correlation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Interval:
    """Return Spearman's correlation of two samples, in [-1, 1], with its 95 % interval by bootstrap."""
    x, y = np.asarray(a), np.asarray(b)
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(x), size=len(x)) for _ in range(RESAMPLES)]
    several = [draw for draw in draws if np.ptp(x[draw]) > 0 and np.ptp(y[draw]) > 0]
    low, high = np.percentile([spearmanr(x[draw], y[draw]).statistic for draw in several], [2.5, 97.5])
    return Interval(float(spearmanr(x, y).statistic), float(low), float(high))


def _row(name: str, rows: Sequence[Mapping[str, float]], tuned: np.ndarray) -> dict[str, Any]:
    proxy = [row[name] for row in rows]
    return {
        "repairs": name,
        "policies": len(rows),
        **named("spearman", rank_correlation(proxy, tuned.tolist())),
        "proxy_accuracy": float(np.mean(proxy)),
        "tuned_accuracy": float(tuned.mean()),
        "seconds": float(np.mean([row[f"{name} seconds"] for row in rows])),
    }


class _Worker:
    """Judges one policy in every way, and tunes it."""

    def __init__(self, config: Config, steps: int) -> None:
        problem = load_problem(config, Progress())
        space, images = problem.space, problem.splits.calibration
        quantisation = problem.judge.calibration.quantisation
        with torch_threads(1):
            self.judges: dict[str, Judge] = {
                name: replace(problem.judge, calibration=Calibration.of(space, images, repairs, quantisation))
                for name, repairs in VARIANTS.items()
            }
        self.judges[LAYERS] = with_database(problem.judge)
        self.teacher = lower(problem.judge.candidate(space.base()))
        self.lessons = Lessons(*problem.splits.train(), problem.splits.augmentation)
        self.recipe = Recipe(epochs=steps * Recipe.batch / len(self.lessons.images), seed=config.seed)
        self.normalised, (self.final, targets) = space.normalised, problem.splits.final()
        self.judge = replace(problem.judge, by="native")
        self.wanted = self.judge.wanted(self.final, targets)

    def __call__(self, policy: Policy) -> dict[str, float]:
        figures = {}
        for name, judge in self.judges.items():
            start = time.perf_counter()
            figures[name] = judge(policy).accuracy
            figures[f"{name} seconds"] = time.perf_counter() - start
        repaired = self.judges["all repairs"].candidate(policy)
        tuned = train(partial(Distillation, repaired, self.normalised, self.teacher), self.lessons, self.recipe)
        figures["tuned"] = self.judge.held_to(self.wanted, self.judge.outputs(tuned, self.final)).accuracy
        return figures
