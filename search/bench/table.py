"""The latency table from nothing: how long filling it takes, and how far its sums are from networks end to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.agents.additive import AdditiveModel
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.price.cost import CostModel, TableFit
from trimtab.evaluators.price.table import LatencyTable
from trimtab.search.progress import ConsoleProgress, Progress
from trimtab.search.setup.baseline import PROBE_BLOCKS, PROBE_PRECISION
from trimtab.search.setup.config import Config
from trimtab.search.setup.link import find_yardstick
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.search.setup.pruned_space import find_removals
from trimtab.spaces.policy import Policy

__all__ = ["bench_table"]

#: Networks that the table is fitted to, beside those that it is held to.
FITTED = 8

#: Seconds of the link, which only turns multiples of the yardstick into seconds, and at most of every network.
LINK_SECONDS, SECONDS = 3.0, 4.0


def bench_table(config: Config, policies: int) -> list[dict[str, Any]]:
    """Fill a fresh latency table with all that `milp` asks of it, and hold it to random policies end to end.

    One row: `entries`, `measuring_seconds` and `seconds` (measuring and all else) to fill the table, and `median_error`
    and `largest_error` of what it predicts for `policies` networks, after a fit to eight others, as shares of what was
    measured.
    """
    problem, progress = load_problem(config, ConsoleProgress()), Progress()
    engine = make_engine(config.engine.name, config.engine.threads)
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable(engine, problem.space, Path(folder))
        start = time.perf_counter()
        problem = problem.without(find_removals(problem, table, progress))
        model = CostModel(problem.space, table)
        AdditiveModel(problem.space, _Prices(model), _NoErrors(problem))
        took = time.perf_counter() - start
        filled = {"entries": len(table), "measuring_seconds": table.took, "seconds": took}
        errors = _errors(problem, model, policies)
    return [
        {
            "network": config.network.zoo or config.network.torchvision or config.network.import_,
            "engine": engine.signature,
            **filled,
            "networks": policies,
            "median_error": float(np.median(errors)),
            "largest_error": float(np.max(errors)),
        }
    ]


def _errors(problem: Problem, model: CostModel, policies: int) -> list[float]:
    """Return |predicted / measured - 1| of random policies."""
    space, config = problem.space, problem.config
    bench = LatencyBench(model.table.engine, space, problem.judge.images, config.measure.precision)
    link = bench.tie(find_yardstick(bench, config.parsed_budgets, LINK_SECONDS), LINK_SECONDS)
    rng = np.random.default_rng(config.seed)
    drawn = [
        space.decode([int(rng.integers(len(knob.choices))) for knob in space.knobs]) for _ in range(FITTED + policies)
    ]
    latencies = [bench.measure(p, link, SECONDS, precision=PROBE_PRECISION, least=PROBE_BLOCKS) for p in drawn]
    measured = [link.yardstick_seconds.middle * latency.to_yardstick.middle for latency in latencies]
    totals, steps = zip(*map(model.total, drawn), strict=True)
    fit = TableFit.of(totals[:FITTED], steps[:FITTED], measured[:FITTED])
    predicted = [fit(total, count) for total, count in zip(totals, steps, strict=True)]
    return [abs(p / m - 1) for p, m in zip(predicted[FITTED:], measured[FITTED:], strict=True)]


class _Prices:
    """Limits that only tell what layers cost."""

    def __init__(self, model: CostModel) -> None:
        self.model = model

    def feasible(self, policy: Policy) -> bool:
        return True

    def project(self, policy: Policy) -> Policy:
        return policy

    def violations(self, policy: Policy) -> Mapping[str, float]:
        return {}

    def shares(self, policy: Policy) -> Mapping[str, Mapping[str, float]]:
        return {"latency": self.model.by_layer(policy, "latency")}


class _NoErrors:
    """Estimates of a network that nothing harms."""

    def __init__(self, problem: Problem) -> None:
        self.errors_of = {op.name: 0.0 for op in problem.space.network.layers}

    def errors(self, policy: Policy) -> Mapping[str, float]:
        return self.errors_of
