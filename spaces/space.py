"""The space: every choice that a policy makes, and what policies may look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn

from trimtab.errors import BadInput, unknown_name
from trimtab.spaces import lowrank
from trimtab.spaces.groups import ChannelGroup, channel_groups, propagate
from trimtab.spaces.network import Array, Network, Op
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.select import importance_order, smallest_kept
from trimtab.spaces.trace import trace_both

__all__ = ["BITS", "DEFAULT_BITS", "Knob", "LayerShape", "Options", "Space", "build_space"]

#: (weight bits, activation bits) that may be decided, cheapest first: integers, integer weights under float
#: activations, bf16 weights under float activations, and float. Float weights under int8 activations would save
#: neither bytes nor time.
BITS = (*((w, a) for w in (1, 2, 3, 4, 5, 6, 8) for a in (1, 2, 4, 8)), (8, 32), (16, 32), (32, 32))

#: What a search decides among where nothing is asked: 8-bit activations are faster than float ones and cost next to no
#: accuracy, narrower ones save time only under 1-bit weights; weights of 3, 5 and 6 bits run as those of 4 and 8 do.
DEFAULT_BITS = ((2, 8), (4, 8), (8, 8), (32, 32))


@dataclass(frozen=True)
class Options:
    """What a search may decide.

    `channels`: the most choices of kept channels per group (1: no pruning); `min_keep`: the smallest keep ratio;
    `bits`: the (w_bits, a_bits) pairs offered; `ranks`: ranks offered beside the dense layer, as fractions of the
    layer's full rank; `fixed`: layers that stay fp32, unpruned and dense.
    """

    channels: int = 8
    min_keep: float = 0.25
    bits: tuple[tuple[int, int], ...] = DEFAULT_BITS
    ranks: tuple[float, ...] = (0.25, 0.5)
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Knob:
    """One decision of the flat vector: `choices` in order, the last one being the network as it was given.

    `kind` is "channels" (choices are kept counts of group `target`), "bits" ((w_bits, a_bits) of layer `target`) or
    "rank" (a fraction of the full rank of layer `target`, 1.0 for dense).
    """

    kind: str
    target: str
    choices: tuple[int | float | tuple[int, int], ...]

    @property
    def name(self) -> str:
        """A unique name, `kind:target`."""
        return f"{self.kind}:{self.target}"


@dataclass(frozen=True)
class LayerShape:
    """A layer under a policy: input and output channels of the dense form, before its rank is applied."""

    op: Op
    inputs: int
    outputs: int
    decision: LayerDecision


@dataclass(frozen=True, eq=False)
class Space:
    """The choices for one network. `network` has its norms folded; `normalised` names the layers that had one."""

    network: Network
    normalised: frozenset[str]
    groups: tuple[ChannelGroup, ...]
    options: Options
    knobs: tuple[Knob, ...] = field(init=False)

    def __post_init__(self) -> None:
        _check_options(self.options, self.network)
        object.__setattr__(self, "knobs", (*self._channel_knobs(), *self._layer_knobs()))
        if not self.knobs:
            raise BadInput("the space is empty: no channel group, bit width or rank is left to decide")

    # what there is

    @cached_property
    def fingerprint(self) -> str:
        """The network's structure, as policies name it."""
        return self.network.fingerprint()

    @cached_property
    def order(self) -> dict[str, Array]:
        """Per group its channels, most important first."""
        return {group.name: importance_order(self.network, group) for group in self.groups}

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
        # Depthwise layers are no members of a group, but their channels go with it.
        number = {name: i for i, group in enumerate(self.groups) for name in group.members}
        produced = {name: np.full(op.shape[0], number.get(name, -1)) for name, op in self._producers.items()}
        labels = propagate(self.network, produced)
        reached = {i for name in self.options.fixed for i in labels[name].tolist()}
        return {group.name for i, group in enumerate(self.groups) if i in reached}

    @cached_property
    def _producers(self) -> dict[str, Op]:
        return {op.name: op for op in self.network if op.makes_channels}

    def _layer_knobs(self) -> list[Knob]:
        knobs: list[Knob] = []
        ranks = tuple(sorted(set(self.options.ranks) - {1.0}))
        for op in self.network.layers:
            if op.name in self.options.fixed:
                continue
            if len(self._bits) > 1:
                knobs.append(Knob("bits", op.name, self._bits))
            if ranks and self._can_factorise(op):
                knobs.append(Knob("rank", op.name, (*ranks, 1.0)))
        return knobs

    def _can_factorise(self, op: Op) -> bool:
        if op.weight is None or op.groups != 1:
            return False
        outputs, inputs = op.weight.shape[0], op.weight[0].size
        rank = round(min(self.options.ranks, default=1.0) * lowrank.full_rank(outputs, inputs))
        return lowrank.full_rank(outputs, inputs) >= 8 and lowrank.pays(outputs, inputs, max(rank, 1))

    # vectors and policies

    def decode(self, vector: Sequence[int]) -> Policy:
        """Return the policy of a vector: for each knob the index of its choice.

        Ranks follow the kept channels and are dropped where the factors would not be smaller than the dense layer,
        so a policy never holds a pointless factorisation.
        """
        if len(vector) != len(self.knobs):
            raise BadInput(f"the vector has {len(vector)} entries, the space {len(self.knobs)} knobs")
        channels = {group.name: group.size for group in self.groups}
        bits = {op.name: self._default_bits(op.name) for op in self.network.layers}
        fractions: dict[str, float] = {}
        for knob, index in zip(self.knobs, vector, strict=True):
            if not 0 <= index < len(knob.choices):
                raise BadInput(f"{knob.name}: choice {index} is not between 0 and {len(knob.choices) - 1}")
            choice = knob.choices[index]
            if knob.kind == "channels":
                channels[knob.target] = int(choice)  # type: ignore[arg-type]
            elif knob.kind == "bits":
                bits[knob.target] = choice  # type: ignore[assignment]
            else:
                fractions[knob.target] = float(choice)  # type: ignore[arg-type]
        widths = self.widths(channels)
        layers = {
            op.name: LayerDecision(*bits[op.name], self._rank(op, widths, fractions.get(op.name, 1.0)))
            for op in self.network.layers
        }
        return Policy(self.fingerprint, channels, layers)

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
                decision = policy.layers[knob.target]
                wanted, values = (decision.w_bits, decision.a_bits), knob.choices
            else:
                op = self.network.op(knob.target)
                wanted = policy.layers[knob.target].rank
                values = [self._rank(op, widths, float(c)) for c in knob.choices]  # type: ignore[arg-type]
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

    def uniform(self, keep: float = 1.0, bits: tuple[int, int] = (32, 32), rank: float = 1.0) -> Policy:
        """Return the policy with the same keep ratio, bits and rank fraction everywhere they are offered.

        Each knob takes the choice nearest to the ratio; bits that a layer's knob does not offer stay as they are.
        """
        vector = []
        for knob in self.knobs:
            if knob.kind == "bits":
                vector.append(knob.choices.index(bits) if bits in knob.choices else len(knob.choices) - 1)
                continue
            target = keep * float(knob.choices[-1]) if knob.kind == "channels" else rank  # type: ignore[arg-type]
            distances = [abs(float(choice) - target) for choice in knob.choices]  # type: ignore[arg-type]
            vector.append(int(np.argmin(distances)))
        return self.decode(vector)

    def int8(self) -> Policy:
        """Return the uniform int8 form: every layer at 8/8 bits, nothing pruned or factorised."""
        layers = {op.name: LayerDecision(8, 8) for op in self.network.layers}
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
            self._check_layer(self.network.op(name), decision, widths)

    def _check_layer(self, op: Op, decision: LayerDecision, widths: Mapping[str, int]) -> None:
        if (decision.w_bits, decision.a_bits) not in BITS:
            raise BadInput(
                f"layer {op.name!r}: {decision.w_bits}-bit weights with {decision.a_bits}-bit activations are not "
                f"offered (offered: {', '.join(f'{w}/{a}' for w, a in BITS)})"
            )
        if decision.rank is not None:
            inputs, outputs = self._matrix(op, widths)
            limit = lowrank.full_rank(outputs, inputs)
            if op.groups != 1 or not 1 <= decision.rank <= limit:
                raise BadInput(f"layer {op.name!r}: rank {decision.rank} is not between 1 and {limit}")

    # shapes under a policy

    def widths(self, channels: Mapping[str, int]) -> dict[str, int]:
        """Return the channels of every tensor when each group keeps this many."""
        produced: dict[str, int] = {}
        for name, (free, group) in self._width_plan.items():
            produced[name] = free if group is None else self._kept_width(name, group, channels[group])
        widths = {self.network.input: self.network.input_shape[0]}
        for op in self.network:
            if op.name in produced:
                widths[op.name] = produced[op.name]
            elif op.kind == "concat":
                widths[op.name] = sum(widths[name] for name in op.inputs)
            elif op.is_selection:
                always, counts = self._selected_widths[op.name]
                widths[op.name] = always + sum(int(count[channels[group]]) for group, count in counts.items())
            elif op.kind == "attention":
                widths[op.name] = widths[op.inputs[2]]
            elif op.is_depthwise or op.kind == "flatten":
                factor = op.shape[0] // self.network.shape_of(op.inputs[0])[0]
                widths[op.name] = widths[op.inputs[0]] * factor
            else:
                widths[op.name] = widths[op.inputs[0]]
        return widths

    def layer_shapes(self, policy: Policy) -> list[LayerShape]:
        """Return every layer's widths and decision, in network order."""
        widths = self.widths(policy.channels)
        return [
            LayerShape(op, widths[op.inputs[0]], widths[op.name], policy.layers[op.name]) for op in self.network.layers
        ]

    @cached_property
    def _width_plan(self) -> dict[str, tuple[int, str | None]]:
        group_of = {name: group.name for group in self.groups for name in group.members}
        return {name: (op.shape[0], group_of.get(name)) for name, op in self._producers.items()}

    @cached_property
    def _kept_widths(self) -> dict[tuple[str, str], Array]:
        # Kept channels of each member as a function of the group's count: members may hold a group channel several
        # times (grouped convolutions) or only some of them (additions behind concatenations).
        table = {}
        for group in self.groups:
            for name, positions in group.members.items():
                per_channel = np.bincount(positions[positions >= 0], minlength=group.size)
                always = int((positions < 0).sum())
                cumulative = np.concatenate([[0], np.cumsum(per_channel[self.order[group.name]])])
                table[name, group.name] = cumulative + always
        return table

    @cached_property
    def _selected_widths(self) -> dict[str, tuple[int, dict[str, Array]]]:
        """Per selection of channels how many always stay, and per group how many stay as a function of its count."""
        starts = np.cumsum([0, *[group.size for group in self.groups]])
        produced = {name: np.full(op.shape[0], -1) for name, op in self._producers.items()}
        for group, start in zip(self.groups, starts, strict=False):
            for name, positions in group.members.items():
                produced[name] = np.where(positions < 0, -1, positions + start)
        labels = propagate(self.network, produced)
        table = {}
        for op in self.network:
            if op.is_selection:
                found = labels[op.name]
                per_label = np.bincount(found[found >= 0], minlength=starts[-1])
                counts = {}
                for group, start in zip(self.groups, starts, strict=False):
                    per_channel = per_label[start : start + group.size]
                    if per_channel.any():
                        counts[group.name] = np.concatenate([[0], np.cumsum(per_channel[self.order[group.name]])])
                table[op.name] = int((found < 0).sum()), counts
        return table

    def _kept_width(self, name: str, group: str, kept: int) -> int:
        return int(self._kept_widths[name, group][kept])

    def _matrix(self, op: Op, widths: Mapping[str, int]) -> tuple[int, int]:
        """(inputs of one output, outputs) of a layer."""
        if op.weight is None:
            raise ValueError(f"{op.name} is not a layer")
        taps = math.prod(op.weight.shape[2:])
        return widths[op.inputs[0]] // op.groups * taps, widths[op.name]

    def _rank(self, op: Op, widths: Mapping[str, int], fraction: float) -> int | None:
        if fraction >= 1.0 or op.groups != 1:
            return None
        inputs, outputs = self._matrix(op, widths)
        rank = max(1, round(fraction * lowrank.full_rank(outputs, inputs)))
        return rank if lowrank.pays(outputs, inputs, rank) else None

    @cached_property
    def _bits(self) -> tuple[tuple[int, int], ...]:
        offered = {tuple(pair) for pair in self.options.bits}
        return tuple(pair for pair in BITS if pair in offered)

    def _default_bits(self, layer: str) -> tuple[int, int]:
        return (32, 32) if layer in self.options.fixed or len(self._bits) != 1 else self._bits[0]


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


