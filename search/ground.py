"""The ground a search stands on: the base's measured cost, the calibrated latency table, and the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimtab.errors import InfeasibleBudget
from trimtab.evaluators.bench import LatencyBench
from trimtab.evaluators.cost import Cost, CostModel, TableFit
from trimtab.search.budgets import BudgetLimits, resolve
from trimtab.search.problem import Problem
from trimtab.search.progress import Progress
from trimtab.spaces.policy import Policy

__all__ = ["Ground", "survey"]

#: The most that is taken off a latency limit for the table's error, and the share of predictions it allows for.
LARGEST_MARGIN = 0.1
MOST = 0.75

#: The same where nothing is measured during the search, so that agents settle where the table is too fast.
NEARLY_ALL, ROUNDS = 0.9, 2


@dataclass(frozen=True)
class Ground:
    """Measured once at the start of a run and kept in its journal, so that a resumed run stands on the same.

    `base` and `int8` are costs (latency measured end to end, in seconds); `noise_floor` is the largest deviation of
    A/A runs; `limits` are in seconds, bytes and MACs; `margin` is what the table's error takes off the latency limit.
    """

    base: Cost
    int8: Cost
    base_accuracy: float
    int8_accuracy: float
    noise_floor: float
    fit: TableFit
    limits: Mapping[str, float]
    margin: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ground:
        """Read what `to_json` wrote."""
        nested = {"base": Cost(**data["base"]), "int8": Cost(**data["int8"]), "fit": TableFit(**data["fit"])}
        return cls(**{**data, **nested})


def survey(
    problem: Problem,
    bench: LatencyBench,
    model: CostModel,
    progress: Progress,
    propose: Callable[[BudgetLimits], list[Policy]] | None = None,
) -> tuple[Ground, BudgetLimits]:
    """Measure the ground; a budget that cannot be met is an `InfeasibleBudget` with the smallest reachable value.

    `propose` returns what agents propose under limits: measured too, for a search that will trust the table.
    """
    surveyor = _Surveyor(problem, bench, model)
    progress.line("measuring the network as given, and its uniform int8 form")
    surveyor.measure_references()
    with progress.bar("latency table") as bar:
        model.table.filled = bar.update
        surveyor.probe(_spread(problem, problem.config.measure.probes))
        limits = surveyor.limits()
        surveyor.probe(_near(problem, limits, problem.config.measure.probes))
        limits = surveyor.limits_with_margin()
        for _ in range(ROUNDS if propose is not None and "latency" in limits.limits else 0):
            surveyor.probe(propose(limits))  # type: ignore[misc]
            limits = surveyor.limits_with_margin(NEARLY_ALL)
    return surveyor.ground(limits), limits


class _Surveyor:
    def __init__(self, problem: Problem, bench: LatencyBench, model: CostModel) -> None:
        self.problem, self.bench, self.model = problem, bench, model
        self.space = problem.space
        self.settings = problem.config.measure
        self.measured: dict[Policy, float] = {}

    def measure_references(self) -> None:
        seconds = self.settings.seconds
        self.noise = self.bench.noise_floor(seconds / 2)
        self.base_seconds = self.bench.measure(self.space.base(), seconds).reference_seconds
        self.measured[self.space.base()] = self.base_seconds
        self.seconds(self.space.int8())
        self.base, self.int8 = (self._cost(p) for p in (self.space.base(), self.space.int8()))
        self.base_accuracy = self.problem.judge(self.space.base()).accuracy
        self.int8_accuracy = self.problem.judge(self.space.int8()).accuracy
        costs = ({name: c.get(name) for name in asdict(c)} for c in (self.base, self.int8))
        self.resolved = resolve(self.problem.config.parsed_budgets, *costs)

    def seconds(self, policy: Policy) -> float:
        """End-to-end seconds: the measured ratio times the base's seconds."""
        if policy not in self.measured:
            self.measured[policy] = self.bench.measure(policy, self.settings.seconds).ratio * self.base_seconds
        return self.measured[policy]

    def probe(self, policies: list[Policy]) -> None:
        """Measure policies and fit the table to everything measured so far."""
        for policy in policies:
            self.seconds(policy)
        steps = [self.model.plan.steps(policy) for policy in self.measured]
        totals = [self.model.table.total(s) for s in steps]
        self.model.fit = TableFit.of(totals, [len(s) for s in steps], list(self.measured.values()))

    def limits(self, margin: float = 0.0) -> BudgetLimits:
        return BudgetLimits(self.model, self.resolved, margin, self.problem.config.seed, confirm=self.seconds)

    def limits_with_margin(self, most: float = MOST) -> BudgetLimits:
        """Keep as far from the latency limit as most predictions near it fell short of the measurement.

        Not as far as the worst: one bad prediction would cost every candidate, and what becomes the best is measured.
        """
        latency = self.resolved.get("latency")
        if latency is None:
            return self.limits()
        short = [
            max(seconds / self.model.get(policy, "latency"), 1.0)
            for policy, seconds in self.measured.items()
            if 0.7 * latency < seconds < 1.3 * latency
        ]
        margin = 1 - 1 / float(np.quantile(short or [1.0], most))
        try:
            return self.limits(min(margin, LARGEST_MARGIN))
        except InfeasibleBudget:
            return self.limits()  # the cheapest policies fit only just: the measurement will decide

    def ground(self, limits: BudgetLimits) -> Ground:
        return Ground(
            self.base,
            self.int8,
            self.base_accuracy,
            self.int8_accuracy,
            self.noise,
            self.model.fit,
            self.resolved,
            limits.margin,
        )

    def _cost(self, policy: Policy) -> Cost:
        cost = self.model.cost(policy)
        # What others are compared with is stored as it is, not coded.
        return Cost(self.measured[policy], self.model.size(policy), cost.macs, cost.memory)


def _spread(problem: Problem, count: int) -> list[Policy]:
    """Policies over the whole range: uniform ones and random ones."""
    space, rng = problem.space, np.random.default_rng([problem.config.seed, 1])
    uniform = [space.uniform(0.5, (8, 8)), space.uniform(0.25, (8, 8)), space.uniform(0.5, (8, 8), "svd 0.5")]
    drawn = [space.decode([int(rng.integers(len(k.choices))) for k in space.knobs]) for _ in range(count)]
    return [*uniform, *drawn][:count]


def _near(problem: Problem, limits: BudgetLimits, count: int) -> list[Policy]:
    """Feasible policies near the limits: the ones whose prediction matters."""
    space, rng = problem.space, np.random.default_rng([problem.config.seed, 2])
    drawn = [space.decode([int(rng.integers(len(k.choices))) for k in space.knobs]) for _ in range(count)]
    return [limits.project(policy) for policy in drawn]
