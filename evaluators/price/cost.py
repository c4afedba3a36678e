"""The cost of a policy before anything is built: latency from the table, bytes, MACs and memory from shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trimtab.errors import TrimtabError
from trimtab.evaluators.price.plan import Call, Step, StepPlan
from trimtab.evaluators.price.size import Coded
from trimtab.evaluators.price.table import LatencyTable
from trimtab.graph import Node
from trimtab.kernels.packing import bytes_of
from trimtab.spaces.factorisation import Geometry, parts_of
from trimtab.spaces.forms.sharing import parameters
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.space import Space
from trimtab.spaces.tracing.layers import transposed_macs

__all__ = ["Cost", "CostModel", "TableError", "TableFit", "count_macs"]


#: The bytes of so many weights of a layer under a decision.
_Stored = Callable[[Node, LayerDecision, int], float]


@dataclass(frozen=True)
class Cost:
    """`latency` in seconds for one batch of one image, `size` in bytes of stored weights, `macs` (one
    multiply-accumulate = 1) and `memory` (peak bytes of live activations) for one image."""

    latency: float
    size: int
    macs: int
    memory: int

    def get(self, budget: str) -> float:
        """Return the value that a budget ("latency", "size", "macs" or "memory") limits, in the units above."""
        return float(getattr(self, budget))


@dataclass(frozen=True)
class TableError:
    """The table's error against end-to-end measurements: median and largest |predicted / measured - 1|."""

    median: float
    largest: float
    networks: int


@dataclass(frozen=True)
class TableFit:
    """Turns a sum over the table into seconds end to end: factor * sum + per_step * steps + constant.

    A step inside a network finds its input in another cache than on its own, and a call has a cost of its own.
    """

    factor: float = 1.0
    per_step: float = 0.0
    constant: float = 0.0

    def __call__(self, total: float, steps: int) -> float:
        """Return predicted seconds, at least a tenth of the plain sum."""
        return max(self.factor * total + self.per_step * steps + self.constant, 0.1 * total)

    @classmethod
    def of(cls, totals: Sequence[float], steps: Sequence[int], measured: Sequence[float]) -> TableFit:
        """Fit to end-to-end measurements (seconds) by least squares on relative errors, drawn lightly to (1, 0, 0)."""
        weight = 1 / np.asarray(measured)
        # The unit of both additions: about a microsecond for small networks, and the same share of any network.
        unit = 0.15 * float(np.median(np.asarray(measured) / np.asarray(steps)))
        rows = np.stack([np.asarray(totals), np.asarray(steps) * unit, np.full(len(totals), unit)], axis=1)
        rows = rows * weight[:, None]
        pull = 0.02 * np.eye(3)
        target = np.concatenate([np.ones(len(totals)), 0.02 * np.array([1.0, 0.0, 0.0])])
        factor, per_step, constant = np.linalg.lstsq(np.concatenate([rows, pull]), target, rcond=None)[0]
        return cls(float(factor), float(per_step) * unit, float(constant) * unit)


