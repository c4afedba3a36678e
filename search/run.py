"""One run from end to end: the baseline, a search by every agent, choose and verify the winner, export, report."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.agents import AGENTS
from trimtab.errors import BadInput
from trimtab.evaluators.accuracy import graded, judging_session
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.cost import CostModel, TableError
from trimtab.evaluators.end_to_end import LatencyBench
from trimtab.evaluators.engines import cpu_name, make_engine
from trimtab.evaluators.engines.base import Engine
from trimtab.evaluators.table import LatencyTable
from trimtab.files import write_text
from trimtab.search.finish.export import IN_WORDS, ExportCheck, export_candidate
from trimtab.search.loop.evaluation import Evaluation, pareto
from trimtab.search.loop.interrupts import heeding_interrupts
from trimtab.search.loop.journal import Journal
from trimtab.search.loop.loop import AgentRun, Ledger, Searcher
from trimtab.search.loop.optuna_export import OptunaExport, optuna_export_for
from trimtab.search.loop.pool import make_pool
from trimtab.search.loop.preference import preferred
from trimtab.search.loop.verify import contenders, verify
from trimtab.search.progress import Progress
from trimtab.search.report.summary import Winner, best_of, build_summary
from trimtab.search.setup.agent_factory import fill_for, first_proposals
from trimtab.search.setup.baseline import Baseline, measure_baseline
from trimtab.search.setup.budgets import BudgetLimits, describe
from trimtab.search.setup.config import Config, load_config
from trimtab.search.setup.problem import Problem, open_database
from trimtab.search.setup.pruned_space import find_removals
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.database import LayerDatabase
from trimtab.spaces.formats import BF16
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Removal

__all__ = ["Outcome", "default_folder", "identity", "keep_best", "open_run", "prepare_folder", "run_search"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run: its folder, the winner (None where no candidate passed verification), and the summary.

    `interrupted`: Ctrl-C ended the search, and the run can be gone on with.
    """

    folder: Path
    winner: Winner | None
    front: tuple[Evaluation, ...]
    summary: Mapping[str, Any]
    interrupted: bool = False


def default_folder(config: Config) -> Path:
    """Return a new folder's path under `runs/`, named after network, data and time."""
    network = config.network.zoo or config.network.torchvision or str(config.network.import_).replace(":", ".")
    return Path("runs") / f"{network}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}"


def prepare_folder(folder: Path, resume: bool) -> None:
    """Check that a run may be written to (or resumed from) a folder, without creating it."""
    if resume and not any((folder / name).is_file() for name in ("journal", "config.yaml")):
        raise BadInput(f"there is no run to resume in {folder}: it has no journal")
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if above != folder and not (above.is_dir() and os.access(above, os.W_OK)):
        raise BadInput(f"{folder} cannot be made: {above} is not a folder that may be written to")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists already: choose another --out, or pass --resume to go on with the run in it")


def open_run(folder: Path, settings: Sequence[str] = ()) -> Config:
    """Return the configuration of the run in a folder, with `a.b=c` settings applied."""
    if not (folder / "config.yaml").is_file():
        raise BadInput(f"{folder} is not a run: it has no config.yaml")
    return load_config(folder / "config.yaml", settings)


def run_search(problem: Problem, folder: Path, progress: Progress, resume: bool = False) -> Outcome:
    """Run, or go on with, a search in a folder; an impossible budget is an `InfeasibleBudget` and leaves no folder.

    While it searches, `policy.json` is the best policy so far, and the first Ctrl-C ends the search early: what was
    found until then is verified, exported and reported all the same.
    """
    prepare_folder(folder, resume)
    started = time.perf_counter()
    config = problem.config
    engine = make_engine(config.engine.name, config.engine.threads)
    _check_offered(config, engine)
    table = LatencyTable(engine, problem.space)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / "journal")) if resume else None
        known = _recall(problem, journal) if journal is not None else None
        removed = known.removed if known is not None else find_removals(problem, table, progress)
        problem = problem.without(removed)
        bench = LatencyBench(engine, problem.space, problem.judge.images, config.measure.precision)
        model = CostModel(problem.space, table)
        if known is None:
            propose = first_proposals(problem, config.agents, progress)
            baseline, limits = measure_baseline(problem, bench, model, progress, propose)
        else:
            baseline, limits = known.baseline, known.limits(model, config.seed)
            if known.machine != (engine.signature, cpu_name()):
                progress.line(
                    "this run was begun on another machine ({}, {}): its budgets and prices are of that one, and "
                    "what is measured from now on is not".format(*known.machine)
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", config.to_yaml())
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror}") from error
        journal = journal or stack.enter_context(Journal(folder / "journal"))
        if known is None:
            journal.append("run", identity(problem, engine.signature))
            journal.append("space", {"removed": [asdict(removal) for removal in removed]})
            journal.append("baseline", baseline.to_json())
        _say_baseline(baseline, config, progress)
        ledger = Ledger(journal)
        optuna = optuna_export_for(problem, folder, baseline)
        runs = _search(problem, baseline, limits, bench, ledger, optuna, folder, progress)
        finisher = _Finisher(problem, baseline, bench, model, runs, ledger, folder, progress)
        outcome = finisher.finish(started)
        journal.append("finished", {"winner": outcome.winner.evaluation.policy.id if outcome.winner else None})
    return outcome


