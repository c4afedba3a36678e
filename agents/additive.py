"""The additive model: error and costs as sums of tables over few knobs each, and quick solutions of it.

A layer's error and its shares of the budgets depend on its own knobs and on the channel groups that it reads and
writes. So a policy's error and costs are sums of tables, one per layer (a factor graph over the knobs), and the best
policy under the budgets is a matter of arithmetic: no network is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.agents.base import Estimates, Limits
from trimtab.spaces import Policy, Space
from trimtab.spaces.numbers.formats import INT8
from trimtab.spaces.space import coarse_choices

__all__ = ["CORRECTIONS", "AdditiveModel", "Factor", "Planner", "Solution", "Solver", "planner_of"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: The largest table of one layer, and the largest that eliminating a channel group may need on the way.
LARGEST = 4096

#: Rounds of the multipliers, the step of the first and of the last one, and rounds where good prices are known.
ROUNDS = 16
STEPS = (3.0, 0.03)
KNOWN_ROUNDS = 5

#: Solutions of the multipliers that are improved: the best that fits, and the nearest that do not.
STARTS = 2

#: The most moves with which a solution is improved after the multipliers are found.
MOVES = 40

#: Smaller differences of errors and shares are rounding.
TINY = 1e-12

#: The most solutions for one policy until it is feasible by the true limits, too.
CORRECTIONS = 4


@dataclass(frozen=True)
class Factor:
    """A table over some knobs, for one layer: rows `start`, `start` + 1, ... of the model's values, in C order.

    `shared` knobs, the channel groups, come before the layer's own ones, `private`.
    """

    layer: str
    shared: tuple[int, ...]
    private: tuple[int, ...]
    start: int
    shape: tuple[int, ...]

    @property
    def scope(self) -> tuple[int, ...]:
        """All knobs of the table, in the order of its axes."""
        return self.shared + self.private

    @property
    def size(self) -> int:
        """The number of rows."""
        return math.prod(self.shape)


class AdditiveModel:
    """Error and shares of the budgets, for any vector of the space.

    `values` (rows, 1 + B): a row for every entry of every factor, the error in nats and a share of each of the B
    `budgets` that are sums; `rest` (1 + B,) is what belongs to no layer.

    Errors are worked out at a few widths of every group (`coarse_choices`), and their roots interpolated between: these
    are deviations, and nearly linear in the channels that are gone. Shares are asked for at every width: an engine's
    time may have steps.

    A layer that depends on too many groups for a table has one over its own knobs and the last of its groups, and adds
    for each of the other groups what its counts change at a reference (half of the channels, 8 bits, dense): exact for
    each single group, and blind to how those others act together.
    """

    def __init__(self, space: Space, limits: Limits, estimates: Estimates) -> None:
        self.space = space
        self.sizes = np.array([len(knob.choices) for knob in space.knobs])
        shares = limits.shares(space.base())
        self.budgets = tuple(shares)
        self.rest = np.array([0.0, *(shares[budget].get("", 0.0) for budget in self.budgets)])
        self.factors, self.values = self._measure(limits, estimates)
        self._places = np.zeros((len(self.sizes), len(self.factors)))
        for i, factor in enumerate(self.factors):
            self._places[list(factor.scope), i] = _strides(factor.shape)
        self.starts = np.array([factor.start for factor in self.factors])

    def rows(self, vectors: npt.ArrayLike) -> Integers:
        """Return the rows of `values` that vectors (N, knobs) choose, (N, factors)."""
        places: Integers = (np.asarray(vectors, float) @ self._places).astype(np.int64)
        rows: Integers = places + self.starts
        return rows

    def totals(self, vectors: npt.ArrayLike) -> Floats:
        """Return error and shares of vectors (N, knobs), (N, 1 + B); a budget is met by a share of at most 1."""
        totals: Floats = self.rest + self.values[self.rows(vectors)].sum(axis=1)
        return totals

    def neighbours(self, vector: npt.ArrayLike) -> Integers:
        """Return all vectors that differ from one, (knobs,), in a single knob; (sum of choices - knobs, knobs)."""
        vector = np.asarray(vector)
        knobs = np.repeat(np.arange(len(self.sizes)), self.sizes)
        choices = np.concatenate([np.arange(size) for size in self.sizes])
        other = choices != vector[knobs]
        moved = np.tile(vector, (int(other.sum()), 1))
        moved[np.arange(len(moved)), knobs[other]] = choices[other]
        return moved

    def barriers(self, vector: npt.ArrayLike, kept: npt.NDArray[np.bool_]) -> Floats:
        """Return for every row how many of the `kept` knobs, (knobs,), it would change in a vector; (rows,)."""
        vector = np.asarray(vector)
        found = []
        for factor in self.factors:
            scope = list(factor.scope)
            choices = np.indices(factor.shape).reshape(len(scope), factor.size)
            found.append((choices != vector[scope, None])[kept[scope]].sum(axis=0))
        return np.concatenate(found).astype(float)

    def moves(self, vector: npt.ArrayLike) -> Integers:
        """Return all vectors that differ from one, (knobs,), in one group's width or one layer's own knobs."""
        vector = np.asarray(vector)
        moved = [self.neighbours(vector)]
        for factor in self.factors:
            if len(factor.private) > 1:
                own = np.tile(vector, (math.prod(factor.shape[len(factor.shared) :]), 1))
                own[:, list(factor.private)] = list(product(*(range(int(self.sizes[k])) for k in factor.private)))
                moved.append(own[(own != vector).sum(axis=1) > 1])
        return np.concatenate(moved)

    def _measure(self, limits: Limits, estimates: Estimates) -> tuple[list[Factor], Floats]:
        def shares(policy: Policy) -> Mapping[str, list[float]]:
            found = limits.shares(policy)
            return {name: [found[budget].get(name, 0.0) for budget in self.budgets] for name in self.space.scopes}

        def errors(policy: Policy) -> Mapping[str, list[float]]:
            return {name: [error] for name, error in estimates.errors(policy).items()}

        layers = list(self._layers())
        every = {knob: tuple(range(len(counts))) for knob, counts in self._counts.items()}
        coarse = {knob: coarse_choices(len(counts)) for knob, counts in self._counts.items()}
        factors: list[Factor] = []
        values: list[Floats] = []
        known = zip(layers, self._ask(layers, coarse, errors), self._ask(layers, every, shares), strict=True)
        for layer, at_coarse, at_every in known:
            table = np.concatenate([layer.interpolated(at_coarse, self._counts), at_every], axis=1)
            for shared, private, rows in layer.tables(table, self._reference):
                shape = tuple(int(self.sizes[knob]) for knob in shared + private)
                factors.append(Factor(layer.name, shared, private, sum(map(len, values)), shape))
                values.append(rows)
        return factors, np.concatenate(values)

    def _ask(
        self,
        layers: Sequence[_Layer],
        widths: Mapping[int, Sequence[int]],
        of: Callable[[Policy], Mapping[str, list[float]]],
    ) -> list[Floats]:
        """Return what policies are said to have `of` every layer, at its points with these widths of the groups."""
        points = [layer.points(widths, self._reference) for layer in layers]
        found: list[dict[int, list[float]]] = [{} for _ in layers]
        for vector, filled in _pack([layer.scope for layer in layers], points, self._reference):
            said = of(self.space.decode(vector.tolist()))
            for number, row in filled:
                found[number][row] = said[layers[number].name]
        return [np.array([rows[i] for i in range(len(rows))]) for rows in found]

    @cached_property
    def _counts(self) -> Mapping[int, Floats]:
        """The widths of every knob of channels, (choices,)."""
        knobs = enumerate(self.space.knobs)
        return {i: np.array([int(str(c)) for c in k.choices], float) for i, k in knobs if k.kind == "channels"}

    @cached_property
    def _reference(self) -> Integers:
        return np.array(self.space.encode(self.space.uniform(0.5, INT8)))

    def _layers(self) -> Iterator[_Layer]:
        """Choose every layer's table so that it is not too large, and groups can be eliminated one by one."""
        cliques: list[tuple[int, ...]] = []
        for position, (name, scope) in enumerate(self.space.scopes.items()):
            shared = tuple(knob for knob in scope if self.space.knobs[knob].kind == "channels")
            private = tuple(knob for knob in scope if knob not in shared)
            kept = next(
                kept for first in range(len(shared) + 1) if self._fits(kept := shared[first:], private, cliques)
            )
            cliques.append(kept)
            yield _Layer(name, position, shared[: len(shared) - len(kept)], kept, private, self.sizes)

    def _fits(self, shared: tuple[int, ...], private: tuple[int, ...], cliques: list[tuple[int, ...]]) -> bool:
        if not shared:
            return True
        if math.prod(int(self.sizes[knob]) for knob in shared + private) > LARGEST:
            return False
        return all(
            math.prod(int(self.sizes[knob]) for knob in axes) <= LARGEST
            for axes in _elimination([*cliques, shared], self.sizes)
        )


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's knobs: groups that only add `increments`, groups `kept` in its table, and its `private` ones."""

    name: str
    position: int
    increments: tuple[int, ...]
    kept: tuple[int, ...]
    private: tuple[int, ...]
    sizes: Integers

    @property
    def scope(self) -> tuple[int, ...]:
        return self.increments + self.kept + self.private

    def points(self, widths: Mapping[int, Sequence[int]], reference: Integers) -> Integers:
        """Return the choices of the knobs in `scope` at which the layer has to be known, (points, knobs).

        First those of its table in C order, then for each increment its choices with all else at the reference; of
        channels those in `widths`.
        """
        home = [int(reference[knob]) for knob in self.scope]
        free = [widths.get(knob, range(int(self.sizes[knob]))) for knob in self.kept + self.private]
        points = [[*home[: len(self.increments)], *choices] for choices in product(*free)]
        for axis, knob in enumerate(self.increments):
            points += [[*home[:axis], choice, *home[axis + 1 :]] for choice in widths[knob]]
        return np.array(points, dtype=np.int64).reshape(len(points), len(self.scope))

    def interpolated(self, errors: Floats, counts: Mapping[int, Floats]) -> Floats:
        """Return errors at the points of all widths, (points, 1), from those at the points of the coarse ones."""
        private = [int(self.sizes[knob]) for knob in self.private]
        coarse = [len(coarse_choices(len(counts[knob]))) for knob in self.kept]
        done, roots = math.prod([*coarse, *private]), np.sqrt(errors[:, 0])
        parts = [_between(roots[:done].reshape((*coarse, *private)), [counts[knob] for knob in self.kept])]
        for knob in self.increments:
            size = len(coarse_choices(len(counts[knob])))
            parts.append(_between(roots[done : done + size], [counts[knob]]))
            done += size
        return np.concatenate([part.ravel() for part in parts])[:, None] ** 2

    def tables(self, values: Floats, reference: Integers) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Floats]]:
        """Yield (shared, private, rows) of the layer's table and of each increment, from `values` at `points`."""
        done = math.prod(int(self.sizes[knob]) for knob in self.kept + self.private)
        yield self.kept, self.private, values[:done]
        for knob in self.increments:
            rows = values[done : done + int(self.sizes[knob])]
            yield (knob,), (), rows - rows[reference[knob]]
            done += len(rows)


