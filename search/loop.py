"""The search loop: an agent asks, the pool judges, the journal remembers, the agent is told."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

from trimtab.agents import AGENTS
from trimtab.agents.base import Agent, Estimates
from trimtab.evaluators.bench import LatencyBench
from trimtab.evaluators.timing import Latency
from trimtab.search.budgets import BudgetLimits
from trimtab.search.evaluation import Evaluation, violations
from trimtab.search.ground import Ground
from trimtab.search.journal import Journal, Record
from trimtab.search.mirror import Mirror
from trimtab.search.pool import Pool
from trimtab.search.problem import Problem
from trimtab.search.progress import Bar, Progress
from trimtab.spaces.policy import Policy

__all__ = ["AgentRun", "Ledger", "Searcher"]


@dataclass
class AgentRun:
    """One agent's evaluations in the order in which it was told, and the best verified one so far."""

    agent: str
    evaluations: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None


@dataclass(frozen=True)
class _Batch:
    policies: tuple[Policy, ...]
    state: dict[str, object]


class Ledger:
    """The journal's contents by meaning: what was asked by whom, judged, and measured."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.batches: dict[str, list[_Batch]] = {}
        self.judged: dict[str, Evaluation] = {}
        self.latencies: dict[str, Latency] = {}
        self.seconds = 0.0
        for record in journal.records():
            self._replay(record)

    def _replay(self, record: Record) -> None:
        data = record.data
        if record.kind == "ask":
            policies = tuple(Policy.from_json(policy) for policy in data["policies"])
            self.batches.setdefault(data["agent"], []).append(_Batch(policies, data["state"]))
        elif record.kind == "result":
            evaluation = Evaluation.from_json(data)
            self.judged[evaluation.policy.id] = evaluation
        elif record.kind == "measured":
            self.latencies[data["policy"]] = Latency(**data["latency"])
        elif record.kind == "judging":
            self.seconds += data["seconds"]

    def asked(self, agent: Agent, policies: Sequence[Policy]) -> None:
        """Remember a batch, and the agent's state after asking, before anything is dispatched."""
        state = agent.state()
        self.journal.append("ask", {"agent": agent.name, "policies": [p.to_json() for p in policies], "state": state})

    def result(self, evaluation: Evaluation) -> None:
        """Remember a judged policy."""
        self.judged[evaluation.policy.id] = evaluation
        self.journal.append("result", evaluation.to_json())

    def measured(self, policy: Policy, latency: Latency) -> None:
        """Remember an end-to-end measurement."""
        self.latencies[policy.id] = latency
        self.journal.append("measured", {"policy": policy.id, "latency": asdict(latency)})

    def judging(self, seconds: float) -> None:
        """Add wall time spent on judging."""
        self.seconds += seconds
        self.journal.append("judging", {"seconds": seconds})


class Searcher:
    """Drives agents one after the other over the same limits, judge and cache of results."""

    def __init__(
        self,
        problem: Problem,
        ground: Ground,
        limits: BudgetLimits,
        bench: LatencyBench,
        pool: Pool,
        ledger: Ledger,
        estimates: Estimates | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.problem, self.ground, self.limits, self.estimates = problem, ground, limits, estimates
        self.bench, self.pool, self.ledger = bench, pool, ledger
        self.mirror = mirror

    def run(self, name: str, progress: Progress) -> AgentRun:
        """Let one agent make its trials; what the journal holds already is told again, not evaluated again."""
        trials = self.problem.config.trials
        agent = AGENTS[name](self.problem.space, self.limits, self.problem.config.seed, self.estimates)
        run = AgentRun(name)
        replayed = list(self.ledger.batches.get(name, []))
        with progress.bar(f"{name}: evaluations", trials) as bar:
            while len(run.evaluations) < trials:
                if replayed:
                    batch = replayed.pop(0)
                    self._evaluate(agent, batch.policies, run, bar)
                    self._copy(run, progress)
                    if not replayed:
                        agent.load(batch.state)
                    continue
                policies = agent.ask(min(max(self.pool.size, 1), trials - len(run.evaluations)))
                if not policies:
                    bar.total(len(run.evaluations))
                    break
                self.ledger.asked(agent, policies)
                self._evaluate(agent, policies, run, bar)
                self._copy(run, progress)
        return run

    def _copy(self, run: AgentRun, progress: Progress) -> None:
        if self.mirror is not None:
            self.mirror.follow(run.agent, run.evaluations, progress)

    def _evaluate(self, agent: Agent, policies: Sequence[Policy], run: AgentRun, bar: Bar) -> None:
        """Judge a batch, verify what would be the new best, and tell the agent everything in the order asked."""
        self._judge([policy for policy in policies if policy.id not in self.ledger.judged])
        for policy in policies:
            evaluation = self._with_latency(self.ledger.judged[policy.id])
            if evaluation.feasible and (run.best is None or evaluation.accuracy > run.best.accuracy):
                evaluation = self.verify(evaluation)
                if evaluation.verified:
                    run.best = evaluation
            run.evaluations.append(evaluation)
            agent.tell(policy, evaluation)
            best = f"best {run.best.accuracy:.2%}" if run.best else "none feasible yet"
            bar.update(len(run.evaluations), best)

    def _judge(self, policies: Iterable[Policy]) -> None:
        missing = list(policies)
        if not missing:
            return
        start = time.perf_counter()
        for policy, judgement in self.pool.judge(missing):
            cost = replace(self.limits.model.cost(policy), size=judgement.size)
            found = violations(cost, self.ground.limits)
            self.ledger.result(Evaluation(policy, judgement.accuracy, cost, found, judgement.seconds))
        self.ledger.judging(time.perf_counter() - start)

    def verify(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with its latency measured end to end, now or earlier."""
        policy = evaluation.policy
        if policy.id not in self.ledger.latencies:
            latency = self.bench.measure(policy, self.problem.config.measure.seconds)
            self.ledger.measured(policy, latency)
        return self._with_latency(evaluation)

    def _with_latency(self, evaluation: Evaluation) -> Evaluation:
        latency = self.ledger.latencies.get(evaluation.policy.id)
        if latency is None:
            return evaluation
        return evaluation.measured(latency, self.ground.base.latency, self.ground.limits)
