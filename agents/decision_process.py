"""The decision process of an episode: a policy is decided layer by layer, and no decision may take what the rest needs.

He et al. 2018 (AMC, arXiv:1802.03494): the state of section 3.1 and the bound on actions of algorithm 1, here for every
knob of a layer and every budget that is a sum over layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from trimtab.agents.base import Limits
from trimtab.graph import Array, Node
from trimtab.spaces import Policy, Space
from trimtab.spaces.factorisation import Geometry, parts_of
from trimtab.spaces.factorisation.geometry import total_macs

__all__ = ["DecisionProcess", "Episode", "Prices", "Step", "choice_of", "describe_layers", "level_of"]

#: Sums of shares stay so far below one: the limits may add them in another order.
ROUNDING = 1e-9

#: The order in which the knobs of one layer are decided, which is that of the action's entries.
KINDS = ("channels", "bits", "form")


def choice_of(level: float, choices: int) -> int:
    """Return the choice that an action in [0, 1] stands for, each having an equal part of the interval."""
    return min(int(level * choices), choices - 1)


def level_of(choice: int, choices: int) -> float:
    """Return the action in the middle of a choice's part of the interval."""
    return (choice + 0.5) / choices


def bend(action: float, middle: float) -> float:
    """Return the level that an action stands for if 0, 1/2 and 1 stand for 0, `middle` and 1."""
    return 2 * action * middle if action < 0.5 else middle + (2 * action - 1) * (1 - middle)


def unbend(level: float, middle: float) -> float:
    """Return the action that stands for a level."""
    return level / (2 * middle) if level < middle else 0.5 + (level - middle) / (2 * (1 - middle))


class Prices:
    """Each layer's share of every budget, asked for once for every combination of the knobs that it depends on."""

    def __init__(self, space: Space, limits: Limits) -> None:
        self.space = space
        self.limits = limits
        base = limits.shares(space.base())
        self.budgets = tuple(base)
        #: The shares of what belongs to no layer, (budgets,).
        self.constant = np.array([base[budget].get("", 0.0) for budget in self.budgets])
        self._scopes = list(space.scopes.items())
        self._known: list[dict[tuple[int, ...], Array]] = [{} for _ in self._scopes]

    def layer(self, index: int, vector: Sequence[int]) -> Array:
        """Return the shares of layer number `index` under a vector, (budgets,)."""
        key = tuple(vector[knob] for knob in self._scopes[index][1])
        shares = self._known[index].get(key)
        if shares is None:
            self._ask(vector)
            shares = self._known[index][key]
        return shares

    def layers(self, vector: Sequence[int]) -> Array:
        """Return the shares of all layers, (layers, budgets)."""
        return np.stack([self.layer(index, vector) for index in range(len(self._scopes))])

    def total(self, layers: Array) -> Array:
        """Return the sum over layers and what belongs to none, (budgets,): at most 1 where a budget is met."""
        return np.asarray(self.constant + layers.sum(0))

    def _ask(self, vector: Sequence[int]) -> None:
        shares = self.limits.shares(self.space.decode(vector))
        for known, (layer, scope) in zip(self._known, self._scopes, strict=True):
            key = tuple(vector[knob] for knob in scope)
            known.setdefault(key, np.array([shares[budget].get(layer, 0.0) for budget in self.budgets]))


@dataclass(frozen=True)
class Step:
    """One step of an episode: a layer's number, and the knobs decided there, each with its place in the action."""

    layer: int
    knobs: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Decided:
    """A layer whose knobs are all decided: its MACs, and its form as `Space.encode` would read it back."""

    macs: int
    form: int