def _between(values: Floats, counts: Sequence[Floats]) -> Floats:
    """Return values at all widths from those at the coarse ones, linearly; the first axes are those of `counts`."""
    for axis, widths in enumerate(counts):
        coarse = widths[list(coarse_choices(len(widths)))]
        weights = np.stack([np.interp(widths, coarse, unit) for unit in np.eye(len(coarse))], axis=1)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


def _pack(
    scopes: Sequence[tuple[int, ...]], points: Sequence[Integers], reference: Integers
) -> Iterator[tuple[Integers, list[tuple[int, int]]]]:
    """Yield vectors that together contain every point of every layer, each with its (layer, point) pairs.

    Every layer takes the first of its missing points that agrees with what the layers before it took. Neighbours
    begin at different points, so that a layer in floats is mostly priced between layers in integers.
    """
    orders = [np.roll(np.arange(len(rows)), -i) for i, rows in enumerate(points)]
    missing = [rows[order] for rows, order in zip(points, orders, strict=True)]
    while any(map(len, missing)):
        vector, filled = np.full(len(reference), -1), []
        for layer in sorted(range(len(scopes)), key=lambda i: -len(missing[i])):
            known = vector[list(scopes[layer])]
            fits = ((known < 0) | (missing[layer] == known)).all(axis=1)
            if fits.any():
                first = int(fits.argmax())
                vector[list(scopes[layer])] = missing[layer][first]
                filled.append((layer, int(orders[layer][first])))
                missing[layer], orders[layer] = np.delete(missing[layer], first, 0), np.delete(orders[layer], first)
        yield np.where(vector < 0, reference, vector), filled


