"""The best policy of the additive model by mixed-integer programming, then a search over the errors' weights."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from trimtab.agents.additive import Floats, Planner, Solver, planner_of
from trimtab.agents.base import CHECKED, Agent, Parameters, Score, stable_seed
from trimtab.agents.surrogate import LearnedErrors
from trimtab.agents.uniform import Uniform
from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.spaces import Policy
from trimtab.spaces.numbers.formats import INT8

__all__ = ["Milp", "MilpParameters", "Optimum", "optimise"]

_log = logging.getLogger(__name__)

#: What HiGHS may spend: nodes, which are the same on every machine, and seconds, in case they are not enough.
NODES = 20_000
SECONDS = 10.0

#: A relative gap below which an optimum counts as proven.
GAP = 1e-4

#: Share of the knobs that a local proposal may change, drawn between these, and what a change of another one costs.
FREE = (0.1, 0.6)
FAR = 1e3

#: What has its optimum proposed on its own: the knobs of a kind, or all of them in step.
PARTS = ("channels", "bits", "form", Uniform.name)

#: HiGHS's verdict that nothing is feasible.
INFEASIBLE = 2


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The optimum of the additive model: a vector, its `error` in nats, and a `bound` that no policy is below.

    `violation` is 0, or the least possible largest excess over a budget, as a share of it, where the model has no
    feasible policy; then `bound` is a bound on that. `seconds` is what the solver took.
    """

    vector: tuple[int, ...]
    error: float
    violation: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """How far the value may be from the optimum, relative to it."""
        value = self.violation if self.violation > 0 else self.error
        return max(value - self.bound, 0.0) / max(value, 1e-12)


def optimise(solver: Solver, allowed: Floats | None = None, seconds: float = SECONDS) -> Optimum:
    """Return the least error within allowed shares of the budgets (B,), default 1, or else the least violation.

    Two kinds of binary variables: one per layer and undominated choice of its table, one per channel group and width.
    A layer's choices at a width add up to the variable of that width. HiGHS (Huangfu and Hall 2018, Math. Prog. Comp.
    10) stops at a proven optimum, or at its limits with the gap that is left.
    """
    program = _Program(solver, np.ones(len(solver.model.budgets)) if allowed is None else allowed, seconds)
    return program.least_error() or program.least_violation()


@dataclass(frozen=True, config=CHECKED)
class MilpParameters(Parameters):
    """The parameters of `Milp`.

    HiGHS may take `seconds` for the first proposal. Proposals for the whole network are drawn as far as `caution` of
    the posterior's standard deviations from what is likeliest.
    """

    seconds: float = Field(SECONDS, gt=0)
    caution: float = Field(0.3, ge=0)


