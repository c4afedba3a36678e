"""One run from end to end: the baseline, a search by every agent, choose and verify the winner, export, report."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.answers import Graded
from trimtab.evaluators.engines import SIMULATED
from trimtab.evaluators.price.cost import CostModel, TableError
from trimtab.files import write_text
from trimtab.search.finish.export import IN_WORDS, ExportCheck, export_candidate
from trimtab.search.finish.finishing import FINISHED, Finished, finish
from trimtab.search.finish.run_link import measured_link
from trimtab.search.loop.best_policy import keep_best, write_policy
from trimtab.search.loop.candidates import CandidateFolder
from trimtab.search.loop.evaluation import Evaluation, pareto
from trimtab.search.loop.experiment import Experiment, begin
from trimtab.search.loop.interrupts import heeding_interrupts
from trimtab.search.loop.journal import Journal
from trimtab.search.loop.loop import AgentRun, Ledger, Searcher
from trimtab.search.loop.optuna_export import OptunaExport, optuna_export_for
from trimtab.search.loop.pool import make_pool
from trimtab.search.loop.preference import is_cheaper, nearest, preferred, ranked
from trimtab.search.loop.tensorboard import Scalars
from trimtab.search.loop.verify import Verifier, judged
from trimtab.search.progress import Progress
from trimtab.search.report.agent_rows import winning
from trimtab.search.report.run_report import duration, write_report
from trimtab.search.report.summary import Findings, Winner, best_of, build_summary, finished_summary, load_summary
from trimtab.search.setup.agent_factory import fill_for
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.budgets import BudgetLimits, describe
from trimtab.search.setup.config import Config, load_config
from trimtab.search.setup.metric import ACCURACY, ShownMetric
from trimtab.search.setup.problem import Problem
from trimtab.search.setup.setting import Setting, bench_of, recall_setting
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.policy import Policy

#: Measurements that the end of a run is given time for, beside those of the agents' winners: of its exports, of what is
#: trained, and of its exports.
EXPORTS, TRAINED = 2, 3

#: Why an agent made fewer evaluations than were asked for.
ENDED = {"exhausted": "it has nothing more to propose", "time": "its time was up"}

#: How many times its limit a run may take before that is said.
LATE = 1.1

#: The least share of a time limit that the search gets, however long everything before it took.
LEAST_SEARCH = 0.1

__all__ = ["Outcome", "default_folder", "finish_run", "open_run", "run_search"]


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


def open_run(folder: Path, settings: Sequence[str] = ()) -> Config:
    """Return the configuration of the run in a folder, with `a.b=c` settings applied."""
    if not (folder / "config.yaml").is_file():
        raise BadInput(f"{folder} is not a run: it has no config.yaml")
    return load_config(folder / "config.yaml", settings)


def run_search(
    problem: Problem, folder: Path, progress: Progress, resume: bool = False, began: float | None = None
) -> Outcome:
    """Run, or go on with, a search in a folder; an impossible budget is an `InfeasibleBudget` and leaves no folder.

    A time limit is counted from `began` on, a `time.perf_counter()`; from now on where it is None.

    While it searches, `policy.json` is the best policy so far, and the first Ctrl-C ends the search early: what was
    found until then is verified, exported and reported all the same.
    """
    started = time.perf_counter() if began is None else began
    config = problem.config
    with begin("search", problem, [config.budgets], [config.agent], folder, progress, resume) as experiment:
        (setting,) = experiment.settings
        if setting.elsewhere:
            progress.line(
                f"this run was begun on another machine ({setting.elsewhere}): its budgets and prices are of that "
                "one, and what is measured from now on is not"
            )
        _say_baseline(setting.baseline, problem, progress)
        seconds = _search_seconds(config, time.perf_counter() - started)
        experiment.journal.append("stage", {"stage": "search", "seconds": None if math.isinf(seconds) else seconds})
        limits, ledger = setting.limits(experiment.table), Ledger(experiment.journal)
        runs = _search(experiment, setting, limits, ledger, seconds, progress)
        outcome = _Finisher(experiment, setting, limits.model, ledger, runs, progress).finish(started)
        winner = None if outcome.winner is None else outcome.winner.evaluation.policy.id
        experiment.journal.append("finished", {"winner": winner, "interrupted": outcome.interrupted})
        _say_time(config, time.perf_counter() - started, progress)
    return outcome


def finish_run(problem: Problem, folder: Path, progress: Progress, resume: bool = False) -> Outcome:
    """Train the network that a run exported, export what it has become, report, and return the run as it is then.

    A network that was finished before is trained on. With `resume`, a finishing that was interrupted is gone on with,
    as it was ordered. Where training makes nothing better within the budgets, everything stays as it was. The final
    images are read again, for the figure of what was trained; nothing is chosen by it. A run that has not ended with a
    winner is a `BadInput`.
    """
    summary = load_summary(folder)
    if summary["winner"] is None:
        raise BadInput(f"{folder} has no winner to train: nothing met the budgets, or kept the accuracy")
    if not resume:
        rmtree(folder / "finishing", ignore_errors=True)
    agent = summary["winner"]["agent"]
    policy = Policy.from_json(summary["winner"]["policy"], str(folder / "summary.json"))
    with Journal(folder / "journal") as journal:
        setting, candidates = recall_setting(problem, _recorded(journal, "setting")), CandidateFolder(folder)
        bench = bench_of(problem)
        journal.append("stage", {"stage": "finishing"})
        link, limit = measured_link(problem, bench, folder, progress)
        setting = replace(setting, baseline=replace(setting.baseline, link=link, limit=limit))
        best = Verifier(journal, candidates).verify(setting, bench, _evaluated(journal, policy))
        before, _ = candidates.current(problem.judge, policy)
        best = judged(setting, best, before)
        finished = finish(setting, bench, [best], candidates, folder, progress, again=True)
        if finished is None:
            winner = Winner(agent, best, _final_accuracy(summary))
        else:
            base = problem.judge.candidate(problem.space.base())
            finals = _final_answers(problem, {"base": base, policy.id: before, FINISHED: finished.candidate})
            summary |= finished_summary(finished, setting, finals)
            summary["winner"] = {"agent": agent, "policy": finished.evaluation.policy.to_json()}
            write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
            write_report(folder)
            winner = Winner(agent, finished.evaluation, finals[FINISHED].value)
        journal.append("finished", {"winner": winner.evaluation.policy.id})
    return Outcome(folder, winner, (), summary)


def _final_answers(problem: Problem, networks: Mapping[str, Candidate]) -> dict[str, Graded]:
    """What the metric finds of networks on the final images."""
    judge, (images, targets) = problem.judge, problem.splits.final()
    wanted = judge.wanted(images, targets)
    return {name: judge.held_to(wanted, judge.outputs(network, images)) for name, network in networks.items()}


def _final_accuracy(summary: Mapping[str, Any]) -> float:
    found = winning(summary)
    return math.nan if found is None else float(found[1]["final_accuracy"])


def _recorded(journal: Journal, kind: str) -> dict[str, Any]:
    """What the first record of a kind says; a journal without one is a `BadInput`."""
    for record in journal.records():
        if record.kind == kind:
            return record.data
    raise BadInput(f"{journal.path} has no {kind}: its run has not come so far")


def _evaluated(journal: Journal, policy: Policy) -> Evaluation:
    """The evaluation of a policy that a journal remembers; one that it does not is a `BadInput`."""
    for record in journal.records():
        if record.kind == "verified":
            found = Evaluation.from_json(record.data["evaluation"])
            if found.policy == policy:
                return found
    raise BadInput(f"{journal.path} has no verified network of the policy {policy.id}")


def _say_time(config: Config, took: float, progress: Progress) -> None:
    """Say so where a time limit was not kept."""
    if config.time_limit is not None and took > LATE * config.time_limit:
        progress.line(
            f"the run took {duration(took)}, not {duration(config.time_limit)}: measurements, the layer database and "
            "the network's own training take what they take, more of it on a busy machine"
        )


def _search_seconds(config: Config, spent: float) -> float:
    """The seconds that are left to the search where a run has a time limit, of which so much is spent: less what its
    end takes, the measuring of every agent's winner, of the exports and of what is trained, and the training."""
    if config.time_limit is None:
        return math.inf
    measured = len(config.agents) + EXPORTS + (TRAINED + config.finish.candidates if config.finish.enabled else 0)
    end = measured * config.measuring.final_seconds + config.training_seconds
    return max(config.time_limit - spent - end, LEAST_SEARCH * config.time_limit)