def _strides(shape: tuple[int, ...]) -> Integers:
    """Return how far apart the entries of an array in C order are along each axis."""
    return np.cumprod([1, *shape[:0:-1]], dtype=np.int64)[::-1] if shape else np.zeros(0, dtype=np.int64)


def _undominated(entries: Floats) -> npt.NDArray[np.bool_]:
    """Return which rows of (N, D) no other row is at most as large as everywhere; of equal ones the first."""
    less = (entries[:, None] <= entries[None]).all(axis=2)  # row i is no worse than row j
    first = np.tri(len(entries), k=-1, dtype=bool).T  # i comes before j
    dominated: npt.NDArray[np.bool_] = (less & (~less.T | first)).any(axis=0)
    return ~dominated


def _elimination(cliques: Sequence[tuple[int, ...]], sizes: Integers) -> list[tuple[int, ...]]:
    """Return the order in which variables are eliminated, each followed by those that its table depends on.

    Greedy: the next one is that of the smallest table, the lowest of equals.
    """
    left = [set(clique) for clique in cliques if clique]
    order = []
    while left:
        tables = {
            knob: set().union(*(clique for clique in left if knob in clique)) for clique in left for knob in clique
        }
        knob = min(tables, key=lambda k: (math.prod(int(sizes[other]) for other in tables[k]), k))
        rest = tables[knob] - {knob}
        order.append((knob, *sorted(rest)))
        left = [clique for clique in left if knob not in clique]
        if rest:
            left.append(rest)
    return order