class CostModel:
    """Prices policies in about a tenth of a millisecond each, once the table has their steps.

    What one layer or one step costs is worked out once for all policies in which it is the same.
    """

    def __init__(self, space: Space, table: LatencyTable, fit: TableFit | None = None) -> None:
        self.space = space
        self.table = table
        self.plan = StepPlan(space)
        self.fit = fit or TableFit()
        self._biased = {op.name for op in space.network.layers if op.bias is not None}
        self._coded = cache(Coded.of)
        self._constants = {  # bytes for every channel
            op.name: sum(array.nbytes for array in op.weights.values()) // space.network.shapes[op.name][0]
            for op in space.network
            if op.weights and not op.is_layer
        }
        self._base = space.base()
        self._seconds: dict[Call, float] = {}
        self._layer_sizes: dict[tuple[object, ...], float] = {}

    def cost(self, policy: Policy) -> Cost:
        """Return the policy's predicted cost."""
        return Cost(
            latency=self.latency(policy),
            size=self.coded_size(policy),
            macs=self.macs(policy),
            memory=self.memory(policy),
        )

    def get(self, policy: Policy, budget: str) -> float:
        """Return one cost, in the units of `Cost`, without working out (or measuring) the others."""
        found = {"latency": self.latency, "size": self.coded_size, "macs": self.macs, "memory": self.memory}
        return found[budget](policy)

    def latency(self, policy: Policy) -> float:
        """Return the seconds for one batch of one image."""
        return self.fit(*self.total(policy))

    def total(self, policy: Policy) -> tuple[float, int]:
        """Return the sum of the seconds of a policy's steps, as they are in the table, and their number."""
        calls = self._priced_calls(policy)
        return sum([self._seconds[call] for call in calls]), len(calls)

    def steps(self, policy: Policy) -> Counter[Step]:
        """Return a policy's steps, all of them in the table."""
        return Counter(call.step for call in self._priced_calls(policy))

    def _priced_calls(self, policy: Policy) -> list[Call]:
        calls = self.plan.calls(policy)
        if not self._seconds.keys() >= set(calls):
            self.table.fill(policy, calls)
            self._seconds |= {call: self.table.seconds(call.step) for call in calls}
        return calls

    def macs(self, policy: Policy) -> int:
        """Return the multiply-accumulates for one image."""
        return sum(call.step.macs for call in self.plan.calls(policy))

    def size(self, policy: Policy) -> int:
        """Return the bytes of the weights as the artefact stores them, tables, scales and biases included, at most.

        They are fewer where a small layer happens to use fewer values than its bits allow, and after entropy coding.
        """
        return math.ceil(sum(self._sizes(policy, _packed).values()))

    def coded_size(self, policy: Policy) -> int:
        """Return the bytes expected after entropy coding: what coding saves of each layer as it was given.

        A prediction from shapes and untouched weights; `kernels.stored_bytes` of the candidate is exact.
        """
        return math.ceil(sum(self._sizes(policy, self._stored_coded).values()))

    def profile(self, policy: Policy) -> list[dict[str, Any]]:
        """Return where the time goes, step by step: `layer`, `kind`, `kernel`, and predicted `seconds`, which add up to
        the policy's latency."""
        scale = self.get(policy, "latency") / self.total(policy)[0]
        return [
            {
                "layer": name,
                "kind": step.kind,
                "kernel": self.table.kernel(step),
                "seconds": self.table.seconds(step) * scale,
            }
            for name, step in self.plan.named_steps(policy)
        ]

    def by_layer(self, policy: Policy, budget: str) -> dict[str, float]:
        """Return each layer's part of a cost that is a sum over layers, and under "" the rest of it: of "latency" in
        seconds, of "size" in bytes, of "macs" in multiply-accumulates; "memory" is no such sum.

        A layer's part includes what follows it up to the next layer; layers that run together share their time as
        they share the multiplications.
        """
        if budget == "size":
            return self._sizes(policy, self._stored_coded)
        parts: dict[str, float] = {"": self.fit.constant if budget == "latency" else 0.0}
        owner = self.space.network.layers[0].name
        layers = {op.name for op in self.space.network.layers}
        for call in self._priced_calls(policy) if budget == "latency" else self.plan.calls(policy):
            owner = call.op if call.op in layers else owner
            for layer, cost in self._by_member(call, owner, budget):
                parts[layer] = parts.get(layer, 0.0) + cost
        return parts

    def _by_member(self, call: Call, owner: str, budget: str) -> Iterator[tuple[str, float]]:
        step = call.step
        if budget == "macs":
            members = zip(call.members or (owner,), step.members or (step,), strict=True)
            yield from ((layer, float(member.macs)) for layer, member in members)
            return
        seconds = self.fit.factor * self._seconds[call] + self.fit.per_step
        if not step.members:
            yield owner, seconds
            return
        for layer, member in zip(call.members, step.members, strict=True):
            yield layer, seconds * member.macs / step.macs

    def _stored_coded(self, op: Node, decision: LayerDecision, weights: int) -> float:
        return self._coded(op, decision.format.weight, decision.pattern).bytes(weights)

    def _sizes(self, policy: Policy, stored: _Stored) -> dict[str, float]:
        widths, untouched = self.space.widths(policy.channels), policy == self._base
        sizes = {"": float(sum(each * widths[name] for name, each in self._constants.items()))}
        for op in self.space.network.layers:
            key = (op.name, widths[op.inputs[0]], widths[op.name], policy.layers[op.name], untouched, stored)
            size = self._layer_sizes.get(key)
            if size is None:
                size = self._layer_sizes[key] = self._layer_size(op, *key[1:])
            sizes[op.name] = size
        return sizes

    def _layer_size(
        self, op: Node, inputs: int, outputs: int, decision: LayerDecision, untouched: bool, stored: _Stored
    ) -> float:
        layer = Geometry.of(op, inputs, outputs)
        parts = parts_of(layer, decision.factorisation, decision.rank)
        # Bias correction gives every repaired layer a bias.
        biases = outputs if op.name in self._biased or not untouched else 0
        dense = sum(stored(op, decision, part.weights) for part in parts)
        scales = sum(part.outputs for part in parts) if decision.format.weight.is_integer else 0
        return min(dense, _shared_bytes(layer, decision)) + 4 * biases + 4 * scales

    def memory(self, policy: Policy) -> int:
        """Return the peak bytes of live activations for one image."""
        network = self.space.network
        width = 1 if network.input in self.plan.stored(policy) else 4
        return peak_memory(self.plan.calls(policy), math.prod(network.input_shape) * width)

    def error(self, measured: Mapping[Policy, float]) -> TableError:
        """Compare predictions with end-to-end measurements (seconds)."""
        errors = [abs(self.get(policy, "latency") / seconds - 1) for policy, seconds in measured.items()]
        if not errors:
            return TableError(math.nan, math.nan, 0)
        return TableError(float(np.median(errors)), max(errors), len(errors))


