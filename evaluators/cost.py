"""What a policy costs, before anything is built: latency from the table, bytes, MACs and memory from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trimtab.errors import TrimtabError
from trimtab.evaluators.steps import Step, StepPlan
from trimtab.evaluators.table import LatencyTable
from trimtab.kernels.graph import Graph
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["Cost", "CostModel", "TableError", "TableFit", "count_macs", "stored_bytes"]


@dataclass(frozen=True)
class Cost:
    """`latency` in seconds for one batch of one image, `size` in bytes of stored weights, `macs` (one
    multiply-accumulate = 1) and `memory` (peak bytes of live activations) for one image."""

    latency: float
    size: int
    macs: int
    memory: int

    def get(self, budget: str) -> float:
        """Return the value that a budget of this name limits."""
        return float(getattr(self, budget))


@dataclass(frozen=True)
class TableError:
    """How far the table was from end-to-end measurements: median and largest |predicted / measured - 1|."""

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
        rows = np.stack([np.asarray(totals), np.asarray(steps) * 1e-6, np.full(len(totals), 1e-6)], axis=1)
        rows = rows * weight[:, None]
        pull = 0.02 * np.eye(3)
        target = np.concatenate([np.ones(len(totals)), 0.02 * np.array([1.0, 0.0, 0.0])])
        factor, per_step, constant = np.linalg.lstsq(np.concatenate([rows, pull]), target, rcond=None)[0]
        return cls(float(factor), float(per_step) * 1e-6, float(constant) * 1e-6)


class CostModel:
    """Prices policies in about a millisecond each, once the table has their steps."""

    def __init__(self, space: Space, table: LatencyTable, fit: TableFit | None = None) -> None:
        self.space = space
        self.table = table
        self.plan = StepPlan(space)
        self.fit = fit or TableFit()
        self._biased = {op.name for op in space.network.layers if op.bias is not None}

    def cost(self, policy: Policy) -> Cost:
        """Return the policy's predicted cost."""
        steps = self.plan.steps(policy)
        return Cost(
            latency=self.fit(self.table.total(steps), len(steps)),
            size=self.size(policy),
            macs=sum(step.macs for step in steps),
            memory=peak_memory(steps),
        )

    def get(self, policy: Policy, budget: str) -> float:
        """Return one cost, without working out (or measuring) the others."""
        if budget == "size":
            return self.size(policy)
        steps = self.plan.steps(policy)
        if budget == "latency":
            return self.fit(self.table.total(steps), len(steps))
        return sum(step.macs for step in steps) if budget == "macs" else peak_memory(steps)

    def size(self, policy: Policy) -> int:
        """Return the bytes of the weights as the artefact stores them, scales and biases included."""
        untouched = policy == self.space.base()
        total = 0
        for shape in self.space.layer_shapes(policy):
            taps = math.prod(shape.op.weight.shape[2:])  # type: ignore[union-attr]
            inputs = shape.inputs // shape.op.groups * taps if not shape.op.is_depthwise else taps
            rank = shape.decision.rank
            elements = inputs * shape.outputs if rank is None else rank * (inputs + shape.outputs)
            rows = shape.outputs + (rank or 0)
            # Bias correction gives every repaired layer a bias.
            biases = shape.outputs if shape.op.name in self._biased or not untouched else 0
            total += elements * shape.decision.w_bits // 8 + 4 * biases
            total += 4 * rows if shape.decision.w_bits == 8 else 0
        return total

    def error(self, measured: Mapping[Policy, float]) -> TableError:
        """Compare predictions with end-to-end measurements (seconds)."""
        errors = [abs(self.get(policy, "latency") / seconds - 1) for policy, seconds in measured.items()]
        if not errors:
            return TableError(math.nan, math.nan, 0)
        return TableError(float(np.median(errors)), max(errors), len(errors))


def peak_memory(steps: Sequence[Step]) -> int:
    """Return the largest bytes of one step's input and output together: a lower bound that an in-order run needs."""
    return max(
        math.prod(step.in_shape) * (1 if step.in_int8 else 4) * (2 if step.residual else 1)
        + math.prod(step.out_shape) * (1 if step.out_int8 else 4)
        for step in steps
    )


def stored_bytes(graph: Graph) -> int:
    """Return the bytes of all weights of a program, as its artefact stores them."""
    return sum(array.nbytes for node in graph.nodes for array in node.weights.values())


def count_macs(model: nn.Module, example: torch.Tensor, steps: Sequence[Step]) -> int:
    """Return the MACs of the untouched network for one image, agreed on by three counters.

    Our own count from shapes must equal thop's and half of torch's FLOP counter's; a difference means that the network
    does something that trimtab prices wrongly, and is an error.
    """
    from copy import deepcopy

    import thop
    from torch.utils.flop_counter import FlopCounterMode

    ours = sum(step.macs for step in steps)
    ignore = dict.fromkeys(_FREE, _zero_ops)
    with torch.no_grad():
        by_thop, _ = thop.profile(deepcopy(model).eval(), (example,), custom_ops=ignore, verbose=False)
        with FlopCounterMode(display=False) as counter:
            model.eval()(example)
    by_torch = counter.get_total_flops() // 2
    # A batch norm that follows no layer is a depthwise 1x1 convolution to us and free to the others.
    norms = sum(step.macs for step in steps if step.kind == "conv2d" and _is_scaling(step))
    if not ours - norms <= by_torch <= ours or int(by_thop) != by_torch:
        raise TrimtabError(
            f"the MAC counters disagree: {ours} from shapes, {int(by_thop)} by thop, {by_torch} by torch; "
            "a layer of this network is counted wrongly"
        )
    return ours


_FREE: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)


def _zero_ops(module: nn.Module, inputs: object, output: object) -> None:
    module.total_ops += torch.zeros(1, dtype=torch.float64)  # type: ignore[operator]


def _is_scaling(step: Step) -> bool:
    attrs = dict(step.attrs)
    return attrs["kernel"] == (1, 1) and attrs["groups"] == step.in_shape[0]