@dataclass(frozen=True, eq=False)
class Solution:
    """A vector with its `error` and `shares` (B,) by the model, and a `bound` that no solution's error is below.

    `prices` (B,) are the multipliers of the budgets that it was found with.

    Where the model found nothing that meets the budgets, `feasible` is False and the vector is the least violating.
    """

    vector: Integers
    error: float
    shares: Floats
    bound: float
    feasible: bool
    prices: Floats


@dataclass(frozen=True, eq=False)
class _Bucket:
    """The elimination of one channel group: which tables depend on it, and how they are laid over its axes."""

    axes: tuple[int, ...]
    factors: list[tuple[int, tuple[int, ...], tuple[int, ...]]]  # number, order of axes, shape
    messages: list[tuple[int, tuple[int, ...]]]  # number of the bucket, shape


class Solver:
    """Solves the additive model, with its own errors or others, in milliseconds and nearly to the optimum.

    Multipliers price the budgets. Under given prices the best choice of the layers' own knobs follows for each width,
    and that of the widths by elimination, one channel group after the other (min-sum, exact); the prices follow from
    how far the budgets are over- or underspent (Lagrangian relaxation, Everett 1963, Oper. Res. 11). What the
    relaxation leaves of the budgets is spent by the best single and paired moves.
    """

    def __init__(self, model: AdditiveModel) -> None:
        self.model = model
        self._prune()
        self._plan()

    def _prune(self) -> None:
        """Keep, of the choices of a layer's own knobs at given widths, those that no other is at least as good as."""
        rows: list[Integers] = []
        starts: list[int] = []
        configurations: list[int] = []
        count = 0
        for factor in self.model.factors:
            widths = math.prod(factor.shape[: len(factor.shared)])
            table = self.model.values[factor.start : factor.start + factor.size].reshape(
                widths, -1, self.model.values.shape[1]
            )
            configurations.append(len(starts))
            for width, entries in enumerate(table):
                kept = np.flatnonzero(_undominated(entries))
                starts.append(count)
                rows.append(factor.start + width * table.shape[1] + kept)
                count += len(kept)
        #: The rows of the model's values that are left, (entries,), and the first of each factor and width.
        self.entries: Integers = np.concatenate(rows)
        self.starts: Integers = np.array(starts)
        self.configurations: Integers = np.array([*configurations, len(starts)])
        self._shares = np.ascontiguousarray(self.model.values[self.entries, 1:].T)
        self.owners: Integers = np.repeat(
            np.repeat(np.arange(len(self.model.factors)), np.diff(self.configurations)), np.diff([*starts, count])
        )
        self._counts = np.diff([*starts, count])
        shared = sorted({knob for factor in self.model.factors for knob in factor.shared})
        #: Every (knob, choice) of the channel groups.
        self.groups = np.array([(k, c) for k in shared for c in range(int(self.model.sizes[k]))]).reshape(-1, 2)
        self._numbers = np.arange(count)
        self._places = np.zeros((len(self.model.sizes), len(self.model.factors)))
        for i, factor in enumerate(self.model.factors):
            self._places[list(factor.shared), i] = _strides(factor.shape[: len(factor.shared)])
        #: For every knob a factor that depends on it, and how far apart its choices are there.
        homes = {
            k: (i, d) for i, f in enumerate(self.model.factors) for k, d in zip(f.scope, _strides(f.shape), strict=True)
        }
        self._homes = np.array([homes[knob] for knob in range(len(self.model.sizes))]).T

    def _plan(self) -> None:
        factors, sizes = self.model.factors, self.model.sizes
        left = {i: factor.shared for i, factor in enumerate(factors) if factor.shared}
        messages: dict[int, tuple[int, ...]] = {}
        self._buckets: list[_Bucket] = []
        for number, axes in enumerate(_elimination([factor.shared for factor in factors], sizes)):
            bucket = _Bucket(axes, [], [])
            for i in [i for i, shared in left.items() if axes[0] in shared]:
                shared = left.pop(i)
                order = tuple(shared.index(knob) for knob in axes if knob in shared)
                bucket.factors.append((i, order, tuple(int(sizes[k]) if k in shared else 1 for k in axes)))
            for i in [i for i, scope in messages.items() if axes[0] in scope]:
                scope = messages.pop(i)
                bucket.messages.append((i, tuple(int(sizes[k]) if k in scope else 1 for k in axes)))
            if axes[1:]:
                messages[number] = axes[1:]
            self._buckets.append(bucket)

    def solve(
        self,
        errors: Floats | None = None,
        allowed: Floats | None = None,
        barriers: Floats | None = None,
        prices: Floats | None = None,
    ) -> Solution:
        """Return a policy of nearly least error within allowed shares of the budgets (B,), default 1.

        `errors` (rows,) stand for the model's own: anything that grows with them among the choices of one layer at
        the same widths, for only what no other choice there beats is looked at. `barriers` (rows,) are added to them
        to keep a solution from rows; that they are far larger does not disturb the search for the prices. `prices` (B,)
        are those of a solution under nearly the same budgets: then a third of the rounds will do.
        """
        errors = self.model.values[:, 0] if errors is None else errors
        allowed = np.ones(len(self.model.budgets)) if allowed is None else allowed
        steps = np.geomspace(*STEPS, ROUNDS)
        if prices is None:
            prices = np.full(len(allowed), self._first_price(errors[self.entries]))
        else:
            steps = steps[-KNOWN_ROUNDS:]
        errors = errors if barriers is None else errors + barriers
        entries = errors[self.entries]
        bound = -math.inf
        found: dict[bytes, tuple[float, float, Integers]] = {}
        for step in steps:
            value, rows = self._minimise(entries + prices @ self._shares)
            bound = max(bound, value + float(prices @ (self.model.rest[1:] - allowed)))
            shares = self._spent(rows)
            found[rows.tobytes()] = _excess(shares - allowed), float(errors[rows].sum()), rows
            prices = prices * np.exp(step * np.clip(shares - allowed, -1.0, 1.0))
        # Between the best that fits and the nearest that does not there may be a wide gap: both are worth a start.
        ordered = sorted(found.values(), key=lambda one: one[:2])
        starts = [rows for i, (excess, _, rows) in enumerate(ordered) if i == 0 or excess > 0][:STARTS]
        improved = [self._improve(rows, errors, allowed, prices) for rows in starts]
        best = min(improved, key=lambda one: (_excess(one.shares - allowed), one.error))
        return replace(best, bound=bound)

    def _first_price(self, errors: Floats) -> float:
        spread = np.maximum.reduceat(errors, self.starts) - np.minimum.reduceat(errors, self.starts)
        return float(np.median(spread) * len(self.model.factors)) or 1.0

    def _minimise(self, costs: Floats) -> tuple[float, Integers]:
        """Return the least sum of costs, (entries,), and the rows of the model's values that make it, (factors,)."""
        low = np.minimum.reduceat(costs, self.starts)
        first = self.configurations
        choices: list[Integers] = []
        messages: list[Floats] = []
        total = sum(float(low[first[i]]) for i, factor in enumerate(self.model.factors) if not factor.shared)
        for bucket in self._buckets:
            table: Any = 0.0
            for i, order, shape in bucket.factors:
                factor = self.model.factors[i]
                own = low[first[i] : first[i + 1]].reshape(factor.shape[: len(factor.shared)])
                table = table + own.transpose(order).reshape(shape)
            for i, shape in bucket.messages:
                table = table + messages[i].reshape(shape)
            choices.append(table.argmin(axis=0))
            messages.append(table.min(axis=0))
            if len(bucket.axes) == 1:
                total += float(messages[-1])
        vector = np.zeros(len(self.model.sizes), dtype=np.int64)
        for bucket, choice in zip(reversed(self._buckets), reversed(choices), strict=True):
            vector[bucket.axes[0]] = choice[tuple(vector[list(bucket.axes[1:])])]
        return total, self._cheapest(costs, low)[self._widths(vector)]

    def _cheapest(self, costs: Floats, low: Floats) -> Integers:
        """Return for every factor and width the row of its least cost, the first of equals; (configurations,)."""
        numbers = np.where(costs == np.repeat(low, self._counts), self._numbers, len(costs))
        return self.entries[np.minimum.reduceat(numbers, self.starts)]

    def _widths(self, vector: Integers) -> Integers:
        """Return for every factor the number of the configuration that holds a vector's widths; (..., factors)."""
        places: Integers = (vector @ self._places).astype(np.int64)
        return self.configurations[:-1] + places

    def vector(self, rows: Integers) -> Integers:
        """Return the vector that chooses these rows of the model's values, (factors,); they must agree."""
        factor, stride = self._homes
        vector: Integers = (rows - self.model.starts)[factor] // stride % self.model.sizes
        return vector

    def _spent(self, rows: Integers) -> Floats:
        spent: Floats = self.model.rest[1:] + self.model.values[rows, 1:].sum(axis=0)
        return spent

    def _improve(self, rows: Integers, errors: Floats, allowed: Floats, prices: Floats) -> Solution:
        """Make the best single move, or where there is none the best pair of moves, until nothing improves.

        A move changes a layer's own knobs, or a group's width, with or without the own knobs of its layers.
        """
        costs = errors[self.entries] + prices @ self._shares
        cheapest = self._cheapest(costs, np.minimum.reduceat(costs, self.starts))
        for _ in range(MOVES):
            moved = self._moves(rows, cheapest)
            shares = (self.model.values[moved, 1:] - self.model.values[rows, 1:]).sum(axis=1)
            gains = np.stack([(errors[moved] - errors[rows]).sum(axis=1), *shares.T])
            slack = allowed - self._spent(rows)
            step = _best_move(gains, slack)
            if step is not None:
                rows = moved[step]
                continue
            differs = (moved != rows).astype(np.float32)
            pair = _best_pair(gains, slack, differs @ differs.T == 0)
            if pair is None:
                break
            rows = np.where(moved[pair[0]] != rows, moved[pair[0]], moved[pair[1]])
        shares = self._spent(rows)
        fits = bool((shares <= allowed).all())
        return Solution(self.vector(rows), float(errors[rows].sum()), shares, -math.inf, fits, prices)

    def _moves(self, rows: Integers, cheapest: Integers) -> Integers:
        """Return the rows after every single move, (moves, factors)."""
        vector = self.vector(rows)
        widths = self._widths(vector)
        counts = self._counts[widths]
        owner = np.repeat(np.arange(len(rows)), counts)
        own = np.tile(rows, (len(owner), 1))
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        own[np.arange(len(own)), owner] = self.entries[self.starts[widths][owner] + within]
        moved = [own]
        if len(self.groups):
            vectors = np.tile(vector, (len(self.groups), 1))
            vectors[np.arange(len(vectors)), self.groups[:, 0]] = self.groups[:, 1]
            moved.append(self.model.rows(vectors))
            places = self._widths(vectors)
            moved.append(np.where(places != widths, cheapest[places], rows))
        every = np.concatenate(moved)
        changed: Integers = every[(every != rows).any(axis=1)]
        return changed