class DecisionProcess:
    """The steps through a space's layers, and what is seen at each of them.

    A channel group is decided at the first layer that reads or writes it; layers at which nothing is left to decide are
    no steps. An action (`slots`,) in [0, 1] has an entry for channels, one for bits and one for the form, as far as
    the space has such knobs, and more for channels where a layer is the first of several groups. What a layer has no
    knob for is ignored.

    The state (`len(features)`,) in [0, 1] is AMC's: of the step's untouched layer its place, channels, feature map,
    stride, kernel and MACs, each in parts of the largest; of the MACs of the untouched network, how many were saved
    before this layer and how many come after it; and the last action. Added are the share of the layer's input channels
    that is kept, and for every budget what the layers before spend of it, and what is left of it with everything
    undecided as `reserve` has it.
    """

    def __init__(self, space: Space, limits: Limits) -> None:
        self.space = space
        self.limits = limits
        self.layers = space.network.layers
        self.prices = Prices(space, limits)
        self.steps = _steps(space)
        self.slots = 1 + max(slot for step in self.steps for slot in step.slots)
        self.sizes = [len(knob.choices) for knob in space.knobs]
        scopes = list(space.scopes.values())
        #: For every knob the numbers of the layers whose costs depend on it.
        self.concerned = [[i for i, scope in enumerate(scopes) if knob in scope] for knob in range(len(space.knobs))]
        self.shapes = describe_layers(space, [step.layer for step in self.steps])
        self.macs = np.array([_macs(space, op) for op in self.layers], dtype=np.float64)
        self._decided: dict[tuple[int, ...], Decided] = {}

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The names of the state's entries."""
        budgets = [f"{what} {budget}" for budget in self.prices.budgets for what in ("spent", "room")]
        return (*SHAPE, "saved", "rest", "kept inputs", *budgets, *(f"last action {i}" for i in range(self.slots)))

    @cached_property
    def reserve(self) -> list[int]:
        """What is undecided counts as being like this feasible vector, so this much is kept for it.

        AMC keeps as little as the rest can do with. Under tight budgets that lets the first layers take all there is,
        and every episode ends with a network that is wide in front and starved behind. So it is the least compressed
        feasible policy that treats all layers alike; where there is none, one that is about as cheap as may be. Raises
        `trimtab.errors.InfeasibleBudget` where the limits have no feasible policy.
        """
        alike = [vector for vector in self._alike() if self._fits(vector)]
        vector = max(alike, key=self._least_kept, default=None) or self._cheapest()
        return self.space.encode(self.limits.project(self.space.decode(vector)))

    def _alike(self) -> Iterator[list[int]]:
        """Yield the vectors with one level of channels and one of bits for all layers, none of them factorised."""
        kinds = [knob.kind for knob in self.space.knobs]
        finest = {
            kind: max((n for n, k in zip(self.sizes, kinds, strict=True) if k == kind), default=1) for kind in KINDS
        }
        for channels, bits in product(range(finest["channels"]), range(finest["bits"])):
            levels = {"channels": level_of(channels, finest["channels"]), "bits": level_of(bits, finest["bits"])}
            yield [choice_of(levels.get(kind, 1.0), size) for kind, size in zip(kinds, self.sizes, strict=True)]

    def _fits(self, vector: Sequence[int]) -> bool:
        return bool((self.prices.total(self.prices.layers(vector)) <= 1 - ROUNDING).all())

    def _least_kept(self, vector: Sequence[int]) -> tuple[float, float]:
        """How far up the knobs are in their ranges, the lowest first: a wide network of float32 gains little by it."""
        kept = [level_of(choice, size) for choice, size in zip(vector, self.sizes, strict=True)]
        return min(kept), sum(kept)

    def _cheapest(self) -> list[int]:
        forms = [i for i, knob in enumerate(self.space.knobs) if knob.kind == "form"]
        vector = [self.sizes[i] - 1 if i in forms else 0 for i in range(len(self.sizes))]
        for knob in forms:  # of narrow layers, the one of fewest weights need not be the fastest
            trials = [[*vector[:knob], form, *vector[knob + 1 :]] for form in range(self.sizes[knob])]
            vector = min(trials, key=lambda trial: self.prices.total(self.prices.layers(trial)).max(initial=0.0))
        return vector

    def choice(self, knob: int, action: float) -> int:
        """Return the choice of a knob that an action in [0, 1] stands for: 1/2 is what is kept in reserve for it."""
        return choice_of(bend(action, self._middle(knob)), self.sizes[knob])

    def action(self, knob: int, choice: int) -> float:
        """Return the action for a choice of a knob."""
        return unbend(level_of(choice, self.sizes[knob]), self._middle(knob))

    def _middle(self, knob: int) -> float:
        return level_of(self.reserve[knob], self.sizes[knob])

    def replay(self, policy: Policy) -> tuple[Array, Array]:
        """Return the episode that makes a policy: states (steps + 1, features) and actions (steps, slots).

        The policy need not be feasible. One outside the space is a `BadInput`.
        """
        vector = self.space.encode(policy)
        episode = Episode(self)
        states, actions = [episode.state()], []
        for step in self.steps:
            actions.append(episode.decide([vector[knob] for knob in step.knobs]))
            states.append(episode.state())
        return np.stack(states), np.stack(actions)

    def decided(self, index: int, vector: Sequence[int]) -> Decided:
        """Return what is known of layer number `index` once its knobs are decided."""
        layer = self.layers[index].name
        key = (index, *(vector[knob] for knob in self.space.scopes[layer]))
        if key not in self._decided:
            self._decided[key] = self._decide(self.layers[index], vector)
        return self._decided[key]

    def _decide(self, op: Node, vector: Sequence[int]) -> Decided:
        policy = self.space.decode(vector)
        widths = self.space.widths(policy.channels)
        form = next((i for i, knob in enumerate(self.space.knobs) if knob.name == f"form:{op.name}"), None)
        same = 0
        if form is not None:
            policies = [self.space.decode([*vector[:form], i, *vector[form + 1 :]]) for i in range(self.sizes[form])]
            same = max(i for i, other in enumerate(policies) if other.layers[op.name] == policy.layers[op.name])
        decision = policy.layers[op.name]
        layer = Geometry.of(op, widths[op.inputs[0]], widths[op.name])
        parts = parts_of(layer, decision.factorisation, decision.rank)
        return Decided(total_macs(parts, (layer.inputs, *self.space.network.shapes[op.inputs[0]][1:])), same)