def _check_options(options: Options, network: Network) -> None:
    if options.channels < 1 or not 0 < options.min_keep <= 1:
        raise BadInput(
            "options: channels must be at least 1 and min_keep above 0 and at most 1, "
            f"not {options.channels} and {options.min_keep}"
        )
    for pair in options.bits:
        if tuple(pair) not in BITS:
            raise BadInput(f"options: bits {pair} are not offered (offered: {', '.join(f'{w}/{a}' for w, a in BITS)})")
    for rank in options.ranks:
        if not 0 < rank <= 1:
            raise BadInput(f"options: a rank is a fraction of the full rank above 0 and at most 1, not {rank}")
    layers = {op.name for op in network.layers}
    for name in options.fixed:
        if name not in layers:
            raise unknown_name("fixed layer", name, layers)


def _difference(policy: Policy, decoded: Policy) -> str:
    for name, kept in policy.channels.items():
        if kept != decoded.channels[name]:
            return f"group {name!r} keeps {kept} channels, where only {decoded.channels[name]} can be reached"
    for name, decision in policy.layers.items():
        if decision != decoded.layers[name]:
            return f"layer {name!r} has {decision}, where only {decoded.layers[name]} can be reached"
    return "its groups and layers differ"


def build_space(model: nn.Module, example: torch.Tensor, options: Options | None = None) -> Space:
    """Trace a model with an example input (1, C, H, W) and list what may be decided about it."""
    module, network = trace_both(model, example)
    groups = channel_groups(module, network, example)
    options = options or Options()
    normalised = frozenset(op.name for op in network.layers if op.norm is not None)
    return Space(network.folded(), normalised, groups, options)
