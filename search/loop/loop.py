"""The search loop: an agent asks, the pool judges, the journal remembers, the agent is told."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from trimtab.evaluators.accuracy import Judgement
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
from trimtab.search.setup.config import UNLIMITED
from trimtab.search.setup.setting import Setting
from trimtab.spaces.policy import Policy

__all__ = ["AgentRun", "Ledger", "Memory", "Searcher", "Spent"]


@dataclass(frozen=True)
class Spent:
    """Seconds of one batch: of asking for its policies, of judging them, by whoever did, and those that passed from the
    batch before it being told, or from the beginning, until it was."""

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
    state: Mapping[str, Any]


@dataclass(frozen=True)
class _Flight:
    """A batch that was asked for and not told yet, and the seconds that asking took."""

    policies: Sequence[Policy]
    asking: float = 0.0


class Memory:
    """A journal's records by meaning: what was asked by whom, judged, and measured, and how long it took."""

    def __init__(self, records: Iterable[Record]) -> None:
        #: By agent, in the order in which it happened: batches asked for, and batches told, the oldest first.
        self.events: dict[str, list[_Batch | Spent]] = {}
        self.judged: dict[str, Evaluation] = {}
        self.latencies: dict[str, Latency] = {}
        for record in records:
            self._replay(record)

    def run(self, agent: str) -> AgentRun:
        """Return an agent's evaluations that are done with, as they were judged."""
        run = AgentRun(agent)
        told = [event for event in self.events.get(agent, []) if isinstance(event, Spent)]
        for batch, spent in zip(self.batches(agent), told, strict=False):
            run.evaluations += [self.judged[policy.id] for policy in batch.policies]
            run.spend(len(batch.policies), spent)
        run.best = run.preferred()
        return run

    def batches(self, agent: str) -> list[_Batch]:
        """Return what an agent was asked for."""
        return [event for event in self.events.get(agent, []) if isinstance(event, _Batch)]

    def measured_evaluation(self, policy: str, limit: Interval | None) -> Evaluation:
        """Return what a policy, by its id, was judged to be worth, with its latency where that was measured."""
        evaluation, latency = self.judged[policy], self.latencies.get(policy)
        return evaluation if latency is None else evaluation.measured(latency, limit)

    def _replay(self, record: Record) -> None:
        data = record.data
        if record.kind == "ask":
            policies = tuple(Policy.from_json(policy) for policy in data["policies"])
            self.events.setdefault(data["agent"], []).append(_Batch(policies, data["state"]))
        elif record.kind == "result":
            evaluation = Evaluation.from_json(data)
            self.judged[evaluation.policy.id] = evaluation
        elif record.kind == "measured":
            self.latencies[data["policy"]] = Latency.from_json(data["latency"])
        elif record.kind == "told":
            self.events.setdefault(data["agent"], []).append(Spent(**data["seconds"]))


class Ledger(Memory):
    """The memory of a run that goes on: what is added to it is in the journal first."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.records())
        self.journal = journal

    def asked(self, agent: str, state: Mapping[str, Any], policies: Sequence[Policy]) -> None:
        """Remember a batch, and the agent's state after asking, before anything is dispatched."""
        self.journal.append("ask", {"agent": agent, "policies": [p.to_json() for p in policies], "state": state})

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
        self.journal.append("told", {"agent": agent, "seconds": asdict(spent)})


class Searcher:
    """Driver of agents, one after the other, over the same limits, judge and cache of results.

    The pool always has something to do: the next policy is asked for while others are judged, and results are told in
    the order in which they were asked for, so that what is proposed depends on how many are under way at a time
    (`Pool.ahead`) and not on who is finished first.

    Without a `bench` nothing is measured, and the latency table decides what is feasible. `stop` is asked before every
    proposal whether to end early.
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
        with progress.bar(f"{name}: evaluations", None if trials == UNLIMITED else trials) as bar:
            agent = Proposer(partial(make_agent, self.problem, name), self.limits, self.baseline.minimise)
            search = _AgentSearch(self, AgentRun(name), agent, bar)
            search.replay()
            if search.run.evaluations:
                watch(search.run)
            search.begin()
            while search.ask(seconds) or search.in_flight:
                search.land()
                watch(search.run)
        return search.run

    def judgement(self, policy: Policy) -> Evaluation:
        """Return what a policy that was submitted is worth, when it is known; others' results that come first are
        remembered too."""
        while policy.id not in self.ledger.judged:
            self.ledger.result(self._evaluation(*self.pool.next()))
        return self.ledger.judged[policy.id]

    def submit(self, policies: Iterable[Policy]) -> None:
        """Have policies judged that are not known."""
        for policy in policies:
            if policy.id not in self.ledger.judged:
                self.pool.submit(policy)

    def choose(self, run: AgentRun) -> None:
        """Make the best what is preferred, verified: where its measurement refutes one, it is the next one's turn.

        A latency that is known already counts from here on only, so that a resumed run tells its agent what it told.
        """
        run.best = run.preferred()
        while self.bench is not None and run.best is not None and run.best.latency is None:
            run.evaluations[run.evaluations.index(run.best)] = self.verify(run.best)
            run.best = run.preferred()

    def _evaluation(self, policy: Policy, judgement: Judgement) -> Evaluation:
        cost = replace(self.limits.model.cost(policy), size=judgement.size)
        found, minimise = violations(cost, self.baseline.limits), self.baseline.minimise
        answers, loss = judgement.answers, judgement.loss
        judged = Evaluation(policy, answers, loss, cost, found, judgement.seconds)
        if minimise is None:
            return judged
        objective = Objective.of(minimise, self.baseline.base.get(minimise), cost.get(minimise))
        return replace(judged, objective=objective).answered(answers, loss, self.baseline.kept)

    def verify(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with its latency measured end to end, now or earlier, where there is a bench."""
        policy = evaluation.policy
        if self.bench is not None and policy.id not in self.ledger.latencies:
            measure, limit = self.problem.config.measuring, self.baseline.limit
            # What is only within a budget or over it is decided soon; what is compared has to be known.
            precision = measure.precision if self.baseline.minimise == "latency" else math.inf
            latency = self.bench.measure(policy, self.baseline.link, measure.seconds, limit, precision, LOOKS[0])
            self.ledger.measured(policy, latency)
        return self.ledger.measured_evaluation(policy.id, self.baseline.limit)