def _search(
    experiment: Experiment, setting: Setting, limits: BudgetLimits, ledger: Ledger, seconds: float, progress: Progress
) -> list[AgentRun]:
    config, bench = setting.problem.config, experiment.benches[setting.budget]
    export = optuna_export_for(setting, experiment.folder)
    if config.workers:
        progress.line(f"starting {config.workers} Ray worker(s)")
    pool = make_pool(setting.problem.judge, config.workers, config.engine.threads)
    try:
        with progress.bar("latency table") as bar, heeding_interrupts(progress) as stop:
            experiment.table.filled = bar.update
            searcher = Searcher(setting, limits, bench, pool, ledger, stop)
            return _run_agents(searcher, export, experiment.folder, seconds, progress)
    finally:
        pool.close()


def _run_agents(
    searcher: Searcher, export: OptunaExport | None, folder: Path, seconds: float, progress: Progress
) -> list[AgentRun]:
    """Run one agent after the other; what is left of the seconds is shared among those to come, of whom the agent that
    was asked for counts as much as all those beside it.

    The layer database is filled before the first agent that gets it: until then the others find what is feasible.
    """
    config, keep = searcher.problem.config, keep_best(folder)
    scalars = Scalars(folder / "tensorboard", searcher.baseline)

    def watch(run: AgentRun) -> None:
        keep(run)
        scalars.follow(run, progress)
        if export is not None:
            export.follow(run.agent, run.evaluations, progress)

    runs: list[AgentRun] = []
    with closing(scalars):
        for number, name in enumerate(config.agents):
            start = time.perf_counter()
            fill_for(searcher.problem, [name], progress)
            seconds -= time.perf_counter() - start
            left = seconds - sum(run.seconds for run in runs)
            if name == config.agent:  # it has its turn, however long those before it took
                left = max(left, LEAST_SEARCH * (config.time_limit or 0.0))
            weights = [max(len(config.agents) - 1, 1) if each == config.agent else 1 for each in config.agents]
            part = weights[number] / sum(weights[number:])
            runs.append(searcher.run(name, progress, part * left, watch))
            if runs[-1].ended in ENDED:
                progress.line(f"{name}: {ENDED[runs[-1].ended]}, after {len(runs[-1].evaluations)} evaluation(s)")
    return runs