def _packed(op: Node, decision: LayerDecision, weights: int) -> float:
    return bytes_of(weights, decision.format.weight.stored_bits)


def _shared_bytes(layer: Geometry, decision: LayerDecision) -> float:
    """The most bytes of weights that share values; infinite where they are not stored so."""
    if decision.sharing is None or not decision.format.weight.is_integer:
        return math.inf
    shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
    values, indices, width = parameters(shape, decision.sharing)
    return bytes_of(values, decision.format.weight.stored_bits) + bytes_of(indices, width)


def peak_memory(calls: Sequence[Call], input_bytes: int) -> int:
    """Return the peak bytes of live activations for one image, run in order.

    A tensor lives from the step that writes it to the last step that reads it, so a residual lives across its block;
    the input, of `input_bytes` as it is stored, from the start. What is fused into a step is never stored.
    """
    last = {tensor: i for i, call in enumerate(calls) for tensor in call.reads}
    sizes: dict[str, int] = {}
    peak = live = input_bytes
    for i, call in enumerate(calls):
        sizes[call.tensor] = call.size
        live += sizes[call.tensor]
        peak = max(peak, live)
        live -= sum(sizes.get(tensor, input_bytes) for tensor in set(call.reads) if last[tensor] == i)
    return peak


def count_macs(model: nn.Module, example: torch.Tensor, steps: Sequence[Step]) -> int:
    """Return the MACs of the untouched network for one image, agreed on by three counters.

    Our own count from shapes must equal thop's and half of torch's FLOP counter's; a difference means that the network
    does something that trimtab prices wrongly, and is an error.
    """
    from copy import deepcopy

    import thop
    from torch.utils.flop_counter import FlopCounterMode

    ours = sum(step.macs for step in steps)
    beyond: list[int] = []  # what transposed convolutions multiply at borders and beyond their kernels
    counted = {
        **dict.fromkeys(_FREE, _zero_ops),
        nn.MultiheadAttention: _attention_ops,
        nn.ConvTranspose2d: partial(_transposed_ops, beyond),
    }
    copied = deepcopy(model).eval()  # thop leaves hooks and buffers behind where the network raises
    with torch.no_grad():
        with _plain_attention(), FlopCounterMode(display=False) as counter:
            copied(example)
        by_thop, _ = thop.profile(copied, (example,), custom_ops=counted, verbose=False)
    by_torch = counter.get_total_flops() // 2
    # A batch norm that follows no layer is a depthwise 1x1 convolution to us and free to the others.
    parts = [part for step in steps for part in step.parts]
    norms = sum(part.macs for part in parts if part.kind == "conv2d" and _is_scaling(part))
    most = ours - sum(beyond)
    if not most - norms <= by_torch <= most or int(by_thop) != by_torch:
        raise TrimtabError(
            f"the MAC counters disagree: {most} from shapes, {int(by_thop)} by thop, {by_torch} by torch; "
            "a layer of this network is counted wrongly"
        )
    return ours


_FREE: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.LayerNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.Tanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.SiLU,
    nn.GELU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.PixelShuffle,
)


def _zero_ops(module: nn.Module, inputs: object, output: object) -> None:
    module.total_ops += torch.zeros(1, dtype=torch.float64)  # type: ignore[operator]


def _attention_ops(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
    """Of a sequence of L tokens with F features with itself: four projections, and two products per pair of tokens."""
    images, length, features = inputs[0].shape
    macs = images * (4 * length * features**2 + 2 * length**2 * features)
    module.total_ops += torch.tensor([macs], dtype=torch.float64)  # type: ignore[operator]


def _transposed_ops(
    beyond: list[int], module: nn.ConvTranspose2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> None:
    """Every pixel of the input with the whole kernel; `beyond` hears what the convolution that it becomes does more."""
    images, _, height, width = inputs[0].shape
    macs = height * width * module.weight.numel()
    module.total_ops += torch.tensor([images * macs], dtype=torch.float64)  # type: ignore[operator]
    executed = transposed_macs(module, (height, width), (output.shape[2], output.shape[3]))
    beyond.append(images * (executed - macs))


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep PyTorch from attention in a single operator, whose FLOPs not every version's counter knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _is_scaling(step: Step) -> bool:
    attrs = dict(step.attrs)
    return attrs["kernel"] == (1, 1) and attrs["groups"] == step.in_shape[0]
