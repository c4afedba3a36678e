"""Settings: a problem under one budget, with what was measured of it before any search."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.engines import cpu_name, make_engine
from trimtab.evaluators.engines.base import Engine
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.latency import Link
from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.table import LatencyTable
from trimtab.files import file_name
from trimtab.search.progress import Progress
from trimtab.search.setup.agent_factory import FIRST_PROPOSALS, fill_for, first_proposals, make_agent
from trimtab.search.setup.baseline import ROUNDS, Baseline, measure_baseline
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.kept import Kept
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.pruned_space import find_removals
from trimtab.spaces.numbers.formats import BF16
from trimtab.spaces.space import Removal

__all__ = [
    "Setting",
    "bench_of",
    "budget_name",
    "engine_of",
    "machine_of",
    "measure_setting",
    "price_first_proposals",
    "recall_setting",
]

#: Random feasible policies that are priced before the trials of a contest.
DRAWN = 200


@dataclass(frozen=True, eq=False)
class Setting:
    """A problem under one budget, without the choices that are pointless under it, and the baseline measured for it.

    `machine` is the engine and processor that it was measured with; `prices` are entries of the latency table that
    come with it.
    """

    problem: Problem
    baseline: Baseline
    machine: tuple[str, str]
    prices: Mapping[str, float]

    @property
    def budget(self) -> str:
        """The budget as text, which names the setting."""
        return budget_name(self.problem)

    @property
    def folder(self) -> str:
        """The budget as part of a file's name."""
        return file_name(self.budget)

    @property
    def elsewhere(self) -> str:
        """The machine that it was measured with, where that is another one than this; else empty."""
        here = machine_of(engine_of(self.problem))
        return "" if here == self.machine else " on ".join(self.machine)

    def shipped(self) -> Setting:
        """Return what a worker needs: without the images that no search may see."""
        problem = self.problem
        return replace(self, problem=replace(problem, splits=replace(problem.splits, train=_absent, final=_absent)))

    def to_json(self) -> dict[str, Any]:
        """Return what `recall_setting` takes."""
        removed = [asdict(removal) for removal in self.problem.space.removed]
        return {
            "budget": self.budget,
            "machine": list(self.machine),
            "removed": removed,
            "baseline": self.baseline.to_json(),
        }

    def limits(self, table: LatencyTable) -> BudgetLimits:
        """Return the limits, the same in every process."""
        table.adopt(self.prices)
        model = CostModel(self.problem.space, table, self.baseline.fit)
        return BudgetLimits(model, self.baseline.limits, self.baseline.margin, self.problem.config.seed)


def measure_setting(
    problem: Problem,
    agents: Sequence[str],
    table: LatencyTable,
    bench: LatencyBench,
    progress: Progress,
    link: Link | None = None,
    rounds: int = ROUNDS,
) -> Setting:
    """Measure the baseline under a problem's budgets, for a search by some agents.

    Their first proposals are measured with it, in so many `rounds`. `link` is that of another setting. A space that the
    engine cannot run is a `BadInput`, a budget that cannot be met an `InfeasibleBudget` with the smallest reachable
    value.
    """
    _check_offered(problem, table.engine)
    _check_kept(problem)
    problem = problem.without(find_removals(problem, table, progress))
    propose, model = first_proposals(problem, agents, progress), CostModel(problem.space, table)
    baseline, _ = measure_baseline(problem, bench, model, progress, propose, link, rounds)
    return Setting(problem, baseline, machine_of(table.engine), {})


def recall_setting(problem: Problem, data: Mapping[str, Any]) -> Setting:
    """Return the setting that `Setting.to_json` wrote, of the same problem under the same budgets."""
    pruned = problem.without(Removal(**removal) for removal in data["removed"])
    engine, cpu = data["machine"]
    return Setting(pruned, Baseline.from_json(data["baseline"]), (engine, cpu), {})


def budget_name(problem: Problem) -> str:
    """Return a problem's budgets as text, and what is minimised under them."""
    config = problem.config
    asked = [f"{key} {value}" for key, value in config.budgets.items()]
    if config.keep is not None:
        asked.insert(
            0,
            f"least {config.minimise} that keeps the accuracy to {config.keep.accuracy:g} points by "
            f"{100 * config.keep.confidence:.4g} %",
        )
    return ", ".join(asked)


def engine_of(problem: Problem) -> Engine:
    """Return the engine that a problem's budgets are meant for; more threads than there are cores are a `BadInput`."""
    engine, cores = problem.config.engine, len(os.sched_getaffinity(0))
    if engine.threads > cores:
        raise BadInput(f"engine.threads: {engine.threads} threads would share {cores} cores: take {cores} at most")
    return make_engine(engine.name, engine.threads)


def bench_of(problem: Problem) -> LatencyBench:
    """Return what measures a problem's networks end to end."""
    return LatencyBench(engine_of(problem), problem.space, problem.judge.images, problem.config.measure.precision)


def machine_of(engine: Engine) -> tuple[str, str]:
    """Return what a measurement belongs to: the engine, and this machine's processor."""
    return engine.signature, cpu_name()


def price_first_proposals(setting: Setting, agents: Sequence[str], progress: Progress) -> Setting:
    """Put into the latency table what is likely to be asked, while nothing else runs.

    Every agent proposes its first policies, and random ones are priced, so that trials that run beside each other
    hardly ever measure.
    """
    fill_for(setting.problem, agents, progress)
    table = LatencyTable(engine_of(setting.problem), setting.problem.space)
    limits = setting.limits(table)
    with progress.bar("latency table") as bar:
        table.filled = bar.update
        for name in dict.fromkeys((*agents, "random")):
            for policy in make_agent(setting.problem, name, limits).ask(DRAWN if name == "random" else FIRST_PROPOSALS):
                limits.model.cost(policy)
    return replace(setting, prices=table.entries)


def _check_offered(problem: Problem, engine: Engine) -> None:
    """Refuse a space with arithmetic that the engine could only imitate, never in less time than float32 takes."""
    if BF16 in problem.config.space.bits and not engine.has_bf16:
        raise BadInput(
            f"space.bits: {engine.signature} has no bf16 arithmetic for {BF16.to_list()}: leave it out, or take "
            "[16, 32], which stores weights in bf16 and computes in float32"
        )


def _check_kept(problem: Problem) -> None:
    """Refuse to keep, on so few images, what they cannot show even of networks that are right on the same ones."""
    if problem.config.keep is not None:
        Kept.asked(problem.config.keep, Answers(len(problem.judge.images), 0)).check()


def _absent() -> NoReturn:
    raise TrimtabError("a worker has no images but those of the judge")