class _Finisher:
    """The end of a run: chooses the winners on finished networks, reads the final images once, exports, and reports."""

    def __init__(
        self,
        experiment: Experiment,
        setting: Setting,
        model: CostModel,
        ledger: Ledger,
        runs: list[AgentRun],
        progress: Progress,
    ) -> None:
        self.experiment, self.setting, self.model = experiment, setting, model
        self.ledger, self.runs, self.progress = ledger, runs, progress
        self.problem, self.baseline = setting.problem, setting.baseline
        self.bench, self.folder = experiment.benches[setting.budget], experiment.folder
        #: Policies whose exported file was not measured within the budgets.
        self.refused: list[str] = []
        #: Whether Ctrl-C ended the search, the verification or the training: nothing is trained after that.
        self.interrupted = any(run.ended == "interrupted" for run in runs)
        #: Seconds of measuring exported files.
        self.exporting = 0.0

    def finish(self, started: float) -> Outcome:
        self.progress.line("verifying the winners on their repaired networks")
        self.experiment.journal.append("stage", {"stage": "verification"})
        with heeding_interrupts(self.progress) as stop:
            chosen, checks = self._choose()
        # Without a training nothing is left to go on with.
        self.interrupted |= stop() and self.problem.config.finish.enabled
        found = [evaluation for evaluation in chosen.values() if evaluation is not None]
        finished = self._finished(found, started)
        kept = found if finished is None else [*found, finished.evaluation]
        self.experiment.candidates.keep([evaluation.policy for evaluation in kept])
        finals = self._read_final(found, finished)
        winners = {
            agent: None if one is None else Winner(agent, one, finals[one.policy.id].value)
            for agent, one in chosen.items()
        }
        best = best_of(winners)
        if finished is not None:
            best = Winner(self._who_found(finished.evaluation.policy), finished.evaluation, finals[FINISHED].value)
        findings = Findings(
            runs=self.runs,
            winners=winners,
            best=best,
            finished=finished,
            front=tuple(pareto(e for run in self.runs for e in run.evaluations if e.affordable)),
            finals=finals,
            checks=checks,
            refused=self.refused,
            table_error=self._table_error(),
            profile=self._profile(best),
            judging=self._judging(best),
            measuring={"end_to_end": self.bench.took + self.exporting, "table": self.model.table.took},
            seconds=time.perf_counter() - started,
        )
        summary = build_summary(self.setting, findings)
        write_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_report(self.folder)
        return Outcome(self.folder, best, findings.front, summary, self.interrupted)

    def _training_seconds(self, started: float) -> float:
        """What is left of a time limit, less the measuring for it; at least the training's share of it."""
        config = self.problem.config
        if config.time_limit is None:
            return math.inf
        measuring = (TRAINED + config.finish.candidates) * config.measuring.final_seconds
        left = config.time_limit - (time.perf_counter() - started) - measuring
        return max(left, config.training_seconds)

    def _finished(self, found: Sequence[Evaluation], started: float) -> Finished | None:
        """Train the best of what was found; None where that is not asked for, failed, or made nothing better."""
        setting = _untrained(self.setting) if self.interrupted else self.setting
        best, asked = preferred(found), setting.problem.config.finish
        if best is None and (self.baseline.kept is None or not asked.enabled):
            return None
        contenders = self._contenders(best, asked.candidates if asked.enabled else 1)
        if (first := next(contenders, None)) is None:
            return None
        given = chain([first], contenders)
        if asked.enabled:
            self.experiment.journal.append("stage", {"stage": "finishing"})
        try:
            candidates, left = self.experiment.candidates, self._training_seconds(started)
            return finish(setting, self.bench, given, candidates, self.folder, self.progress, seconds=left)
        except KeyboardInterrupt:
            self.progress.line(f"interrupted: trimtab finish {self.folder} --resume goes on with the training")
            self.interrupted = True
        except TrimtabError as error:
            self.progress.line(f"the winner stays untrained: {error}")
        return None

    def _who_found(self, policy: Policy) -> str:
        return next(run.agent for run in self.runs for e in run.evaluations if e.policy == policy)

    def _contenders(self, best: Evaluation | None, count: int) -> Iterator[Evaluation]:
        """The best evaluation, if there is one, and after it those in reach whose networks were measured within the
        budgets on costs too."""
        left = count
        if best is not None:
            left -= 1
            yield best
        for evaluation in islice(self._in_reach(best), 2 * count):
            if not left:
                return
            verified = self.experiment.verifier.verify(self.setting, self.bench, evaluation)
            if verified.affordable:
                left -= 1
                yield verified

    def _in_reach(self, best: Evaluation | None) -> Iterator[Evaluation]:
        """What training may make the best: where the accuracy counts, what else is feasible, the preferred ones first;
        where it has to be kept, what is cheaper than the best and does not keep it, the nearest to that first."""
        others = {
            e.policy.id: e for run in self.runs for e in run.evaluations if best is None or e.policy != best.policy
        }
        if self.baseline.minimise is None:
            return ranked(e for e in others.values() if e.feasible)
        return nearest(e for e in others.values() if best is None or is_cheaper(e, best))

    def _choose(self) -> tuple[dict[str, Evaluation | None], list[ExportCheck]]:
        """Return every agent's verified winner, and the checks of the best one's exports.

        The best is the first one whose exported file was measured within the budgets too; one that was not is no
        longer feasible, and its agent's next evaluation takes its place.
        """
        verifier, export = self.experiment.verifier, self.folder / "export"
        while True:
            chosen = {run.agent: verifier.winner(self.setting, self.bench, run.evaluations)[0] for run in self.runs}
            found = preferred(evaluation for evaluation in chosen.values() if evaluation is not None)
            if found is None:
                (self.folder / "policy.json").unlink(missing_ok=True)  # refuted by the measurement
                rmtree(export, ignore_errors=True)
                self.progress.line(f"no network {self._asked()}: {self._why_none()}")
                return chosen, []
            self.progress.line("exporting, and running the exports back")
            write_policy(self.folder, found.policy)
            candidate = verifier.candidate(self.setting, found.policy)
            checks = export_candidate(self.problem, candidate, export, self.baseline.link, self.baseline.limit)
            self.exporting += sum(check.measuring for check in checks)
            exported = next((check for check in checks if check.verdict is not None), None)
            if exported is None or exported.verdict is None:
                return chosen, checks
            measured = found.measured(exported.latency, self.baseline.limit)
            verifier.exported(self.setting, measured)
            if measured.feasible:
                same = {agent: one is not None and one.policy == found.policy for agent, one in chosen.items()}
                return {agent: measured if same[agent] else one for agent, one in chosen.items()}, checks
            self.refused.append(found.policy.id)
            self.progress.line(
                f"the exported file of {found.policy.id} is {IN_WORDS[exported.verdict]}: the next network is tried"
            )

    def _asked(self) -> str:
        return "was measured within every budget" if self.baseline.kept is None else "was shown to keep the accuracy"

    def _why_none(self) -> str:
        kept, seen = self.baseline.kept, next(nearest(e for run in self.runs for e in run.evaluations), None)
        if kept is not None and seen is not None:
            return f"the nearest one takes {seen.said()} and {kept.said(seen.answers)}"
        limit, tried = self.baseline.limit, list(self.experiment.verifier.found.values())
        verdicts = Counter(e.latency.verdict(limit) for e in tried if e.latency is not None and limit is not None)
        counts = [f"{count} {IN_WORDS[verdict]}" for verdict, count in verdicts.items()]
        return ", ".join([f"{len(tried)} tried", *counts])

    def _read_final(self, chosen: Sequence[Evaluation], finished: Finished | None) -> dict[str, Graded]:
        """Read the final images, once: the answers of the base, of its int8 form, of every winner, and of the network
        that was finished."""
        space, judge = self.problem.space, self.problem.judge
        forms = {"base": space.base(), "int8": space.int8()}
        networks = {name: judge.candidate(policy) for name, policy in forms.items()}
        for evaluation in chosen:
            networks[evaluation.policy.id] = self.experiment.candidates.repaired(judge, evaluation.policy)
        if finished is not None:
            networks[FINISHED] = finished.candidate
        return _final_answers(self.problem, networks)

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
        return {name: self.model.profile(policy) for name, policy in policies.items()}

    def _judging(self, best: Winner | None) -> dict[str, float]:
        """Candidates per second: over the whole search, and of the winner by either judge in this process."""
        judging = sum(run.judging for run in self.runs)
        rates = {"search": len(self.ledger.judged) / judging if judging else 0.0}
        policy = best.evaluation.policy if best else self.problem.space.int8()
        for by in (self.problem.judge.by, SIMULATED):
            start = time.perf_counter()
            replace(self.problem.judge, by=by)(policy)
            rates[by] = 1 / (time.perf_counter() - start)
        return rates