class Milp(Agent):
    """First the optimum of the additive model, those of its parts, then the optima of what is learned about its errors.

    The parts: channels alone, bits alone and forms alone, all else being as near to the network as given as is offered
    or, where that cannot meet the budgets, as in its int8 form; and the best uniform policy. What the whole model is
    wrong about may well be what a part of it does not touch.

    The additive model adds up what layers would lose if each were compressed alone. What it misses is learned from the
    told accuracies (`LearnedErrors`). Odd proposals are the best policy under errors drawn from near what is then the
    likeliest (Thompson sampling; for linear models Agrawal and Goyal 2013, arXiv:1209.3352). Even ones search around
    the best told policy, as SPDY does around its best weights (Frantar and Alistarh 2022, arXiv:2201.13096, section 3):
    a random subset of the knobs, all others staying as they are, is set as is best under errors drawn from all that is
    likely. Where a proposal is known already, its best new neighbour takes its place.
    """

    name: ClassVar[str] = "milp"
    needs_estimates: ClassVar[bool] = True
    takes: ClassVar[type[Parameters]] = MilpParameters

    def _start(self) -> None:
        self._best: tuple[float, list[int]] | None = None
        self._told: list[tuple[list[int], float]] = []

    @cached_property
    def planner(self) -> Planner:
        """The additive model and its solver; made when first needed."""
        return planner_of(self.space, self.limits, self.estimates)  # type: ignore[arg-type]

    @cached_property
    def optimum(self) -> Optimum:
        """The optimum of the additive model, under budgets corrected for what its costs are off by."""
        found = optimise(self.planner.solver, self.planner.allowed, self.parameters.seconds)
        _log.info("optimum of the additive model: %.4g nats, gap %.2g, %.1f s", found.error, found.gap, found.seconds)
        return found

    @cached_property
    def _learned(self) -> LearnedErrors:
        return LearnedErrors(self.planner.model)

    def _learn(self, policy: Policy, score: Score) -> None:
        try:
            vector = self.space.encode(policy)
        except BadInput:  # one from elsewhere, outside the space's choices, cannot be learned from
            return
        self._told.append((vector, score.accuracy))
        feasible = all(violation <= 0 for violation in score.violations.values())
        if feasible and (self._best is None or score.accuracy > self._best[0]):
            self._best = score.accuracy, vector

    def _propose(self, number: int) -> Policy | None:
        if number == 0:
            return self._first()
        if number <= len(PARTS) and (part := self._part(PARTS[number - 1])) is not None:
            return part
        while self._told:
            self._learned.tell(*self._told.pop(0))
        rng = np.random.default_rng(stable_seed(self.seed, self.name, number))
        errors, barriers = self._learned.draw(rng, self.parameters.caution), None
        if number % 2 == 0 and self._best is not None:
            errors = self._learned.draw(rng)
            kept = rng.random(len(self.space.knobs)) > rng.uniform(*FREE)
            barriers = FAR * self.planner.model.barriers(self._best[1], kept)
        policy, feasible = self.planner.policy(errors, barriers)
        return policy if feasible and self._repeats == 0 else self._near(policy, errors)

    def _part(self, kind: str) -> Policy | None:
        """Return the optimum over the knobs of one kind, or the best uniform policy; None where none is feasible."""
        if kind == Uniform.name:
            return next(iter(Uniform(self.space, self.limits, self.seed).ask(1)), None)
        model = self.planner.model
        kept = np.array([knob.kind != kind for knob in self.space.knobs])
        for rest in (self.space.uniform(), self.space.uniform(bits=INT8)):
            vector = np.array(self.space.encode(rest))
            policy, feasible = self.planner.policy(model.values[:, 0], FAR * model.barriers(vector, kept))
            if feasible and (np.array(self.space.encode(policy)) == vector)[kept].all():
                return policy
        return None

    def _near(self, policy: Policy, errors: Floats) -> Policy:
        """Return the neighbour of least error that is new, and feasible if there is any."""
        model = self.planner.model
        around = model.neighbours(self.space.encode(policy))
        within = (model.totals(around)[:, 1:] <= self.planner.allowed).all(axis=1)
        losses = np.where(within, errors[model.rows(around)].sum(axis=1), np.inf)
        for vector in around[np.argsort(losses, kind="stable")]:
            found = self.space.decode(vector.tolist())
            if found.id not in self._seen and self.limits.feasible(found):
                return found
        return policy

    def _first(self) -> Policy:
        """Return the optimum, or what is nearest to it under the true limits; where there is none, say how far off."""
        found = self.optimum
        policy = self.space.decode(found.vector)
        if self.limits.feasible(policy):
            return policy
        if found.violation == 0:
            return self.planner.policy(self.planner.model.values[:, 0])[0]
        try:
            return self.limits.project(policy)
        except InfeasibleBudget as error:
            model = self.planner.model
            shares = dict(zip(model.budgets, model.totals([found.vector])[0, 1:], strict=True))
            worst = max(shares, key=lambda budget: shares[budget])
            raise InfeasibleBudget(
                f"no policy meets the budgets: the least violation is {found.violation:.1%}, of budget {worst} (at "
                f"least {max(found.bound, 0.0):.1%} by the bound of the additive model); {error}"
            ) from error