def _check_offered(config: Config, engine: Engine) -> None:
    """Refuse a space with arithmetic that the engine could only imitate, never in less time than float32 takes."""
    if BF16 in config.space.bits and not engine.has_bf16:
        raise BadInput(
            f"space.bits: {engine.signature} has no bf16 arithmetic for {BF16.to_list()}: leave it out, or take "
            "[16, 32], which stores weights in bf16 and computes in float32"
        )


def _search(
    problem: Problem,
    baseline: Baseline,
    limits: BudgetLimits,
    bench: LatencyBench,
    ledger: Ledger,
    optuna: OptunaExport | None,
    folder: Path,
    progress: Progress,
) -> list[AgentRun]:
    estimates = open_estimates(problem, progress)
    if problem.config.workers:
        progress.line(f"starting {problem.config.workers} Ray worker(s)")
    pool = make_pool(problem.judge, problem.config.workers, problem.config.engine.threads)
    try:
        with progress.bar("latency table") as bar, heeding_interrupts(progress) as stop:
            limits.model.table.filled = bar.update
            searcher = Searcher(problem, baseline, limits, bench, pool, ledger, estimates, stop)
            return _run_agents(searcher, optuna, folder, progress)
    finally:
        pool.close()


def _run_agents(searcher: Searcher, optuna: OptunaExport | None, folder: Path, progress: Progress) -> list[AgentRun]:
    """Run one agent after the other; what is left of a time limit is shared equally among those to come."""
    config, keep = searcher.problem.config, keep_best(folder)

    def watch(run: AgentRun) -> None:
        keep(run)
        if optuna is not None:
            optuna.follow(run.agent, run.evaluations, progress)

    runs: list[AgentRun] = []
    for number, name in enumerate(config.agents):
        left = math.inf if config.time_limit is None else config.time_limit - sum(run.seconds for run in runs)
        runs.append(searcher.run(name, progress, left / (len(config.agents) - number), watch))
    return runs


def keep_best(folder: Path) -> Callable[[AgentRun], None]:
    """Return what keeps `policy.json` in a folder the best policy of the runs that it is shown."""
    bests: dict[str, Evaluation] = {}
    kept: Evaluation | None = None

    def keep(run: AgentRun) -> None:
        nonlocal kept
        if run.best is not None:
            bests[run.agent] = run.best
        best = preferred(bests.values())
        if best is not None and best is not kept:
            kept = best
            write_policy(folder, best.policy)

    return keep


def write_policy(folder: Path, policy: Policy) -> None:
    """Write `policy.json` of a run."""
    write_text(folder / "policy.json", json.dumps(policy.to_json(), indent=1) + "\n")


def open_estimates(problem: Problem, progress: Progress) -> LayerDatabase | None:
    """Return the layer database, filled, where an agent or the proxy needs it."""
    config = problem.config
    if config.proxy != "layers" and not any(AGENTS[name].needs_estimates for name in config.agents):
        return None
    fill_for(problem, config.agents, progress)
    return open_database(problem.space, problem.judge.calibration)