class _AgentSearch:
    """One agent's search: what it was asked for and not told yet is `in_flight`, the oldest first."""

    def __init__(self, searcher: Searcher, run: AgentRun, agent: Proposer, bar: Bar) -> None:
        self.searcher, self.run, self.agent, self.bar = searcher, run, agent, bar
        self.ledger, self.trials = searcher.ledger, searcher.problem.config.trials
        self.in_flight: deque[_Flight] = deque()
        self._asked = 0
        self._state: Mapping[str, Any] | None = None  # after the last proposal
        self._since = 0.0

    def replay(self) -> None:
        """Ask and tell what the journal holds in the order in which it happened, as far as there are trials."""
        for event in self.ledger.events.get(self.run.agent, []):
            if isinstance(event, Spent):
                if self.in_flight:
                    policies = self.in_flight.popleft().policies
                    self._tell(policies)
                    self.run.spend(len(policies), event)
            elif self._asked < self.trials:
                self.agent.resume(event.state)
                self._state = event.state
                self._take_off(_Flight(event.policies))

    def begin(self) -> None:
        """Have everything that is in flight judged."""
        self._since = time.perf_counter()
        for flight in self.in_flight:
            self.searcher.submit(flight.policies)

    def ask(self, seconds: float) -> bool:
        """Ask for as much as the pool takes; return whether anything was asked for."""
        asked = self._asked
        while self._asked < self.trials and len(self.in_flight) < self.searcher.pool.ahead:
            if self.searcher.stop():
                self.run.ended = "interrupted"
                break
            if self.run.seconds >= seconds:
                self.run.ended = "time"
                break
            start = time.perf_counter()
            policies = self.agent.ask(1)
            if not policies:
                self._exhausted()
                break
            self._state = self.agent.state()
            self.ledger.asked(self.run.agent, self._state, policies)
            self.searcher.submit(policies)
            self._take_off(_Flight(policies, time.perf_counter() - start))
        return self._asked > asked

    def land(self) -> None:
        """Wait for the oldest batch, and tell it."""
        flight = self.in_flight[0]
        judged = [self.searcher.judgement(policy) for policy in flight.policies]
        self.in_flight.popleft()
        self._tell(flight.policies)
        now = time.perf_counter()
        spent = Spent(flight.asking, sum(sum(each.seconds.values()) for each in judged), now - self._since)
        self._since = now
        self.ledger.told(self.run.agent, spent)
        self.run.spend(len(flight.policies), spent)

    def _take_off(self, flight: _Flight) -> None:
        self.in_flight.append(flight)
        self._asked += len(flight.policies)

    def _exhausted(self) -> None:
        """An agent may have more to propose once it is told what is in flight. It is then asked as one that was
        resumed would be: as if it had not been asked in vain."""
        if not self.in_flight:
            self.bar.total(len(self.run.evaluations))
            self.run.ended = "exhausted"
        elif self._state is not None:
            self.agent.resume(self._state)

    def _tell(self, policies: Sequence[Policy]) -> None:
        """Choose anew after every result, and tell the agent everything in the order asked."""
        run = self.run
        for policy in policies:
            run.evaluations.append(self.ledger.judged[policy.id])
            self.searcher.choose(run)
            self.agent.tell(run.evaluations[-1])
            self.bar.update(len(run.evaluations), f"best {run.best.said()}" if run.best else "none feasible yet")
