"""The space: every choice that a policy makes, and what policies may look like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from trimtab.errors import BadInput, unknown_name
from trimtab.graph import Array, Graph, Node
from trimtab.graph.channels import propagate
from trimtab.graph.program import MAX_INTEGER_INPUTS
from trimtab.spaces.channels.criteria import CRITERIA, Evidence, channel_scores
from trimtab.spaces.channels.groups import ChannelGroup, channel_groups
from trimtab.spaces.channels.prune import importance_order, smallest_kept
from trimtab.spaces.factorisation import FACTORISATIONS, Geometry, factorises
from trimtab.spaces.forms.layer_forms import DENSE, Form, parse_form
from trimtab.spaces.numbers.formats import DEFAULT_FORMATS, FLOAT, INT8, LayerFormat
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.tracing import trace

__all__ = [
    "Choice",
    "Knob",
    "LayerShape",
    "Options",
    "Removal",
    "Space",
    "build_space",
    "coarse_choices",
]

#: One choice of a knob: kept channels, a format, or the text of a form.
Choice = int | str | LayerFormat

#: See `Options.factors`.
FACTOR_FITS = ("plain", "outputs", "nonlinear")

#: `Options.channels` at most, and as many as are few.
MOST_CHANNELS, FEW = 64, 4

#: Widths are remembered for this many combinations of kept channels.
REMEMBERED = 1024


def coarse_choices(count: int) -> tuple[int, ...]:
    """Return those of so many widths, ascending, at which what depends on them is worked out: all up to four, else the
    last, those 1, 4, 9, ... before it, and the first. Near the whole width errors change the most in relation."""
    if count <= FEW:
        return tuple(range(count))
    return tuple(sorted({0, *(count - 1 - i * i for i in range(math.isqrt(count - 1) + 1))}))


@dataclass(frozen=True)
class Options:
    """Options of a space: what a search may decide.

    `channels`: the most choices of kept channels per group (1: no pruning); `min_keep`: the smallest keep ratio;
    `bits`: the formats of layers offered; `ranks`: ranks offered
    beside the dense layer, as fractions of the layer's full rank, of each of the `factorisations`; `patterns` of
    sparsity and ways of `sharing` weights, as `forms.layer_forms` reads them; `fixed`: layers that stay fp32,
    unpruned and dense; `criterion`: which channels stay, one of `channels.criteria.CRITERIA`;
    `factors`, one of `FACTOR_FITS`: what the factors of a layer come nearest to where a candidate is repaired: its
    weights ("plain"), its outputs, or its outputs behind the ReLU that reads them ("nonlinear"). Entries of the layer
    database come nearest to its outputs, candidates that are not repaired to its weights. Values that there are not are
    a `BadInput`.
    """

    channels: int = 8
    min_keep: float = 0.25
    bits: tuple[LayerFormat, ...] = DEFAULT_FORMATS
    ranks: tuple[float, ...] = (0.25, 0.5)
    factorisations: tuple[str, ...] = ("svd",)
    patterns: tuple[str, ...] = ()
    sharing: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    factors: str = "outputs"
    criterion: str = "l2"

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise BadInput(f"channels has to be 1 to {MOST_CHANNELS}, not {self.channels}")
        if not 0 < self.min_keep <= 1:
            raise BadInput(f"min_keep has to be above 0 and at most 1, not {self.min_keep}")
        if not self.bits:
            raise BadInput("bits: give at least one [w_bits, a_bits] pair")
        for bits in self.bits:
            if (why := bits.why_not_offered) is not None:
                raise BadInput(f"bits: {why}")
        for rank in self.ranks:
            if not 0 < rank <= 1:
                raise BadInput(f"ranks are fractions of the full rank, above 0 and at most 1, not {rank}")
        for kind, texts in (("pattern", self.patterns), ("sharing", self.sharing)):
            for text in texts:
                if parse_form(text).kind != kind:
                    raise BadInput(f"{text!r} is not a {kind}")
        for name in self.factorisations:
            if name not in FACTORISATIONS:
                raise unknown_name("factorisation", name, FACTORISATIONS)
        if self.factors not in FACTOR_FITS:
            raise unknown_name("fit of factors", self.factors, FACTOR_FITS)
        if self.criterion not in CRITERIA:
            raise unknown_name("criterion", self.criterion, CRITERIA)

    @property
    def forms(self) -> tuple[Form, ...]:
        """All forms that are offered beside the dense layer."""
        ranks = sorted(set(self.ranks) - {1.0})
        factorised = [f"{name} {rank:g}" for name in self.factorisations for rank in ranks]
        return tuple(parse_form(text) for text in (*factorised, *self.patterns, *self.sharing))


@dataclass(frozen=True)
class Knob:
    """One decision of the flat vector: `choices` in order, the last one being the network as it was given.

    `kind` is "channels" (choices are kept counts of group `target`), "bits" (formats of layer `target`) or "form"
    (the texts of forms of layer `target`).
    """

    kind: str
    target: str
    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """A unique name, `kind:target`."""
        return f"{self.kind}:{self.target}"


@dataclass(frozen=True)
class Removal:
    """A choice (as text: "12", "4/8", "4/8 codebook", "svd 0.25") of a knob that is not offered, and why."""

    knob: str
    choice: str
    why: str


@dataclass(frozen=True)
class LayerShape:
    """A layer under a policy: input and output channels of the dense form, before its rank is applied."""

    op: Node
    inputs: int
    outputs: int
    decision: LayerDecision


@dataclass(frozen=True, eq=False)
class Space:
    """The choices for one network. `network` has its norms folded; `normalised` names the layers that had one.

    `order` holds per group its channels, most important first.
    """

    network: Graph
    normalised: frozenset[str]
    groups: tuple[ChannelGroup, ...]
    options: Options
    order: Mapping[str, Array]
    removed: tuple[Removal, ...] = ()
    knobs: tuple[Knob, ...] = field(init=False)

    def __post_init__(self) -> None:
        layers = {op.name for op in self.network.layers}
        for name in self.options.fixed:
            if name not in layers:
                raise unknown_name("fixed layer", name, layers)
        knobs = [self._without_removed(knob) for knob in (*self._channel_knobs(), *self._layer_knobs())]
        object.__setattr__(self, "knobs", tuple(knob for knob in knobs if len(knob.choices) > 1))
        if not self.knobs:
            raise BadInput("the space is empty: no channel group, bit width or form of a layer is left to decide")

    def without(self, removed: Iterable[Removal]) -> Space:
        """Return the space without some choices; the last choice of a knob cannot go."""
        return replace(self, removed=(*self.removed, *removed))

    def _without_removed(self, knob: Knob) -> Knob:
        gone = {removal.choice for removal in self.removed if removal.knob == knob.name}
        kept = [choice for choice in knob.choices[:-1] if str(choice) not in gone]
        return replace(knob, choices=(*kept, knob.choices[-1]))

    # what there is

    @cached_property
    def fingerprint(self) -> str:
        """The network's structure, as policies name it."""
        return self.network.fingerprint()

    @cached_property
    def smallest(self) -> dict[str, int]:
        """Per group the fewest channels that leave no layer empty: nearly always 1."""
        return {group.name: smallest_kept(group, self.order[group.name]) for group in self.groups}

    @property
    def size(self) -> int:
        """The number of vectors; several may encode the same policy."""
        return math.prod(len(knob.choices) for knob in self.knobs)

    def _channel_knobs(self) -> list[Knob]:
        fixed = self._fixed_groups()
        knobs = []
        for group in self.groups:
            steps = channel_steps(group.size, self.options.channels, self.options.min_keep)
            steps = tuple(count for count in steps if count >= self.smallest[group.name])
            if len(steps) > 1 and group.name not in fixed:
                knobs.append(Knob("channels", group.name, steps))
        return knobs

    def _fixed_groups(self) -> set[str]:
        return {group for name in self.options.fixed for group in self.groups_of[name]}

    @cached_property
    def groups_of(self) -> dict[str, set[str]]:
        """The channel groups that every tensor's channels belong to."""
        # Depthwise layers are no members of a group, but their channels go with it.
        number = {name: i for i, group in enumerate(self.groups) for name in group.members}
        produced = {
            op.name: np.full(self.network.shapes[op.name][0], number.get(op.name, -1)) for op in self._producers
        }
        labels = propagate(self.network, produced)
        return {name: {self.groups[i].name for i in np.unique(found) if i >= 0} for name, found in labels.items()}

    @cached_property
    def _producers(self) -> list[Node]:
        return [op for op in self.network if op.makes_channels]

    def _layer_knobs(self) -> list[Knob]:
        knobs: list[Knob] = []
        forms = self.options.forms
        for op in self.network.layers:
            if op.name in self.options.fixed:
                continue
            knobs.append(
                Knob("bits", op.name, tuple(f for f in self._formats if fits_integers(op) or not f.is_integer))
            )
            in_shape = self.network.shapes[op.inputs[0]]
            texts = tuple(form.text for form in forms if form.is_offered(op, in_shape))
            knobs.append(Knob("form", op.name, (*texts, DENSE)))
        return knobs

    @cached_property
    def scopes(self) -> dict[str, tuple[int, ...]]:
        """For every layer the indices of the knobs that its costs and its error depend on, ascending.

        They are those of its bits and form, and those of the channel groups that it reads and writes.
        """
        scopes = {}
        for op in self.network.layers:
            groups = self.groups_of[op.inputs[0]] | self.groups_of[op.name]
            names = {f"bits:{op.name}", f"form:{op.name}", *(f"channels:{group}" for group in groups)}
            scopes[op.name] = tuple(i for i, knob in enumerate(self.knobs) if knob.name in names)
        return scopes

    # vectors and policies

    def decode(self, vector: Sequence[int]) -> Policy:
        """Return the policy of a vector: for each knob the index of its choice.

        Ranks follow the kept channels and are dropped where the factors would not be smaller than the dense layer,
        so a policy never holds a pointless factorisation.
        """
        if len(vector) != len(self.knobs):
            raise BadInput(f"the vector has {len(vector)} entries, the space {len(self.knobs)} knobs")
        channels = {group.name: group.size for group in self.groups}
        formats: dict[str, LayerFormat] = {}
        forms: dict[str, str] = {}
        for knob, index in zip(self.knobs, vector, strict=True):
            if not 0 <= index < len(knob.choices):
                raise BadInput(f"{knob.name}: choice {index} is not between 0 and {len(knob.choices) - 1}")
            choice = knob.choices[index]
            if isinstance(choice, int):
                channels[knob.target] = choice
            elif isinstance(choice, str):
                forms[knob.target] = choice
            else:
                formats[knob.target] = choice
        widths = self.widths(channels)
        layers = {
            op.name: self._decision(
                op, widths, formats.get(op.name) or self._default_format(op.name), forms.get(op.name, DENSE)
            )
            for op in self.network.layers
        }
        return Policy(self.fingerprint, channels, layers)

    def decision(
        self, layer: str, channels: Mapping[str, int], bits: LayerFormat | None = None, form: str | None = None
    ) -> LayerDecision:
        """Return a layer's decision at these widths, for the choices of its knobs; None: as where there is no knob."""
        op = self.network.node(layer)
        return self._decision(op, self.widths(channels), bits or self._default_format(layer), form or DENSE)

    def decisions(self, layer: str, channels: Mapping[str, int]) -> Iterator[LayerDecision]:
        """Yield every decision about a layer that its knobs allow at these widths."""
        op, widths = self.network.node(layer), self.widths(channels)
        choices = {knob.kind: knob.choices for knob in self.knobs if knob.target == layer and knob.kind != "channels"}
        for bits in choices.get("bits", (self._default_format(layer),)):
            for form in choices.get("form", (DENSE,)):
                yield self._decision(op, widths, bits, str(form))  # type: ignore[arg-type]

    def encode(self, policy: Policy) -> list[int]:
        """Return a vector that decodes to this policy; a policy outside the space is a `BadInput`."""
        self.check(policy)
        widths = self.widths(policy.channels)
        vector = []
        for knob in self.knobs:
            if knob.kind == "channels":
                wanted: object = policy.channels[knob.target]
                values: Sequence[object] = knob.choices
            elif knob.kind == "bits":
                wanted, values = policy.layers[knob.target].format, knob.choices
            else:
                wanted, op = policy.layers[knob.target], self.network.node(knob.target)
                values = [self._decision(op, widths, wanted.format, str(text)) for text in knob.choices]
            if wanted not in values:
                raise BadInput(f"the policy's {knob.name} = {wanted} is not one of the space's choices {list(values)}")
            # The last match is the choice nearest to the network as given.
            vector.append(len(values) - 1 - list(reversed(values)).index(wanted))
        decoded = self.decode(vector)
        if decoded != policy:  # it decides something for which there is no knob
            raise BadInput(f"the policy is outside the space: {_difference(policy, decoded)}")
        return vector

    def base(self) -> Policy:
        """Return the policy that changes nothing."""
        layers = {op.name: LayerDecision() for op in self.network.layers}
        return Policy(self.fingerprint, {group.name: group.size for group in self.groups}, layers)

    def uniform(self, keep: float = 1.0, bits: LayerFormat | tuple[int, int] = FLOAT, form: str = DENSE) -> Policy:
        """Return the policy with the same keep ratio, format and form everywhere they are offered.

        Each group takes the count nearest to the ratio; formats and forms that a layer's knob does not offer stay as
        they are. `bits` may also be an entry of the configuration, (4, 8); anything else is a `BadInput`.
        """
        bits, vector = LayerFormat.read(bits), []
        for knob in self.knobs:
            if knob.kind == "channels":
                target = keep * int(knob.choices[-1])  # type: ignore[arg-type]
                vector.append(int(np.argmin([abs(int(choice) - target) for choice in knob.choices])))  # type: ignore[arg-type]
            else:
                wanted: Choice = bits if knob.kind == "bits" else form
                vector.append(knob.choices.index(wanted) if wanted in knob.choices else len(knob.choices) - 1)
        return self.decode(vector)

    def int8(self) -> Policy:
        """Return the uniform int8 form: every layer that can be at 8/8 bits, nothing pruned or factorised."""
        layers = {op.name: LayerDecision(INT8 if fits_integers(op) else FLOAT) for op in self.network.layers}
        return Policy(self.fingerprint, {group.name: group.size for group in self.groups}, layers)

    def check(self, policy: Policy) -> None:
        """Raise `BadInput` if the policy is not one for this network."""
        if policy.network != self.fingerprint:
            raise BadInput(
                f"the policy is for another network (its fingerprint is {policy.network}, this network's "
                f"{self.fingerprint})"
            )
        sizes = {group.name: group.size for group in self.groups}
        layers = {op.name for op in self.network.layers}
        for what, found, known in (("groups", policy.channels, sizes), ("layers", policy.layers, layers)):
            odd = set(found) ^ set(known)
            if odd:
                raise BadInput(f"the policy's {what} are not the network's: {sorted(odd)[0]!r}")
        for name, kept in policy.channels.items():
            if not self.smallest[name] <= kept <= sizes[name]:
                raise BadInput(
                    f"the policy keeps {kept} of {sizes[name]} channels in group {name!r}, which keeps at least "
                    f"{self.smallest[name]}"
                )
        widths = self.widths(policy.channels)
        for name, decision in policy.layers.items():
            self._check_layer(self.network.node(name), decision, widths)

    def _check_layer(self, op: Node, decision: LayerDecision, widths: Mapping[str, int]) -> None:
        bits = decision.format
        if (why := bits.why_not_offered) is not None:
            raise BadInput(f"layer {op.name!r}: {why}")
        if bits.is_integer and not fits_integers(op):
            raise BadInput(f"layer {op.name!r}: sums over {op.weight[0].size} integers might not fit 32 bits")
        if decision.pattern is not None and not bits.weight.has_zero:
            raise BadInput(
                f"layer {op.name!r}: {bits.weight.bits}-bit weights ({bits.weight.grid}) have no zero to be sparse by"
            )
        given = [what for what in (decision.rank, decision.pattern, decision.sharing) if what is not None]
        if len(given) > 1:
            raise BadInput(f"layer {op.name!r} has more than one of rank, pattern and sharing")
        for text, kind in ((decision.pattern, "pattern"), (decision.sharing, "sharing")):
            if text is not None:
                form = parse_form(text)
                if form.kind != kind or not op.is_layer or not form.applies(op):
                    raise BadInput(f"layer {op.name!r} cannot have the {kind} {text!r}")
        if decision.rank is not None:
            chosen = FACTORISATIONS.get(decision.factorisation)
            if chosen is None or not factorises(chosen, op):
                raise BadInput(f"layer {op.name!r} cannot have the factorisation {decision.factorisation!r}")
            layer = Geometry.of(op, widths[op.inputs[0]], widths[op.name])
            limit = chosen.full_rank(layer)
            if not 1 <= decision.rank <= limit:
                raise BadInput(f"layer {op.name!r}: rank {decision.rank} is not between 1 and {limit}")

    # shapes under a policy

    def widths(self, channels: Mapping[str, int]) -> Mapping[str, int]:
        """Return the channels of every tensor when each group keeps this many."""
        kept = tuple(channels[group.name] for group in self.groups)
        if kept not in self._known_widths:
            if len(self._known_widths) >= REMEMBERED:
                self._known_widths.clear()
            self._known_widths[kept] = self._find_widths(channels)
        return self._known_widths[kept]

    def _find_widths(self, channels: Mapping[str, int]) -> dict[str, int]:
        return {
            tensor: always + sum(counts[channels[group]] for group, counts in varying)
            for tensor, (always, varying) in self._width_tables.items()
        }

    def layer_shapes(self, policy: Policy) -> list[LayerShape]:
        """Return every layer's widths and decision, in network order."""
        widths = self.widths(policy.channels)
        return [
            LayerShape(op, widths[op.inputs[0]], widths[op.name], policy.layers[op.name]) for op in self.network.layers
        ]

    @cached_property
    def _width_tables(self) -> dict[str, tuple[int, list[tuple[str, list[int]]]]]:
        """Per tensor how many channels always stay, and per group how many stay as a function of its count.

        A tensor may hold a group's channel several times (behind a flatten), or only some of them (of a concatenation).
        """
        starts = np.cumsum([0, *[group.size for group in self.groups]])
        produced = {op.name: np.full(self.network.shapes[op.name][0], -1) for op in self._producers}
        for group, start in zip(self.groups, starts, strict=False):
            for name, positions in group.members.items():
                produced[name] = np.where(positions < 0, -1, positions + start)
        tables = {}
        for tensor, labels in propagate(self.network, produced).items():
            per_label = np.bincount(labels[labels >= 0], minlength=starts[-1])
            varying = []
            for group, start in zip(self.groups, starts, strict=False):
                per_channel = per_label[start : start + group.size]
                if per_channel.any():
                    varying.append((group.name, [0, *np.cumsum(per_channel[self.order[group.name]]).tolist()]))
            tables[tensor] = int((labels < 0).sum()), varying
        return tables

    def _decision(self, op: Node, widths: Mapping[str, int], bits: LayerFormat, text: str) -> LayerDecision:
        """A layer's decision, without a rank that costs no less than the dense layer, and zeros that bits lack."""
        key = (op.name, widths[op.inputs[0]], widths[op.name], bits, text)
        decision = self._known_decisions.get(key)
        if decision is None:
            layer, in_shape = Geometry.of(op, *key[1:3]), self.network.shapes[op.inputs[0]]
            decision = self._known_decisions[key] = parse_form(text).decision(bits, layer, in_shape)
        return decision

    @cached_property
    def _known_widths(self) -> dict[tuple[int, ...], Mapping[str, int]]:
        return {}

    @cached_property
    def _known_decisions(self) -> dict[tuple[object, ...], LayerDecision]:
        return {}

    @cached_property
    def _formats(self) -> tuple[LayerFormat, ...]:
        """The formats offered, narrowest first."""
        return tuple(sorted(set(self.options.bits), key=lambda bits: bits.order))

    def _default_format(self, layer: str) -> LayerFormat:
        return FLOAT if layer in self.options.fixed else self._settled_formats.get(layer, FLOAT)

    @cached_property
    def _settled_formats(self) -> dict[str, LayerFormat]:
        """The formats of layers that have one choice left, and so no knob."""
        knobs = [self._without_removed(knob) for knob in self._layer_knobs() if knob.kind == "bits"]
        return {knob.target: knob.choices[0] for knob in knobs if len(knob.choices) == 1}  # type: ignore[misc]