class _Finisher:
    """Chooses the winners on the finished networks, reads the final images once, exports, and reports."""

    def __init__(
        self,
        problem: Problem,
        baseline: Baseline,
        bench: LatencyBench,
        model: CostModel,
        runs: list[AgentRun],
        ledger: Ledger,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.problem, self.baseline, self.bench, self.model = problem, baseline, bench, model
        self.runs, self.ledger, self.folder, self.progress = runs, ledger, folder, progress
        self.verified: dict[str, tuple[Evaluation, Candidate]] = {}
        #: Policies whose exported file was not measured within the budgets.
        self.refused: list[str] = []
        #: Seconds of measuring exported files.
        self.exporting = 0.0

    def finish(self, started: float) -> Outcome:
        self.progress.line("verifying the winners on their finished networks")
        chosen, checks = self._choose()
        finals = self._read_final([c for c in chosen.values() if c is not None])
        winners = {
            agent: None if found is None else Winner(agent, found[0], finals[found[0].policy.id].accuracy)
            for agent, found in chosen.items()
        }
        best = best_of(winners)
        front = tuple(pareto(e for run in self.runs for e in run.evaluations if e.feasible))
        summary = build_summary(
            self.problem,
            self.baseline,
            self.runs,
            winners,
            front,
            finals,
            checks,
            self._table_error(),
            self._profile(best),
            self._judging(best),
            time.perf_counter() - started,
        )
        summary["measuring"] = {"end_to_end": self.bench.took + self.exporting, "table": self.model.table.took}
        summary["refused"] = self.refused
        write_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        from trimtab.search.report.run_report import write_report

        write_report(self.folder)
        return Outcome(self.folder, best, front, summary, any(run.ended == "interrupted" for run in self.runs))

    def _choose(self) -> tuple[dict[str, tuple[Evaluation, Candidate] | None], list[ExportCheck]]:
        """Return every agent's verified winner, and the checks of the best one's exports.

        The best is the first one whose exported file was measured within the budgets too; one that was not is no
        longer feasible, and its agent's next evaluation takes its place.
        """
        while True:
            chosen = {run.agent: self._verify(run) for run in self.runs}
            found = preferred([c[0] for c in chosen.values() if c is not None])
            if found is None:
                (self.folder / "policy.json").unlink(missing_ok=True)  # refuted by the measurement
                rmtree(self.folder / "export", ignore_errors=True)
                self.progress.line(f"no network was measured within every budget: {self._why_none()}")
                return chosen, []
            candidate = self.verified[found.policy.id][1]
            self.progress.line("exporting, and running the exports back")
            write_policy(self.folder, found.policy)
            checks = export_candidate(
                self.problem, candidate, self.folder / "export", self.baseline.link, self.baseline.limit
            )
            self.exporting += sum(check.measuring for check in checks)
            exported = next((check.latency for check in checks if check.verdict is not None), None)
            if exported is None:
                return chosen, checks
            found = found.measured(exported, self.baseline.limit)
            self.verified[found.policy.id] = found, candidate
            if found.feasible:
                return {agent: self._current(one) for agent, one in chosen.items()}, checks
            self.refused.append(found.policy.id)
            words = next(IN_WORDS[check.verdict] for check in checks if check.verdict is not None)
            self.progress.line(f"the exported file of {found.policy.id} is {words}: the next network is tried")

    def _why_none(self) -> str:
        limit, tried = self.baseline.limit, [found.latency for found, _ in self.verified.values()]
        verdicts = Counter(latency.verdict(limit) for latency in tried if latency is not None and limit is not None)
        counts = [f"{count} {IN_WORDS[verdict]}" for verdict, count in verdicts.items()]
        return ", ".join([f"{len(tried)} tried", *counts])

    def _current(self, chosen: tuple[Evaluation, Candidate] | None) -> tuple[Evaluation, Candidate] | None:
        return None if chosen is None else self.verified[chosen[0].policy.id]

    def _verify(self, run: AgentRun) -> tuple[Evaluation, Candidate] | None:
        """Return the agent's preferred evaluation of those whose finished network meets every budget, measured."""
        for evaluation in contenders(run.evaluations):
            policy = evaluation.policy
            if policy.id not in self.verified:
                self.verified[policy.id] = verify(self.problem, self.baseline, self.bench, evaluation)
            if self.verified[policy.id][0].feasible:
                return self.verified[policy.id]
        return None

    def _read_final(self, chosen: list[tuple[Evaluation, Candidate]]) -> dict[str, Answers]:
        """Read the final images, once: the answers of the base, of its int8 form, and of every winner."""
        images, labels = self.problem.splits.final()
        space = self.problem.space
        candidates = {"base": space.base(), "int8": space.int8()}
        finished = {name: self.problem.judge.candidate(policy) for name, policy in candidates.items()}
        finished |= {evaluation.policy.id: candidate for evaluation, candidate in chosen}
        return {name: graded(judging_session(c).run(images), labels) for name, c in finished.items()}

    def _table_error(self) -> TableError:
        base = self.baseline.base.latency
        measured = {
            self.ledger.judged[policy].policy: latency.ratio * base
            for policy, latency in self.ledger.latencies.items()
            if policy in self.ledger.judged
        }
        return self.model.error(measured)

    def _profile(self, best: Winner | None) -> dict[str, list[dict[str, Any]]]:
        """Where the time goes, step by step, in the base and in the winner: predicted seconds from the table."""
        policies = {"base": self.problem.space.base()}
        if best is not None:
            policies["winner"] = best.evaluation.policy
        return {name: self._steps(policy) for name, policy in policies.items()}

    def _steps(self, policy: Policy) -> list[dict[str, Any]]:
        named = self.model.plan.named_steps(policy)
        scale = self.model.get(policy, "latency") / self.model.total(policy)[0]
        return [
            {
                "layer": name,
                "kind": step.kind,
                "kernel": self.model.table.kernel(step),
                "seconds": self.model.table.seconds(step) * scale,
            }
            for name, step in named
        ]

    def _judging(self, best: Winner | None) -> dict[str, float]:
        """Candidates per second: over the whole search, and of the winner by either judge in this process."""
        judging = sum(run.judging for run in self.runs)
        rates = {"search": len(self.ledger.judged) / judging if judging else 0.0}
        policy = best.evaluation.policy if best else self.problem.space.int8()
        for by in ("native", "torch"):
            start = time.perf_counter()
            replace(self.problem.judge, by=by)(policy)
            rates[by] = 1 / (time.perf_counter() - start)
        return rates


def identity(problem: Problem, engine: str) -> dict[str, Any]:
    """What has to be the same for a journal to be gone on with, and what is good to know later."""
    network = problem.space.network
    return {
        "network": network.fingerprint(),
        "weights": network.weights_hash(),
        "config": problem.config.model_dump(
            mode="json", by_alias=True, exclude={"workers", "trials", "time_limit", "storage"}
        ),
        "engine": engine,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("trimtab", "torch", "optuna", "onnxruntime")},
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True)
class _Known:
    """The beginning of an interrupted run, as its journal has it."""

    removed: tuple[Removal, ...]
    baseline: Baseline
    machine: tuple[str, str]

    def limits(self, model: CostModel, seed: int) -> BudgetLimits:
        model.fit = self.baseline.fit
        return BudgetLimits(model, self.baseline.limits, self.baseline.margin, seed)


