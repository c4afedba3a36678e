"""The link that a run measured, for what is measured after it on the same machine."""

from __future__ import annotations

from pathlib import Path

from trimtab.evaluators.end_to_end import LatencyBench
from trimtab.evaluators.engines import cpu_name, make_engine
from trimtab.evaluators.engines.base import Engine
from trimtab.evaluators.intervals import Interval
from trimtab.evaluators.latency import Link
from trimtab.search.loop.journal import read_journal
from trimtab.search.progress import Progress
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.link import latency_limit, tie
from trimtab.search.setup.problem import Problem

__all__ = ["measured_link"]


def measured_link(problem: Problem, folder: Path | None, progress: Progress) -> tuple[Link, Interval | None]:
    """Return the link that the run in a folder measured, or one that is measured now where there is none of this engine
    and processor; and the latency budget in multiples of the yardstick."""
    config = problem.config
    engine = make_engine(config.engine.name, config.engine.threads)
    baseline = None if folder is None else _recorded(folder, engine)
    if baseline is not None:
        return baseline.link, latency_limit(config.parsed_budgets, baseline.link)
    bench = LatencyBench(engine, problem.space, problem.judge.images, config.measure.precision)
    link = tie(bench, config, progress)
    return link, latency_limit(config.parsed_budgets, link)


def _recorded(folder: Path, engine: Engine) -> Baseline | None:
    """Return the baseline of the run in a folder; None where there is none, or none of this engine and processor."""
    if not (folder / "journal").is_file():
        return None
    records = {record.kind: record.data for record in read_journal(folder / "journal")}
    run, baseline = records.get("run"), records.get("baseline")
    if run is None or baseline is None or "to_int8" not in baseline.get("link", {}):
        return None
    if (run["engine"], run["cpu"]) != (engine.signature, cpu_name()):
        return None
    return Baseline.from_json(baseline)
