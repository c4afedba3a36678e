"""The search loop: an agent asks, the pool judges, the journal remembers, the agent is told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import LOOKS, Interval
from trimtab.evaluators.measure.latency import Latency
from trimtab.search.loop.evaluation import Evaluation, Objective, violations
from trimtab.search.loop.journal import Journal, Record
from trimtab.search.loop.pool import Pool
from trimtab.search.loop.preference import preferred
from trimtab.search.loop.proposer import Proposer
from trimtab.search.progress import Bar, Progress
from trimtab.search.setup.agent_factory import make_agent
from trimtab.search.setup.budgets import BudgetLimits
from trimtab.search.setup.setting import Setting
from trimtab.spaces.policy import Policy

__all__ = ["AgentRun", "Ledger", "Memory", "Searcher", "Spent"]


@dataclass(frozen=True)
class Spent:
    """Wall seconds of one batch: asking for its policies, judging them, and all from the one to the last `tell`."""

    asking: float
    judging: float
    total: float


@dataclass
class AgentRun:
    """One agent's evaluations in the order in which it was told, and the best so far.

    `best` is what is preferred among all that is feasible: verified end to end, or within every budget on the latency
    table where nothing is measured. Beside each evaluation, `moments` has the seconds of search after which it was
    told, and `asking` those that its proposal took.
    """

    agent: str
    evaluations: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    moments: list[float] = field(default_factory=list)
    asking: list[float] = field(default_factory=list)
    judging: float = 0.0
    ended: Literal["trials", "exhausted", "time", "interrupted"] = "trials"

    @property
    def seconds(self) -> float:
        """Seconds of search so far, those of earlier processes included."""
        return self.moments[-1] if self.moments else 0.0

    def preferred(self) -> Evaluation | None:
        """Return what is preferred among all that is feasible by the best knowledge of its cost."""
        return preferred(e for e in self.evaluations if e.feasible)

    def spend(self, policies: int, spent: Spent) -> None:
        """Add a batch's time."""
        self.moments += [self.seconds + spent.total] * policies
        self.asking += [spent.asking / policies] * policies
        self.judging += spent.judging


@dataclass(frozen=True)
class _Batch:
    policies: tuple[Policy, ...]
    state: dict[str, object]


class Memory:
    """A journal's records by meaning: what was asked by whom, judged, and measured, and how long it took."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.batches: dict[str, list[_Batch]] = {}
        self.judged: dict[str, Evaluation] = {}
        self.latencies: dict[str, Latency] = {}
        self.spent: dict[str, list[Spent]] = {}
        for record in records:
            self._replay(record)

    def run(self, agent: str) -> AgentRun:
        """Return an agent's evaluations that are done with, as they were judged."""
        run = AgentRun(agent)
        for batch, spent in zip(self.batches.get(agent, []), self.spent.get(agent, []), strict=False):
            run.evaluations += [self.judged[policy.id] for policy in batch.policies]
            run.spend(len(batch.policies), spent)
        run.best = run.preferred()
        return run

    def measured_evaluation(self, policy: str, limit: Interval | None) -> Evaluation:
        """Return what a policy, by its id, was judged to be worth, with its latency where that was measured."""
        evaluation, latency = self.judged[policy], self.latencies.get(policy)
        return evaluation if latency is None else evaluation.measured(latency, limit)

    def _replay(self, record: Record) -> None:
        data = record.data
        if record.kind == "ask":
            policies = tuple(Policy.from_json(policy) for policy in data["policies"])
            self.batches.setdefault(data["agent"], []).append(_Batch(policies, data["state"]))
        elif record.kind == "result":
            evaluation = Evaluation.from_json(data)
            self.judged[evaluation.policy.id] = evaluation
        elif record.kind == "measured":
            self.latencies[data["policy"]] = Latency.from_json(data["latency"])
        elif record.kind == "told":
            self.spent.setdefault(data["agent"], []).append(Spent(**data["seconds"]))


class Ledger(Memory):
    """The memory of a run that goes on: what is added to it is in the journal first."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.records())
        self.journal = journal

    def asked(self, name: str, agent: Proposer, policies: Sequence[Policy]) -> None:
        """Remember a batch, and the agent's state after asking, before anything is dispatched."""
        state = agent.state()
        self.journal.append("ask", {"agent": name, "policies": [p.to_json() for p in policies], "state": state})

    def result(self, evaluation: Evaluation) -> None:
        """Remember a judged policy."""
        self.judged[evaluation.policy.id] = evaluation
        self.journal.append("result", evaluation.to_json())

    def measured(self, policy: Policy, latency: Latency) -> None:
        """Remember an end-to-end measurement."""
        self.latencies[policy.id] = latency
        self.journal.append("measured", {"policy": policy.id, "latency": latency.to_json()})

    def told(self, agent: str, spent: Spent) -> None:
        """Remember that a batch is done with, and the time it took."""
        self.spent.setdefault(agent, []).append(spent)
        self.journal.append("told", {"agent": agent, "seconds": asdict(spent)})