class Planner:
    """Turns errors into policies that meet the true limits.

    The model's costs are sums, the true ones only nearly: what the model is off by, at the best policy by its own
    errors and then at each solution, is taken off the budgets before the next one.
    """

    def __init__(self, space: Space, limits: Limits, estimates: Estimates) -> None:
        self.space = space
        self.limits = limits
        self.model = AdditiveModel(space, limits, estimates)
        self.solver = Solver(self.model)
        self.allowed = np.ones(len(self.model.budgets))
        _, _, self.allowed = self._solved(self.model.values[:, 0])

    def policy(self, errors: Floats, barriers: Floats | None = None) -> tuple[Policy, bool]:
        """Return a policy of nearly least error, as `Solver.solve` takes them, and whether it meets the limits."""
        policy, feasible, _ = self._solved(errors, barriers)
        return policy, feasible

    def _solved(self, errors: Floats, barriers: Floats | None = None) -> tuple[Policy, bool, Floats]:
        allowed, prices = self.allowed, None
        for _ in range(CORRECTIONS):
            solution = self.solver.solve(errors, allowed, barriers, prices)
            prices = solution.prices
            policy = self.space.decode(solution.vector.tolist())
            if self.limits.feasible(policy):
                return policy, True, allowed
            allowed = np.minimum(allowed, self.corrected(policy, solution.vector))
        return policy, False, allowed

    def corrected(self, policy: Policy, vector: Integers) -> Floats:
        """Return the shares that the model may spend, (B,), if it is off as at this policy of this vector."""
        truth = self.limits.violations(policy)
        shares = self.model.totals(vector[None])[0, 1:]
        return 1 - TINY - (np.array([truth[budget] + 1 for budget in self.model.budgets]) - shares)


