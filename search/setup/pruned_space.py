"""The pruned space: what every choice costs on this engine, measured, without those that gain nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.plan import Step
from trimtab.evaluators.price.table import LatencyTable
from trimtab.graph import Node
from trimtab.search.progress import Progress
from trimtab.search.setup.problem import Problem
from trimtab.spaces.forms.layer_forms import parse_form
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Choice, Knob, Removal, Space

__all__ = ["PricedChoice", "describe_space", "find_removals", "price_choices", "removals"]

#: A choice is faster where it takes at least this share off the time of the steps that it changes.
LEAST_GAIN = 0.01

#: Keep ratios at which a form is compared with the dense layer: one that pays at either is offered.
WIDTHS = (1.0, 0.5)


@dataclass(frozen=True)
class PricedChoice:
    """One choice of one knob, all else being uniform: `seconds` and `size` (bytes) of the whole network with it.

    `gain` is the share of time that it takes off the steps that it changes, beside the choice that is next to it
    towards the network as given; `why` says why the choice is not offered, and is empty where it is.
    """

    knob: str
    choice: str
    seconds: float
    size: int
    gain: float
    why: str = ""


def price_choices(model: CostModel, budgets: Collection[str]) -> list[PricedChoice]:
    """Price every choice of every knob, and find those that gain nothing under these budgets.

    A rank has to be faster than the dense layer where latency is limited. Every other choice has to be cheaper, in
    time or bytes as far as a budget limits them, than every choice that takes less away. Entries that the latency
    table lacks are measured.
    """
    pricer = _Pricer(model, frozenset(budgets) & {"latency", "size"})
    return [offer for knob in model.space.knobs for offer in pricer.priced(knob)]


def removals(priced: Sequence[PricedChoice]) -> tuple[Removal, ...]:
    """Return the choices that are not offered, as a space takes them."""
    return tuple(Removal(offer.knob, offer.choice, offer.why) for offer in priced if offer.why)


def find_removals(problem: Problem, table: LatencyTable, progress: Progress) -> tuple[Removal, ...]:
    """Return the choices that are pointless under a problem's budgets; none where its configuration keeps them all."""
    if not problem.config.space.drop_pointless:
        return ()
    removed = removals(_priced(CostModel(problem.space, table), problem.config.costs, progress))
    if removed:
        progress.line(f"{len(removed)} choices gain nothing on this engine and are not offered (trimtab space tells)")
    return removed


def describe_space(problem: Problem, progress: Progress) -> dict[str, Any]:
    """Return a problem's space as plain JSON values: `layers`, `groups`, `choices` (each a `PricedChoice`), and how
    many vectors there are before and after the choices that gain nothing have gone, as powers of ten."""
    config, space = problem.config, problem.space
    table = LatencyTable(make_engine(config.engine.name, config.engine.threads), space)
    model = CostModel(space, table)
    priced = _priced(model, config.costs, progress)
    kept = space.without(removals(priced)) if config.space.drop_pointless else space
    base = space.base()
    return {
        "network": space.fingerprint,
        "engine": table.engine.signature,
        "budgets": dict(config.budgets),
        "minimise": config.minimise,
        "layers": [_layer(space, op) for op in space.network.layers],
        "groups": [
            {"group": group.name, "channels": group.size, "members": sorted(group.members)} for group in space.groups
        ],
        "choices": [asdict(offer) for offer in priced],
        "base": {"seconds": model.total(base)[0], "size": model.size(base)},
        "digits": {"all": math.log10(space.size), "offered": math.log10(kept.size)},
        "dropped": config.space.drop_pointless,
    }


def _priced(model: CostModel, budgets: Collection[str], progress: Progress) -> list[PricedChoice]:
    with progress.bar("pricing the choices") as bar:
        model.table.filled = bar.update
        return price_choices(model, budgets)


def _layer(space: Space, op: Node) -> dict[str, Any]:
    return {
        "layer": op.name,
        "kind": op.kind,
        "shape": list(op.weight.shape) if op.is_layer else [],
        "group": next((group.name for group in space.groups if op.name in group.members), None),
        "fixed": op.name in space.options.fixed,
    }


