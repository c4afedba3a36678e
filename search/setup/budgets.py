"""Budgets: what the user asked for, as limits that no proposal may exceed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import BadInput, InfeasibleBudget, unknown_name
from trimtab.evaluators.price.cost import CostModel
from trimtab.spaces.policy import Policy

__all__ = ["BUDGETS", "Budget", "BudgetLimits", "describe", "parse_budget", "resolve"]


@dataclass(frozen=True)
class _Kind:
    """A kind of budget: the units that it may be given in, as multiples of that of `Cost`, and the one that it is shown
    in; an example; whether it is a sum over layers."""

    units: Mapping[str, float]
    unit: str
    example: str
    is_sum: bool = True


_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6}
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "KiB": 1024, "MiB": 1024**2}
_MACS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "MMAC": 1e6, "GMAC": 1e9}

#: By the name of the field of `Cost` that it limits.
_KINDS = {
    "latency": _Kind(_TIME, "ms", "3 ms"),
    "size": _Kind(_BYTES, "KiB", "120 KiB"),
    "macs": _Kind(_MACS, "MMAC", "20 M"),
    "memory": _Kind(_BYTES, "KiB", "64 KiB", is_sum=False),
}

BUDGETS = tuple(_KINDS)

#: What is shown with a unit, too, and is no cost.
_SHOWN = {**_KINDS, "accuracy": _Kind({"points": 0.01}, "points", "-1.0", is_sum=False)}

_FORM = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*([A-Za-zµμ]*)\s*(int8)?\s*")


#: The most rounds over all knobs before a budget is called impossible.
PASSES = 4


@dataclass(frozen=True)
class Budget:
    """One budget as given: `value` times the base network's ("base"), times its uniform int8 form's ("int8"), or
    absolute ("absolute": seconds, bytes, MACs)."""

    name: str
    value: float
    relative_to: str
    text: str


def parse_budget(name: str, text: object) -> Budget:
    """Read "0.2x", "0.6x int8", "3 ms", "120 KiB" or "20 M"; anything else is a `BadInput` that shows the forms."""
    if name not in BUDGETS:
        raise unknown_name("budget", name, BUDGETS)
    units = _KINDS[name].units
    forms = f"like '0.5x', '0.6x int8' or {_KINDS[name].example!r}"
    number_or_text = isinstance(text, str | int | float) and not isinstance(text, bool)
    match = _FORM.fullmatch(text if isinstance(text, str) else repr(text)) if number_or_text else None
    if match is None:
        raise BadInput(f"budget {name}: {text!r} is not a budget; write it {forms}")
    unit, int8 = match[2], match[3]
    number = float(match[1]) * units.get(unit, 1.0)
    if not (math.isfinite(number) and number > 0):
        raise BadInput(f"budget {name}: {text!r} has to be a finite number, and more than zero")
    if unit == "x":
        return Budget(name, number, "int8" if int8 else "base", str(text))
    if int8 or unit not in units:
        known = ", ".join(repr(u) for u in units if u)
        raise BadInput(f"budget {name}: {text!r} has no unit that is known ({known} or 'x'); write it {forms}")
    return Budget(name, number, "absolute", str(text))


def resolve(budgets: Sequence[Budget], base: Mapping[str, float], int8: Mapping[str, float]) -> dict[str, float]:
    """Return each budget's limit in seconds, bytes or MACs, given the costs of the base and of its int8 form."""
    references = {"base": base, "int8": int8}
    return {
        b.name: b.value if b.relative_to == "absolute" else b.value * references[b.relative_to][b.name] for b in budgets
    }


def describe(name: str, value: float) -> str:
    """Return a cost, or a loss of accuracy, with its unit: "0.123 ms", "61.2 KiB", "20.3 MMAC", "0.5 points"."""
    kind = _SHOWN[name]
    return f"{value / kind.units[kind.unit]:.4g} {kind.unit}"