def _recall(problem: Problem, journal: Journal) -> _Known | None:
    """Read the beginning of an interrupted run of the same problem; None if it did not get so far."""
    records = {record.kind: record.data for record in journal.records() if record.kind in ("run", "space", "baseline")}
    if "baseline" not in records:
        return None
    baseline = Baseline.from_json(records["baseline"])  # before configurations are compared: older ones have other keys
    now, then = identity(problem, ""), records["run"]
    for key, what in (("network", "network"), ("weights", "network's weights"), ("config", "configuration")):
        if json.dumps(now[key], sort_keys=True) != json.dumps(then[key], sort_keys=True):
            raise BadInput(f"the {what} is not the one that the run in {journal.path.parent} was started with")
    removed = tuple(Removal(**removal) for removal in records.get("space", {}).get("removed", ()))
    return _Known(removed, baseline, (then["engine"], then["cpu"]))


def _say_baseline(baseline: Baseline, config: Config, progress: Progress) -> None:
    base, int8 = baseline.base, baseline.int8
    progress.line(
        f"base: {base.latency * 1e3:.4f} ms, {describe('size', base.size)}, {describe('macs', base.macs)}, accuracy "
        f"{baseline.base_accuracy:.2%}; int8: {int8.latency / base.latency:.3f}x latency, "
        f"{int8.size / base.size:.3f}x size, accuracy {baseline.int8_accuracy:.2%}; "
        f"noise floor {baseline.noise_floor:.2%}"
    )
    asked = ", ".join(
        f"{name} {text} = {describe(name, baseline.limits[name])}" for name, text in config.budgets.items()
    )
    progress.line(f"budgets: {asked}; {baseline.margin:.1%} kept free for what prices and measurements may be off by")