class _Pricer:
    def __init__(self, model: CostModel, costs: frozenset[str]) -> None:
        self.model, self.costs = model, costs
        self.space: Space = model.space
        usual = self._usual_bits()
        self.vectors = {keep: self.space.encode(self.space.uniform(keep, usual)) for keep in WIDTHS}

    def priced(self, knob: Knob) -> list[PricedChoice]:
        policies = [self._with(knob, choice) for choice in knob.choices]
        found = []
        for i, choice in enumerate(knob.choices):
            policy = policies[i]
            finer = policies[-1] if knob.kind == "form" else policies[min(i + 1, len(policies) - 1)]
            why = "" if choice == knob.choices[-1] else self._why_pointless(knob, i, policies)
            seconds, size = self.model.get(policy, "latency"), int(self.model.get(policy, "size"))
            found.append(PricedChoice(knob.name, str(choice), seconds, size, self._gain(policy, finer), why))
        return found

    def _usual_bits(self) -> LayerFormat:
        """Those of the uniform int8 form where they are offered, else the widest: what all else is compared under."""
        offered = [knob.choices for knob in self.space.knobs if knob.kind == "bits"]
        int8 = not offered or any(INT8 in choices for choices in offered)
        return INT8 if int8 else offered[0][-1]  # type: ignore[return-value]

    def _with(self, knob: Knob, choice: Choice, keep: float = 1.0) -> Policy:
        vector = list(self.vectors[keep])
        vector[self.space.knobs.index(knob)] = knob.choices.index(choice)
        return self.space.decode(vector)

    def _why_pointless(self, knob: Knob, i: int, policies: Sequence[Policy]) -> str:
        if knob.kind == "form" and parse_form(str(knob.choices[i])).kind == "factorisation":
            return self._why_no_rank(knob, knob.choices[i]) if "latency" in self.costs else ""
        last = len(policies) - 1
        # Of a layer's forms only the dense one takes less away.
        for j in [last] if knob.kind == "form" else range(i + 1, last + 1):
            if knob.kind == "bits" and not _finer(knob.choices[j], knob.choices[i]):
                continue
            if why := self._why_not_cheaper(policies[i], policies[j]):
                return f"{why} than {knob.choices[j]}"
        return ""

    def _why_no_rank(self, knob: Knob, choice: Choice) -> str:
        gains = []
        for keep in WIDTHS:
            factorised, dense = self._with(knob, choice, keep), self._with(knob, knob.choices[-1], keep)
            if factorised != dense:  # narrow layers drop ranks that have no fewer weights
                gains.append(self._gain(factorised, dense))
        if any(gain >= LEAST_GAIN for gain in gains):
            return ""
        times = " and ".join(f"{1 - gain:.2f}x" for gain in gains)
        return f"not faster than dense: {times} of its time" if gains else "never smaller than dense"

    def _why_not_cheaper(self, policy: Policy, finer: Policy) -> str:
        """Why nothing that a budget limits is cheaper under `policy` than under `finer`; empty where something is."""
        reasons = []
        if "size" in self.costs:
            if self.model.get(policy, "size") < self.model.get(finer, "size"):
                return ""
            reasons.append("not smaller")
        if "latency" in self.costs:
            gain = self._gain(policy, finer)
            if gain >= LEAST_GAIN:
                return ""
            reasons.append(f"not faster ({1 - gain:.2f}x)")
        return " and ".join(reasons)

    def _gain(self, policy: Policy, other: Policy) -> float:
        """The share of time that a policy takes off the steps in which it differs from another."""
        ours, theirs = self.model.steps(policy), self.model.steps(other)
        before = self._seconds(theirs - ours)
        return 1 - self._seconds(ours - theirs) / before if before else 0.0

    def _seconds(self, steps: Counter[Step]) -> float:
        return sum(self.model.table.seconds(step) * count for step, count in steps.items())


def _finer(bits: Choice, than: Choice) -> bool:
    return isinstance(bits, LayerFormat) and isinstance(than, LayerFormat) and bits.is_finer_than(than)