def _untrained(setting: Setting) -> Setting:
    """The setting with finishing off: what was trained before stays, and nothing is trained now."""
    config = setting.problem.config
    off = config.model_copy(update={"finish": config.finish.model_copy(update={"enabled": False})})
    return replace(setting, problem=replace(setting.problem, config=off))


def _say_baseline(baseline: Baseline, problem: Problem, progress: Progress) -> None:
    base, int8, config, metric = baseline.base, baseline.int8, problem.config, ShownMetric.by(problem.judge)
    if metric != ACCURACY:
        progress.line(f"judged by {metric.said}")
    progress.line(
        f"base: {base.latency * 1e3:.4f} ms, {describe('size', base.size)}, {describe('macs', base.macs)}, "
        f"{metric.name} {baseline.base_answers.said()}; int8: {int8.latency / base.latency:.3f}x latency, "
        f"{int8.size / base.size:.3f}x size, {metric.name} {baseline.int8_answers.said()}; "
        f"noise floor {baseline.noise_floor:.2%}"
    )
    limits = baseline.limits
    if config.keep is not None:
        progress.line(
            f"the least {config.minimise} that loses at most {-config.keep.accuracy:g} points of {metric.name}, by "
            f"{100 * config.keep.confidence:.4g} %"
        )
    if config.budgets:
        asked = ", ".join(f"{name} {text} = {describe(name, limits[name])}" for name, text in config.budgets.items())
        progress.line(
            f"budgets: {asked}; {baseline.margin:.1%} kept free for what prices and measurements may be off by"
        )