class Episode:
    """One episode under way. `vector` is what is decided, everything else being as it is reserved."""

    def __init__(self, process: DecisionProcess) -> None:
        self.process = process
        self.vector = list(process.reserve)
        self.position = 0
        self._layers = process.prices.layers(self.vector)
        self._action = np.ones(process.slots)
        self._saved = 0.0
        self._spent = np.zeros(len(process.prices.budgets))
        self._passed = 0
        self._undecided = set(range(len(self.vector)))

    @property
    def step(self) -> Step | None:
        """The step that comes next; None at the end."""
        return self.process.steps[self.position] if self.position < len(self.process.steps) else None

    def state(self) -> Array:
        """Return the state, (features,), float32 in [0, 1]."""
        process = self.process
        place = min(self.position, len(process.steps) - 1)  # the state at the end shows the last layer once more
        op = process.layers[process.steps[place].layer]
        saved, rest = self._saved / process.macs.sum(), process.macs[self._passed + 1 :].sum() / process.macs.sum()
        room = 1 - process.prices.total(self._layers)
        budgets = np.stack([self._spent, room], axis=1).ravel()
        values = [
            process.shapes[place],
            [saved, rest, self._kept_inputs(op)],
            budgets,
            self._action,
        ]
        return np.asarray(np.clip(np.concatenate(values), 0, 1), np.float32)

    def act(self, action: Sequence[float]) -> Array:
        """Decide the next step by an action (slots,) in [0, 1], bounded by the budgets; return the action executed.

        Algorithm 1 of AMC: each knob takes the choice nearest to the wanted one with which the rest, as it is
        reserved, still meets every budget.
        """
        step = self._next()
        choices = []
        for knob, slot in zip(step.knobs, step.slots, strict=True):
            choices.append(self._bounded(knob, self.process.choice(knob, float(action[slot]))))
            self._set(knob, choices[-1])
        return self.decide(choices)

    def decide(self, choices: Sequence[int]) -> Array:
        """Decide the next step's knobs by their choices, within the budgets or not; return the action for them."""
        step, process = self._next(), self.process
        for knob, choice in zip(step.knobs, choices, strict=True):
            self._set(knob, choice)
        form = process.decided(step.layer, self.vector).form
        for knob in step.knobs:
            if process.space.knobs[knob].kind == "form":
                self._set(knob, form)
        self._action = np.ones(process.slots)
        for knob, slot in zip(step.knobs, step.slots, strict=True):
            self._action[slot] = process.action(knob, self.vector[knob])
        self._undecided -= set(step.knobs)
        self.position += 1
        self._pass()
        return self._action

    def policy(self) -> Policy:
        """Return the policy of what is decided, everything else being as it is reserved."""
        return self.process.space.decode(self.vector)

    def _next(self) -> Step:
        if self.step is None:
            raise ValueError("the episode is over")
        return self.step

    def _bounded(self, knob: int, wanted: int) -> int:
        choices = sorted(range(self.process.sizes[knob]), key=lambda choice: (abs(choice - wanted), choice))
        return next(choice for choice in choices if choice == self.vector[knob] or self._fits(knob, choice))

    def _fits(self, knob: int, choice: int) -> bool:
        trial = [*self.vector[:knob], choice, *self.vector[knob + 1 :]]
        layers = self._layers.copy()
        for index in self.process.concerned[knob]:
            layers[index] = self.process.prices.layer(index, trial)
        return bool((self.process.prices.total(layers) <= 1 - ROUNDING).all())

    def _set(self, knob: int, choice: int) -> None:
        if self.vector[knob] != choice:
            self.vector[knob] = choice
            for index in self.process.concerned[knob]:
                self._layers[index] = self.process.prices.layer(index, self.vector)

    def _pass(self) -> None:
        """Go on to the next step's layer, or past the last one."""
        step = self.step
        end = len(self.process.layers) if step is None else step.layer
        for index in range(self._passed, end):
            self._saved += self.process.macs[index] - self.process.decided(index, self.vector).macs
            self._spent = self._spent + self._layers[index]
        self._passed = end

    def _kept_inputs(self, op: Node) -> float:
        space = self.process.space
        channels = {group.name: group.size for group in space.groups}
        for i, knob in enumerate(space.knobs):
            if knob.kind == "channels" and i not in self._undecided:
                channels[knob.target] = int(str(knob.choices[self.vector[i]]))
        source = op.inputs[0]
        return space.widths(channels)[source] / space.network.shapes[source][0]