class _Program:
    def __init__(self, solver: Solver, allowed: Floats, seconds: float) -> None:
        self.solver, self.allowed, self.seconds = solver, allowed, seconds
        self.started = time.perf_counter()
        self.values = solver.model.values[solver.entries]
        self.links, self.totals = self._links()

    def least_error(self) -> Optimum | None:
        """Return the optimum; None where nothing meets the budgets."""
        found = self._solve(self.values[:, 0], self.values[:, 1:].T, 0.0)
        if found.status == INFEASIBLE:
            return None
        near = self.solver.solve(allowed=self.allowed)
        bound = max(near.bound, -math.inf if found.mip_dual_bound is None else float(found.mip_dual_bound))
        if found.x is None:  # nothing found in time: the relaxation's solution, with the gap that is known
            violation = 0.0 if near.feasible else float((near.shares - self.allowed).max())
            return self._optimum(near.vector, near.error, violation, 0.0 if violation else bound)
        vector = self._vector(found.x)
        return self._optimum(vector, float(self.solver.model.totals([vector])[0, 0]), 0.0, bound)

    def least_violation(self) -> Optimum:
        """Return the policy whose largest excess over a budget is the least possible."""
        zeros = np.zeros(len(self.values))
        found = self._solve(zeros, self.values[:, 1:].T, 1.0)
        bound = 0.0 if found.mip_dual_bound is None else float(found.mip_dual_bound)
        vector = self.solver.solve(allowed=self.allowed).vector if found.x is None else self._vector(found.x)
        error, *shares = self.solver.model.totals([vector])[0]
        return self._optimum(vector, float(error), float((shares - self.allowed).max()), bound)

    def _optimum(self, vector: npt.NDArray[np.int64], error: float, violation: float, bound: float) -> Optimum:
        return Optimum(tuple(vector.tolist()), error, violation, bound, time.perf_counter() - self.started)

    def _solve(self, objective: Floats, shares: Floats, price: float) -> Any:
        """Minimise objective + price * excess over the budgets; a price of 0 allows no excess."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # here, so that importing the agents stays cheap
        from scipy.sparse import csr_array, hstack

        entries, columns = len(objective), self.links.shape[1]
        budgets = np.zeros((len(shares), columns + 1))
        budgets[:, :entries] = shares
        budgets[:, -1] = -1.0
        costs = np.concatenate([objective, np.zeros(columns - entries), [price]])
        links = hstack([self.links, csr_array((self.links.shape[0], 1))])
        constraints = [
            LinearConstraint(links, self.totals, self.totals),
            LinearConstraint(budgets, -np.inf, self.allowed - self.solver.model.rest[1:]),
        ]
        bounds = Bounds(np.zeros(columns + 1), np.append(np.ones(columns), math.inf if price else 0.0))
        left = max(self.seconds - (time.perf_counter() - self.started), 1.0)
        options = {"time_limit": left, "node_limit": NODES, "mip_rel_gap": GAP}
        integers = np.append(np.ones(columns), 0)
        return milp(costs, integrality=integers, bounds=bounds, constraints=constraints, options=options)

    def _links(self) -> tuple[Any, Floats]:
        """Return the equations between the variables, as a sparse matrix, and their right-hand sides."""
        from scipy.sparse import csr_array

        solver, factors = self.solver, self.solver.model.factors
        widths = {(int(knob), int(choice)): i for i, (knob, choice) in enumerate(solver.groups)}
        entries = len(self.values)
        rows: list[npt.NDArray[np.int64]] = []
        columns: list[npt.NDArray[np.int64]] = []
        signs: list[Floats] = []
        totals: list[float] = []

        def equation(terms: npt.NDArray[np.int64], negative: int | None, total: float) -> None:
            all_terms = terms if negative is None else np.append(terms, entries + negative)
            rows.append(np.full(len(all_terms), len(totals)))
            columns.append(all_terms)
            signs.append(np.where(np.arange(len(all_terms)) < len(terms), 1.0, -1.0))
            totals.append(total)

        for number, factor in enumerate(factors):
            own = np.flatnonzero(solver.owners == number)
            equation(own, None, 1.0)
            for axis, knob in enumerate(factor.shared):
                places = np.unravel_index(solver.entries[own] - factor.start, factor.shape)
                for choice in range(factor.shape[axis]):
                    equation(own[places[axis] == choice], widths[knob, choice], 0.0)
        shape = (len(totals), entries + len(widths))
        places_of = (np.concatenate(rows), np.concatenate(columns))
        return csr_array((np.concatenate(signs), places_of), shape=shape), np.array(totals)

    def _vector(self, x: Floats) -> npt.NDArray[np.int64]:
        solver = self.solver
        owners, chosen = solver.owners, x[: len(self.values)]
        order = np.lexsort((-chosen, owners))
        first = np.unique(owners[order], return_index=True)[1]
        return solver.vector(solver.entries[order[first]])
