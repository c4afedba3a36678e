"""The link that a run measured, for what is measured after it on the same machine."""

from __future__ import annotations

from pathlib import Path

from trimtab.evaluators.engines.base import Engine
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Link
from trimtab.search.loop.journal import read_journal
from trimtab.search.progress import Progress
from trimtab.search.setup.link import latency_limit, tie
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import machine_of

__all__ = ["PATIENCE", "measured_link"]

#: What is too near to its budget to tell is measured up to so many times as long as others.
PATIENCE = 4


def measured_link(
    problem: Problem, bench: LatencyBench, folder: Path | None, progress: Progress
) -> tuple[Link, Interval | None]:
    """Return the link that the experiment in a folder measured, or one that is measured now where there is none of this
    engine and processor; and the latency budget in multiples of the yardstick."""
    link = None if folder is None else _recorded(folder, bench.engine)
    if link is None:
        link = tie(bench, problem.config, progress)
    return link, latency_limit(problem.config.parsed_budgets, link)


def _recorded(folder: Path, engine: Engine) -> Link | None:
    if not (folder / "journal").is_file():
        return None
    for record in read_journal(folder / "journal"):
        if record.kind == "setting" and tuple(record.data["machine"]) == machine_of(engine):
            return Link.from_json(record.data["baseline"]["link"])
    return None
