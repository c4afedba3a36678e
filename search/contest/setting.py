"""The setting that all trials of one budget share: the space, the judge, the measured baseline and the same prices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.cost import CostModel
from trimtab.evaluators.end_to_end import LatencyBench
from trimtab.evaluators.engines import cpu_name, make_engine
from trimtab.evaluators.latency import Link
from trimtab.evaluators.table import LatencyTable
from trimtab.search.loop.journal import Journal
from trimtab.search.progress import Progress
from trimtab.search.setup.agent_factory import FIRST_PROPOSALS, fill_for, first_proposals, make_agent
from trimtab.search.setup.baseline import Baseline, measure_baseline
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.config import Config, make_config
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.pruned_space import find_removals
from trimtab.spaces.space import Removal

__all__ = ["Setting", "bench_of", "make_setting", "parse_budgets", "price_first_proposals"]

#: Random feasible policies that are priced before the trials.
DRAWN = 200


@dataclass(frozen=True, eq=False)
class Setting:
    """One budget's problem, without the choices that are pointless under it, and the baseline measured for it.

    `machine` is the engine and processor of its prices, `prices` the latency table's entries.
    """

    budget: str
    problem: Problem
    baseline: Baseline
    machine: tuple[str, str]
    prices: Mapping[str, float]

    @property
    def folder(self) -> str:
        """The budget as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.budget).strip("-")

    def shipped(self) -> Setting:
        """Return what a worker needs: without the images that no search may see."""
        problem = self.problem
        return replace(self, problem=replace(problem, splits=replace(problem.splits, train=_absent, final=_absent)))

    def to_json(self) -> dict[str, Any]:
        """Return what `make_setting` takes from a journal."""
        removed = [asdict(removal) for removal in self.problem.space.removed]
        return {"budget": self.budget, "removed": removed, "baseline": self.baseline.to_json()}

    def limits(self, table: LatencyTable) -> BudgetLimits:
        """Return the limits, the same in every process; a machine whose prices differ is a `BadInput`."""
        here = (table.engine.signature, cpu_name())
        if here != self.machine:
            raise BadInput(
                f"the latency table was measured with {' on '.join(self.machine)}, this node has {' on '.join(here)}"
            )
        table.adopt(self.prices)
        model = CostModel(self.problem.space, table, self.baseline.fit)
        return BudgetLimits(model, self.baseline.limits, self.baseline.margin, self.problem.config.seed)


def _absent() -> NoReturn:
    raise TrimtabError("a worker has no images but those of the judge")


def parse_budgets(text: str) -> list[dict[str, str]]:
    """Read "latency=0.5x int8,size=0.5x int8; size=0.3x": budgets by semicolons, their parts by commas.

    The parts are checked with the configuration; here a part without a name or a value is a `BadInput`.
    """
    found = []
    for budget in filter(None, (part.strip() for part in text.split(";"))):
        pairs = [part.partition("=") for part in budget.split(",")]
        if any(not (name.strip() and value.strip()) for name, _, value in pairs):
            raise BadInput(f"--budgets: {budget!r} is not name=value, like 'latency=0.5x int8,size=120 KiB'")
        found.append({name.strip(): value.strip() for name, _, value in pairs})
    if not found:
        raise BadInput("--budgets names none; write it like 'latency=0.5x int8; size=0.5x int8'")
    return found


def with_budgets(config: Config, budgets: Mapping[str, Any]) -> Config:
    """Return a configuration under other budgets; what is wrong with them is a `BadInput`."""
    return make_config({**config.model_dump(by_alias=True, exclude_none=True), "budgets": dict(budgets)}, "--budgets")


def make_setting(
    problem: Problem,
    budgets: Mapping[str, Any],
    agents: Sequence[str],
    table: LatencyTable,
    known: Journal | None,
    progress: Progress,
    link: Link | None = None,
) -> Setting:
    """Measure the baseline for some budgets, or take it from the journal of a contest that is gone on with.

    `link` is that of another budget's baseline.
    """
    name = ", ".join(f"{key} {value}" for key, value in budgets.items())
    problem = replace(problem, config=with_budgets(problem.config, budgets))
    machine = (table.engine.signature, cpu_name())
    for record in known.records() if known is not None else ():
        if record.kind == "baseline" and record.data["budget"] == name:
            problem = problem.without(Removal(**removal) for removal in record.data["removed"])
            return Setting(name, problem, Baseline.from_json(record.data["baseline"]), machine, {})
    progress.line(f"budget {name}")
    problem = problem.without(find_removals(problem, table, progress))
    propose = first_proposals(problem, agents, progress)
    baseline, _ = measure_baseline(problem, bench_of(problem), CostModel(problem.space, table), progress, propose, link)
    return Setting(name, problem, baseline, machine, {})


def bench_of(problem: Problem) -> LatencyBench:
    """Return what measures a problem's networks end to end."""
    engine = make_engine(problem.config.engine.name, problem.config.engine.threads)
    return LatencyBench(engine, problem.space, problem.judge.images, problem.config.measure.precision)


def price_first_proposals(setting: Setting, agents: Sequence[str], progress: Progress) -> Setting:
    """Put into the latency table what is likely to be asked, while nothing else runs.

    Every agent proposes its first policies, and random ones are priced, so that trials that run beside each other
    hardly ever measure.
    """
    fill_for(setting.problem, agents, progress)
    engine = setting.problem.config.engine
    table = LatencyTable(make_engine(engine.name, engine.threads), setting.problem.space)
    limits = setting.limits(table)
    with progress.bar("latency table") as bar:
        table.filled = bar.update
        for name in dict.fromkeys((*agents, "random")):
            for policy in make_agent(setting.problem, name, limits).ask(DRAWN if name == "random" else FIRST_PROPOSALS):
                limits.model.cost(policy)
    return replace(setting, prices=table.entries)
