"""The speed of training under a policy, beside that of the same network in fp32."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.table import LatencyTable
from trimtab.kernels.roofline import measure_roofline
from trimtab.search.progress import ConsoleProgress
from trimtab.search.setup.config import Config
from trimtab.search.setup.problem import load_problem
from trimtab.search.setup.setting import engine_of
from trimtab.search.training.distillation import Distillation
from trimtab.search.training.images import Batch
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.training import Lessons, Training
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.threads import torch_threads

__all__ = ["bench_training"]

#: Forward, and backward to inputs and to weights.
PASSES = 3

#: How far the trainings pretend to be.
HALFWAY = 0.5

#: Steps of each training in a turn, and turns that are not counted.
STEPS, UNCOUNTED = 4, 1


@torch_threads(1)
def bench_training(config: Config, policy: Policy | None, count: int) -> list[dict[str, Any]]:
    """Train the network of a policy (None: half the channels in the first format of the space), and the same one in
    fp32, in `count` turns, on one thread, the teacher included.

    Rows: images per second, how many times those in fp32, and the teacher's share of the time; the rate of the products
    that the three passes need, in GMAC/s, and its share of what registers allow.
    """
    problem = load_problem(config, ConsoleProgress())
    space, judge = problem.space, problem.judge
    rounded = space.uniform(0.5, config.space.bits[0]) if policy is None else policy
    space.check(rounded)
    policies = {"rounded": rounded, "fp32": replace(rounded, layers=dict.fromkeys(rounded.layers, LayerDecision()))}
    lessons, recipe = Lessons(*problem.splits.train(), problem.splits.augmentation), Recipe(seed=config.seed)
    teacher = lower(judge.candidate(space.int8()))
    learners = {
        name: Distillation(judge.candidate(each), space.normalised, teacher, lessons, recipe)
        for name, each in policies.items()
    }
    trainings = {name: Training(learner, lessons, recipe) for name, learner in learners.items()}
    found: dict[str, list[float]] = {name: [] for name in ("teacher", *trainings)}
    for _ in range(count + UNCOUNTED):
        batches = list(islice(trainings["fp32"].batches(), STEPS))
        found["teacher"].append(_seconds(learners["fp32"].taught, batches))
        for name, training in trainings.items():
            found[name].append(_seconds(partial(training.step, share=HALFWAY), batches))
    each = {name: np.array(seconds[UNCOUNTED:]) / (STEPS * Recipe.batch) for name, seconds in found.items()}
    model, peak = CostModel(space, LatencyTable(engine_of(problem), space)), measure_roofline().float_peak
    rows = []
    for name, of in policies.items():
        rate = PASSES * model.get(of, "macs") / float(np.median(each[name]))
        rows.append(
            {
                "training": name,
                "mmacs": model.get(of, "macs") / 1e6,
                "images_per_second": 1 / float(np.median(each[name])),
                "of_fp32": float(np.median(each["fp32"] / each[name])),
                "teacher": float(np.median(each["teacher"] / each[name])),
                "gmacs_per_second": rate / 1e9,
                "of_peak": rate / peak,
            }
        )
    return rows


def _seconds(work: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    for batch in batches:
        work(batch)
    return time.perf_counter() - start