#: What `describe_layers` tells.
SHAPE = ("place", "outputs", "inputs", "height", "width", "stride", "kernel", "macs")


def describe_layers(space: Space, numbers: Sequence[int]) -> Array:
    """Return what some layers, untouched, look like, in parts of the largest: (layers, 8), in the order of `SHAPE`.

    `kernel` counts the pixels that an output sees, `stride` the input's pixels per pixel of the output, both the square
    roots, so that a 3x3 kernel is 3.
    """
    rows = []
    for place, number in enumerate(numbers):
        op = space.network.layers[number]
        layer = Geometry.of(op)
        height, width = (*space.network.shapes[op.inputs[0]][1:], 1, 1)[:2]
        kernel, stride = math.sqrt(layer.taps), math.sqrt(math.prod(layer.stride))
        rows.append([place, layer.outputs, layer.inputs, height, width, stride, kernel, _macs(space, op)])
    table = np.array(rows, dtype=np.float64)
    return np.asarray(table / np.maximum(table.max(0), 1))


def _macs(space: Space, op: Node) -> int:
    return Geometry.of(op).macs(space.network.shapes[op.inputs[0]])


def _steps(space: Space) -> tuple[Step, ...]:
    undecided = set(range(len(space.knobs)))
    found: list[tuple[int, list[int]]] = []
    for number, scope in enumerate(space.scopes.values()):
        if fresh := sorted(undecided & set(scope), key=lambda knob: KINDS.index(space.knobs[knob].kind)):
            found.append((number, fresh))
            undecided -= set(fresh)
    counts = {kind: max(_count(space, knobs, kind) for _, knobs in found) for kind in KINDS}
    steps = []
    for number, knobs in found:
        slots = []
        for kind, first in zip(KINDS, (0, counts["channels"], counts["channels"] + counts["bits"]), strict=True):
            slots += [first + i for i in range(_count(space, knobs, kind))]
        steps.append(Step(number, tuple(knobs), tuple(slots)))
    return tuple(steps)


def _count(space: Space, knobs: Sequence[int], kind: str) -> int:
    return sum(space.knobs[knob].kind == kind for knob in knobs)