def channel_steps(size: int, choices: int, min_keep: float) -> tuple[int, ...]:
    """Return ascending kept counts that end with `size`: multiples of a power of two where that gives enough choices.

    Kernels work in vectors, so counts between two multiples of the vector width cost as much as the larger one.
    """
    step = 1
    while size % (2 * step) == 0 and size // (2 * step) >= max(choices, 2):
        step *= 2
    if size // step > choices:
        step = math.ceil(size / choices)
    lowest = max(1, math.ceil(size * min_keep))
    counts = [count for count in range(size, 0, -step) if count >= lowest]
    return tuple(sorted(counts))


def _difference(policy: Policy, decoded: Policy) -> str:
    for name, kept in policy.channels.items():
        if kept != decoded.channels[name]:
            return f"group {name!r} keeps {kept} channels, where only {decoded.channels[name]} can be reached"
    for name, decision in policy.layers.items():
        if decision != decoded.layers[name]:
            return f"layer {name!r} has {decision}, where only {decoded.layers[name]} can be reached"
    return "its groups and layers differ"


def fits_integers(op: Node) -> bool:
    """Whether a layer's sums of integers fit their 32 bits, whatever the integers are."""
    return bool(op.weight[0].size <= MAX_INTEGER_INPUTS)


def build_space(
    model: nn.Module, example: torch.Tensor, options: Options | None = None, images: Array | None = None
) -> Space:
    """Trace a model with an example input (1, C, H, W) and list what may be decided about it.

    `images` (N, C, H, W), float32, are for criteria that look at what the network computes.
    """
    options = options or Options()
    network = trace(model, example)
    groups = channel_groups(network)
    norms = {op.name: op.norm for op in network.layers if op.norm is not None}
    scales = {name: norm.weight for name, norm in norms.items()}
    network = network.folded()
    scores = channel_scores(options.criterion, Evidence(network, groups, scales, images))
    order = {group.name: importance_order(group, scores[group.name]) for group in groups}
    return Space(network, frozenset(norms), groups, options, order)
