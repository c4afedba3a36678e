"""The baseline a search stands on: the base's measured cost, the calibrated latency table, and the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.evaluators.answers import Graded
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Link
from trimtab.evaluators.price.cost import Cost, CostModel, TableFit
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import BudgetLimits, resolve
from trimtab.search.setup.kept import Kept
from trimtab.search.setup.link import latency_limit, tie
from trimtab.search.setup.problem import Problem
from trimtab.spaces.policy import Policy

__all__ = ["Baseline", "measure_baseline"]

#: Half the interval of a network that the table is fitted to, as a share of its latency, and its blocks at least.
PROBE_PRECISION, PROBE_BLOCKS = 0.02, 8

#: The most that is taken off a latency limit for the table's error, and the share of predictions it allows for.
LARGEST_MARGIN = 0.1
MOST = 0.75

#: The same where nothing is measured during the search, so that agents settle where the table is too fast.
NEARLY_ALL, ROUNDS = 0.9, 2


@dataclass(frozen=True)
class Baseline:
    """Measured once at the start of a run and kept in its journal, so that a resumed run stands on the same.

    `base` and `int8` are costs (latency measured end to end, in seconds); `link` ties the yardstick of every
    measurement to both; `noise_floor` is the largest deviation of A/A runs; `limits` are in seconds, bytes
    and MACs, `limit` is the latency's in multiples of the yardstick (None without one); `base_answers` and
    `int8_answers` are what the metric finds of both; `margin` is what the errors of
    the table, of the link and of the measurement that decides take off the latency limit. `minimise` is the cost that
    is minimised, and `kept` the accuracy that is kept then; None where the accuracy is what counts.
    """

    base: Cost
    int8: Cost
    base_answers: Graded
    int8_answers: Graded
    link: Link
    noise_floor: float
    fit: TableFit
    limits: Mapping[str, float]
    limit: Interval | None
    margin: float
    minimise: str | None = None
    kept: Kept | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        parts = {name: asdict(getattr(self, name)) for name in ("base", "int8", "fit")}
        parts |= {name: getattr(self, name).to_json() for name in ("base_answers", "int8_answers")}
        kept = None if self.kept is None else self.kept.to_json()
        return {**vars(self), **parts, "link": self.link.to_json(), "kept": kept}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Baseline:
        """Read what `to_json` wrote; that of an older version is a `BadInput`."""
        if "base_answers" not in data:
            raise BadInput("this journal is of an older trimtab, which kept less of the network as given: start again")
        nested = {
            "base_answers": Graded.from_json(data["base_answers"]),
            "int8_answers": Graded.from_json(data["int8_answers"]),
            "base": Cost(**data["base"]),
            "int8": Cost(**data["int8"]),
            "link": Link.from_json(data["link"]),
            "fit": TableFit(**data["fit"]),
            "limit": None if data["limit"] is None else Interval(*data["limit"]),
            "kept": None if data.get("kept") is None else Kept.from_json(data["kept"]),
        }
        return cls(**{**data, **nested})


def measure_baseline(
    problem: Problem,
    bench: LatencyBench,
    model: CostModel,
    progress: Progress,
    propose: Callable[[BudgetLimits], list[Policy]] | None = None,
    link: Link | None = None,
    rounds: int = ROUNDS,
) -> tuple[Baseline, BudgetLimits]:
    """Measure the baseline; a budget that cannot be met is an `InfeasibleBudget` with the smallest reachable value.

    `propose` returns what agents propose under limits: measured too, so many `rounds`, for a search that will trust the
    table. `link` is one that was measured already.
    """
    measurement = _Measurement(problem, bench, model, link or tie(bench, problem.config, progress))
    measurement.measure_references()
    with progress.bar("latency table") as bar:
        model.table.filled = bar.update
        measurement.probe(_spread(problem, problem.config.measuring.probes))
        limits = measurement.limits()
        measurement.probe(_near(problem, limits, problem.config.measuring.probes))
        limits = measurement.limits_with_margin()
        for _ in range(rounds if propose is not None and "latency" in limits.limits else 0):
            measurement.probe(propose(limits))  # type: ignore[misc]
            limits = measurement.limits_with_margin(NEARLY_ALL)
    return measurement.baseline(limits), limits


class _Measurement:
    def __init__(self, problem: Problem, bench: LatencyBench, model: CostModel, link: Link) -> None:
        self.problem, self.bench, self.model, self.link = problem, bench, model, link
        self.space = problem.space
        self.settings = problem.config.measuring
        self.measured: dict[Policy, float] = {}

    def measure_references(self) -> None:
        self.noise = self.bench.noise_floor(self.link, self.settings.link_seconds / 2)
        self.base_seconds = self.link.base_seconds
        self.measured[self.link.yardstick] = self.link.yardstick_seconds.middle
        self.base = self._cost(self.space.base(), self.base_seconds)
        self.int8 = self._cost(self.space.int8(), self.base_seconds * self.link.int8.middle)
        given, keep = self.problem.judge(self.space.base()).answers, self.problem.config.keep
        self.base_answers, self.kept = given, None if keep is None else Kept.asked(keep, given)
        self.int8_answers = self.problem.judge(self.space.int8()).answers
        costs = ({name: c.get(name) for name in asdict(c)} for c in (self.base, self.int8))
        self.resolved = resolve(self.problem.config.parsed_budgets, *costs)
        self.limit = latency_limit(self.problem.config.parsed_budgets, self.link)

    def seconds(self, policy: Policy) -> float:
        """End-to-end seconds: the measured ratio times the base's seconds."""
        if policy not in self.measured:
            seconds = self.settings.seconds
            latency = self.bench.measure(policy, self.link, seconds, precision=PROBE_PRECISION, least=PROBE_BLOCKS)
            self.measured[policy] = latency.ratio * self.base_seconds
        return self.measured[policy]

    def probe(self, policies: list[Policy]) -> None:
        """Measure policies and fit the table to everything measured so far.

        Not to the network as given: it is no candidate, and its time depends on what else uses the machine.
        """
        for policy in policies:
            self.seconds(policy)
        totals, steps = zip(*(self.model.total(policy) for policy in self.measured), strict=True)
        self.model.fit = TableFit.of(totals, steps, list(self.measured.values()))

    def limits(self, margin: float = 0.0) -> BudgetLimits:
        """Return the limits less a margin for the table's error, the link's, and that of the decisive measurement."""
        kept = 1.0
        if self.limit is not None:
            kept = (1 - margin) * (1 - self.settings.precision) * self.limit.low / self.limit.middle
        return BudgetLimits(self.model, self.resolved, 1 - kept, self.problem.config.seed, confirm=self.seconds)

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

    def baseline(self, limits: BudgetLimits) -> Baseline:
        return Baseline(
            self.base,
            self.int8,
            self.base_answers,
            self.int8_answers,
            self.link,
            self.noise,
            self.model.fit,
            self.resolved,
            self.limit,
            limits.margin,
            self.problem.config.minimise,
            self.kept,
        )

    def _cost(self, policy: Policy, seconds: float) -> Cost:
        # What others are compared with is stored as it is, not coded.
        return Cost(seconds, self.model.size(policy), self.model.macs(policy), self.model.memory(policy))


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