class Searcher:
    """Driver of agents, one after the other, over the same limits, judge and cache of results.

    Without a `bench` nothing is measured, and the latency table decides what is feasible. `stop` is asked between
    batches whether to end early.
    """

    def __init__(
        self,
        setting: Setting,
        limits: BudgetLimits,
        bench: LatencyBench | None,
        pool: Pool,
        ledger: Ledger,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.problem, self.baseline, self.limits = setting.problem, setting.baseline, limits
        self.bench, self.pool, self.ledger, self.stop = bench, pool, ledger, stop

    def run(
        self,
        name: str,
        progress: Progress,
        seconds: float = math.inf,
        watch: Callable[[AgentRun], None] = lambda run: None,
    ) -> AgentRun:
        """Let one agent make its trials; what the journal holds already is told again, not evaluated again.

        After `seconds` of search, earlier processes included, no evaluation is begun. `watch` sees the run after every
        batch, and once after all that was told again.
        """
        trials = self.problem.config.trials
        agent = Proposer(partial(make_agent, self.problem, name), self.limits, self.baseline.minimise)
        run = AgentRun(name)
        with progress.bar(f"{name}: evaluations", trials) as bar:
            self._replay(agent, run, bar)
            if run.evaluations:
                watch(run)
            while len(run.evaluations) < trials:
                if self.stop() or run.seconds >= seconds:
                    run.ended = "interrupted" if self.stop() else "time"
                    break
                start = time.perf_counter()
                policies = agent.ask(min(max(self.pool.size, 1), trials - len(run.evaluations)))
                if not policies:
                    bar.total(len(run.evaluations))
                    run.ended = "exhausted"
                    break
                self.ledger.asked(name, agent, policies)
                self._evaluate(agent, policies, run, bar, start, time.perf_counter() - start)
                watch(run)
        return run

    def _replay(self, agent: Proposer, run: AgentRun, bar: Bar) -> None:
        """Tell what the journal holds, as often as there are trials; the last batch may have been interrupted."""
        batches, spent = self.ledger.batches.get(run.agent, []), list(self.ledger.spent.get(run.agent, []))
        for number, batch in enumerate(batches):
            if len(run.evaluations) >= self.problem.config.trials:
                break
            agent.resume(batch.state)
            if number < len(spent):
                self._tell(agent, batch.policies, run, bar)
                run.spend(len(batch.policies), spent[number])
            else:
                self._evaluate(agent, batch.policies, run, bar, time.perf_counter())

    def _evaluate(
        self, agent: Proposer, policies: Sequence[Policy], run: AgentRun, bar: Bar, start: float, asking: float = 0.0
    ) -> None:
        """Judge a batch that was asked for from `start` on, and tell the agent."""
        judging = self._judge([policy for policy in policies if policy.id not in self.ledger.judged])
        self._tell(agent, policies, run, bar)
        spent = Spent(asking, judging, time.perf_counter() - start)
        self.ledger.told(run.agent, spent)
        run.spend(len(policies), spent)

    def _tell(self, agent: Proposer, policies: Sequence[Policy], run: AgentRun, bar: Bar) -> None:
        """Choose anew after every result, and tell the agent everything in the order asked."""
        for policy in policies:
            run.evaluations.append(self.ledger.judged[policy.id])
            self._choose(run)
            agent.tell(run.evaluations[-1])
            bar.update(len(run.evaluations), f"best {run.best.said()}" if run.best else "none feasible yet")

    def _choose(self, run: AgentRun) -> None:
        """Make the best what is preferred, verified: where its measurement refutes one, it is the next one's turn.

        A latency that is known already counts from here on only, so that a resumed run tells its agent what it told.
        """
        run.best = run.preferred()
        while self.bench is not None and run.best is not None and run.best.latency is None:
            run.evaluations[run.evaluations.index(run.best)] = self.verify(run.best)
            run.best = run.preferred()

    def _judge(self, missing: Sequence[Policy]) -> float:
        """Judge policies and return the seconds that it took."""
        if not missing:
            return 0.0
        start = time.perf_counter()
        for policy, judgement in self.pool.judge(missing):
            cost = replace(self.limits.model.cost(policy), size=judgement.size)
            found, minimise = violations(cost, self.baseline.limits), self.baseline.minimise
            answers, loss = judgement.answers, judgement.loss
            judged = Evaluation(policy, answers, loss, cost, found, judgement.seconds)
            if minimise is not None:
                objective = Objective.of(minimise, self.baseline.base.get(minimise), cost.get(minimise))
                judged = replace(judged, objective=objective).answered(answers, loss, self.baseline.kept)
            self.ledger.result(judged)
        return time.perf_counter() - start

    def verify(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with its latency measured end to end, now or earlier, where there is a bench."""
        policy = evaluation.policy
        if self.bench is not None and policy.id not in self.ledger.latencies:
            measure, limit = self.problem.config.measure, self.baseline.limit
            # What is only within a budget or over it is decided soon; what is compared has to be known.
            precision = measure.precision if self.baseline.minimise == "latency" else math.inf
            latency = self.bench.measure(policy, self.baseline.link, measure.seconds, limit, precision, LOOKS[0])
            self.ledger.measured(policy, latency)
        return self.ledger.measured_evaluation(policy.id, self.baseline.limit)