class BudgetLimits:
    """The feasible set: says whether a policy fits by its predicted cost, and moves one that does not until it does.

    `limits` are the largest values of `Cost` that are allowed, by the budget's name: seconds of latency, bytes of size
    and memory, and MACs. `margin`, a share in [0, 1), is taken off the latency limit, because predictions have an error
    that the measurement will not forgive. `confirm` measures a policy's latency end to end, in seconds, before a
    latency budget is called impossible.
    """

    def __init__(
        self,
        model: CostModel,
        limits: Mapping[str, float],
        margin: float = 0.0,
        seed: int = 0,
        confirm: Callable[[Policy], float] | None = None,
    ) -> None:
        self.model = model
        self.space = model.space
        self.limits = dict(limits)
        self.margin = margin
        self.seed = seed
        self.confirm = confirm
        self.cheapest = self._find_cheapest()

    def under(self, name: str, limit: float) -> BudgetLimits:
        """Return the limits with one more, or another one, for a cost; one that cannot be met is an
        `InfeasibleBudget`."""
        return BudgetLimits(self.model, {**self.limits, name: limit}, self.margin, self.seed)

    def violations(self, policy: Policy) -> Mapping[str, float]:
        """Return for every budget predicted cost / limit - 1; at most 0 where it is met."""
        return {name: self.model.get(policy, name) / self._allowed(name) - 1 for name in self.limits}

    def shares(self, policy: Policy) -> Mapping[str, Mapping[str, float]]:
        """Return budget -> layer -> predicted cost / limit, with "" for what is no layer's; see `agents.Limits`."""
        return {
            name: {layer: cost / self._allowed(name) for layer, cost in self.model.by_layer(policy, name).items()}
            for name in self.limits
            if _KINDS[name].is_sum
        }

    def _allowed(self, name: str) -> float:
        return self.limits[name] * (1 - self.margin) if name == "latency" else self.limits[name]

    def feasible(self, policy: Policy) -> bool:
        """Whether every budget is met."""
        return all(v <= 0 for v in self.violations(policy).values())

    def project(self, policy: Policy) -> Policy:
        """Return a feasible policy near this one; a feasible one comes back unchanged.

        One knob at a time, in an order drawn from the policy's identity, moves one choice towards the cheapest
        policy; the first feasible policy on that way is found by bisection, and then moves that were not needed are
        taken back. The way ends at the cheapest policy, so it always arrives.
        """
        if self.feasible(policy):
            return policy
        start, end = self.space.encode(policy), self.space.encode(self.cheapest)
        moves = [i for i, (a, b) in enumerate(zip(start, end, strict=True)) for _ in range(abs(a - b))]
        rng = np.random.default_rng([self.seed, int(policy.id, 16)])
        moves = [int(i) for i in rng.permutation(moves)]
        few, enough = 0, len(moves)
        while enough - few > 1:
            middle = (few + enough) // 2
            if self.feasible(self._moved(start, end, moves[:middle])):
                enough = middle
            else:
                few = middle
        return self._relax(start, end, moves[:enough])

    def _relax(self, start: list[int], end: list[int], moves: list[int]) -> Policy:
        best = self._moved(start, end, moves)
        for tried in range(min(len(moves), 12)):
            fewer = moves[:tried] + moves[tried + 1 :]
            policy = self._moved(start, end, fewer)
            if self.feasible(policy):
                best, moves = policy, fewer
        # Ranks that stop paying make the way uneven: the end of it is feasible for certain.
        return best if self.feasible(best) else self.cheapest

    def _moved(self, start: list[int], end: list[int], moves: Sequence[int]) -> Policy:
        vector = list(start)
        for knob in moves:
            vector[knob] += 1 if end[knob] > vector[knob] else -1
        return self.space.decode(vector)

    def smallest(self, name: str) -> tuple[Policy, float]:
        """Return the policy with the smallest predicted cost of one kind that descent finds, and that cost."""

        def cost(policy: Policy) -> float:
            return self.model.get(policy, name)

        policy = self._polish(self._descend(cost), cost)
        return policy, self.model.get(policy, name)

    def _find_cheapest(self) -> Policy:
        policy = self._descend(self._excess)
        if not self.feasible(policy):
            policy = self._polish(policy, self._excess)
        if not self.feasible(policy):
            raise InfeasibleBudget(self._why_infeasible(policy))
        return policy

    def _excess(self, policy: Policy) -> float:
        violations = self.violations(policy).values()
        total = sum(max(v, 0.0) for v in violations)
        return total if total > 0 else max(violations, default=-1.0)

    def _why_infeasible(self, nearest: Policy) -> str:
        lines = []
        for name, limit in self.limits.items():
            policy, reachable = self.smallest(name)
            if name == "latency" and self.confirm is not None:
                reachable = self.confirm(policy)
            if name == "latency" and limit * (1 - self.margin) < reachable <= limit:
                lines.append(
                    f"budget latency = {describe(name, limit)} is too tight to be verified: the smallest reachable "
                    f"latency in this space is {describe(name, reachable)}, and what is measured here is known to "
                    f"within {self.margin:.1%} only"
                )
            elif reachable > limit:
                lines.append(
                    f"budget {name} = {describe(name, limit)} cannot be met: the smallest reachable {name} in this "
                    f"space is {describe(name, reachable)} ({reachable / limit:.3g} times the budget)"
                )
        if lines:
            return "; ".join(lines)
        over = self.violations(nearest)
        worst = max(over, key=lambda name: over[name])
        reached = describe(worst, self.model.get(nearest, worst))
        if worst == "latency" and self.model.get(self.smallest(worst)[0], worst) > self.limits[worst]:
            return (
                f"budget latency = {describe(worst, self.limits[worst])} is too tight to search under: the fastest "
                f"network measures {describe(worst, self.confirm(self.smallest(worst)[0]) if self.confirm else 0.0)}, "
                f"but is predicted to need {reached}"
            )
        return (
            f"each budget can be met, but not all at once: the nearest policy found needs {worst} = {reached}, "
            f"{describe(worst, self.limits[worst])} is allowed"
        )

    def _descend(self, cost: Callable[[Policy], float]) -> Policy:
        """Coordinate descent over forms; all other knobs mostly get cheaper downwards, and start lowest."""
        vector = [len(k.choices) - 1 if k.kind == "form" else 0 for k in self.space.knobs]
        best = self.space.decode(vector)
        lowest = cost(best)
        for i, knob in enumerate(self.space.knobs):
            if knob.kind != "form":
                continue
            for choice in range(len(knob.choices) - 1):
                trial = [*vector[:i], choice, *vector[i + 1 :]]
                policy = self.space.decode(trial)
                if (value := cost(policy)) < lowest:
                    vector, best, lowest = trial, policy, value
        return best

    def _polish(self, policy: Policy, cost: Callable[[Policy], float]) -> Policy:
        """Coordinate descent over every knob until nothing improves, before anything is called impossible.

        On some engines int8, or a narrower layer, is not the faster one.
        """
        vector, best, lowest = self.space.encode(policy), policy, cost(policy)
        for _ in range(PASSES):
            before = lowest
            for i, knob in enumerate(self.space.knobs):
                for choice in range(len(knob.choices)):
                    trial = [*vector[:i], choice, *vector[i + 1 :]]
                    other = self.space.decode(trial)
                    if (value := cost(other)) < lowest:
                        vector, best, lowest = trial, other, value
            if lowest == before:
                break
        return best