@lru_cache(maxsize=4)
def planner_of(space: Space, limits: Limits, estimates: Estimates) -> Planner:
    """Return the planner of these very objects; filling its tables takes seconds, and agents may share it."""
    return Planner(space, limits, estimates)


def _excess(over: Floats) -> float:
    return float(np.maximum(over, 0).sum())


def _best_move(gains: Floats, slack: Floats) -> int | None:
    """Return the move of the least error that meets the budgets; None where none improves.

    `gains` (1 + B, moves): what each adds to the error and to the shares; `slack` (B,) is left of the budgets. Where
    they are overspent, the move that meets them, or else the one that saves the most per error that it adds.
    """
    over = np.maximum(gains[1:].T - slack, 0).sum(axis=1)
    excess = float(np.maximum(-slack, 0).sum())
    fits = over <= 0
    if fits.any():
        best = int(np.where(fits, gains[0], np.inf).argmin())
        return best if excess > 0 or gains[0, best] < -TINY else None
    saved = excess - over
    if excess > 0 and (saved > TINY).any():
        return int(np.where(saved > TINY, saved / np.maximum(gains[0], TINY), -np.inf).argmax())
    return None


def _best_pair(gains: Floats, slack: Floats, apart: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return the pair of moves that are `apart` (moves, moves) that lowers the error most; None where none does."""
    lower = gains[0][:, None] + gains[0]
    fits = apart & (lower < -TINY)
    for budget, left in enumerate(slack, 1):
        fits &= gains[budget][:, None] + gains[budget] <= left
    if not fits.any():
        return None
    first, second = np.unravel_index(int(np.where(fits, lower, np.inf).argmin()), lower.shape)
    return int(first), int(second)
