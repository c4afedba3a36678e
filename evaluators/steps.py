"""What a policy makes the engine execute, as priceable steps, from shapes alone: no weight is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from trimtab.evaluators.lowering import MOVES, is_integer
from trimtab.kernels.graph import Graph, Node, Quant
from trimtab.spaces.network import Network, Op
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.space import Space

__all__ = ["Step", "StepPlan", "step_graph"]

STEP = "step"
_QUANT = Quant(0.05, 128)


@dataclass(frozen=True)
class Step:
    """One kernel call: what its time depends on. Shapes are (C, H, W) or (F,); `in_int8` and `out_int8` say how the
    input and the output are stored, `w_bits` and `a_bits` how a layer computes."""

    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    attrs: tuple[tuple[str, object], ...] = ()
    w_bits: int = 32
    in_int8: bool = False
    out_int8: bool = False
    residual: bool = False

    @property
    def key(self) -> str:
        """A canonical text: the operator signature under which the latency table stores the time."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        if self.kind == "linear":
            return self.in_shape[0] * self.out_shape[0]
        if self.kind != "conv2d":
            return 0
        attrs = dict(self.attrs)
        return math.prod(self.out_shape) * self.in_shape[0] // int(attrs["groups"]) * math.prod(attrs["kernel"])  # type: ignore[call-overload,arg-type,no-any-return]

    @property
    def weights(self) -> int:
        """Weight elements, without bias."""
        return self.macs // math.prod(self.out_shape[1:]) if self.macs else 0


class StepPlan:
    """The steps of one network's policies: fusion is worked out once, a policy then only fills in widths and bits."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.network = space.network
        self.activation, self.residuals, self.absorbed = _fusion(self.network)
        self._steps: dict[tuple[object, ...], tuple[Step, ...]] = {}

    def steps(self, policy: Policy) -> list[Step]:
        """Return the steps of a policy in execution order."""
        return [step for _, step in self.named_steps(policy)]

    def named_steps(self, policy: Policy) -> list[tuple[str, Step]]:
        """Return (operator, step) in execution order; both factors of a layer carry its name."""
        widths = self.space.widths(policy.channels)
        steps: list[tuple[str, Step]] = []
        for op in self.network:
            if op.name in self.absorbed:
                continue
            decision = policy.layers.get(op.name)
            integer = self._reads_int8(op, policy)
            key = (op.name, widths[op.inputs[0]], widths[op.name], decision, integer)
            if key not in self._steps:
                self._steps[key] = self._make(op, widths, decision, integer)
            steps.extend((op.name, step) for step in self._steps[key])
        return steps

    def _reads_int8(self, op: Op, policy: Policy) -> bool:
        """Whether an operator's input is stored as uint8, judged by the nearest layer that writes or reads it."""
        if op.is_layer:
            return is_integer(policy.layers[op.name])
        source = op.inputs[0]
        while source != self.network.input:
            producer = self.network.op(source)
            if producer.is_layer:
                return is_integer(policy.layers[producer.name])
            source = producer.inputs[0]
        return False

    def _make(
        self, op: Op, widths: Mapping[str, int], decision: LayerDecision | None, integer: bool
    ) -> tuple[Step, ...]:
        in_shape = (widths[op.inputs[0]], *self.network.shape_of(op.inputs[0])[1:])
        out_shape = (widths[op.name], *op.shape[1:])
        last = self._is_last(op)
        if decision is None or op.weight is None:
            attrs = {name: value for name, value in op.attrs.items() if name != "index"}
            int8_out = integer and op.kind in MOVES and not last
            return (Step(op.kind, in_shape, out_shape, _items(attrs), in_int8=integer, out_int8=int8_out),)
        attrs = dict(op.attrs)
        attrs["activation"] = self.activation.get(op.name, "none")
        if op.kind == "conv2d":
            attrs["kernel"] = tuple(op.weight.shape[2:])
            attrs["groups"] = in_shape[0] if op.is_depthwise else op.groups
        residual = op.name in self.residuals
        bits, out_int8 = decision.w_bits, integer and not last
        if decision.rank is None:
            return (Step(op.kind, in_shape, out_shape, _items(attrs), bits, integer, out_int8, residual),)
        middle = (decision.rank, *out_shape[1:])
        first = Step(op.kind, in_shape, middle, _items({**attrs, "activation": "none"}), bits, integer, integer)
        if op.kind == "conv2d":
            attrs.update(kernel=(1, 1), stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1)
        return first, Step(op.kind, middle, out_shape, _items(attrs), bits, integer, out_int8, residual)

    def _is_last(self, op: Op) -> bool:
        readers = self.network.consumers(op.name)
        return op.name == self.network.output or (
            all(reader.name in self.absorbed for reader in readers) and any(map(self._is_last, readers))
        )


def _items(attrs: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(attrs.items()))


def _fusion(network: Network) -> tuple[dict[str, str], frozenset[str], frozenset[str]]:
    """The activation each layer or addition absorbs, the layers that absorb a residual, and what is absorbed."""
    activation: dict[str, str] = {}
    residuals: set[str] = set()
    absorbed: set[str] = set()
    runs_in: dict[str, str] = {}  # tensor -> the operator in whose epilogue it is computed
    order = {op.name: i for i, op in enumerate(network.ops)}
    for op in network:
        if op.is_layer or op.kind == "add":
            runs_in[op.name] = op.name
        if op.kind == "add":
            hosts = [
                name
                for name in op.inputs
                if name in order
                and network.op(name).is_layer
                and not network.op(name).is_depthwise
                and len(network.consumers(name)) == 1
                and name != network.output
            ]
            if hosts:
                host = max(hosts, key=order.__getitem__)
                residuals.add(host)
                absorbed.add(op.name)
                runs_in[op.name] = host
        elif op.kind == "activation":
            source = op.inputs[0]
            host = runs_in.get(source, "")
            if host and host not in activation and len(network.consumers(source)) == 1 and source != network.output:
                activation[host] = str(op.attrs["activation"])
                absorbed.add(op.name)
    return activation, frozenset(residuals), frozenset(absorbed)


def step_graph(step: Step) -> Graph:
    """Return a small program whose node `step` is this step, with seeded random weights.

    A residual comes from a copy of the input brought to the output's shape, where that is possible.
    """
    rng = np.random.default_rng(0)
    attrs = dict(step.attrs)
    kernel = attrs.pop("kernel", None) if step.kind == "conv2d" else None
    nodes: list[Node] = []
    inputs: tuple[str, ...] = ("x",)
    quant = {"x": _QUANT} if step.in_int8 else {}
    weights = {}
    if step.kind in ("conv2d", "linear"):
        size: tuple[int, ...] = (step.out_shape[0], step.in_shape[0])
        if kernel is not None:
            size = (step.out_shape[0], step.in_shape[0] // int(attrs["groups"]), *kernel)  # type: ignore[misc,call-overload]
        weights = _random_weights(rng, size, step.w_bits)
    if step.residual and step.kind == "conv2d" and _fill_residual(step, attrs, nodes, quant):
        inputs = ("x", "residual")
    if step.kind == "add":
        inputs = ("x", "x")
    if step.kind == "concat":
        half = step.in_shape[0]
        inputs = ("x",) * max(1, step.out_shape[0] // half)
    if step.kind == "channel_map":
        index = [i if i < step.in_shape[0] else -1 for i in range(step.out_shape[0])]
        attrs["index"] = tuple(index)
    nodes.append(Node(step.kind, STEP, inputs, attrs, weights))
    if step.out_int8:
        quant[STEP] = _QUANT
    return Graph("x", step.in_shape, tuple(nodes), STEP, quant)


def _fill_residual(step: Step, attrs: Mapping[str, object], nodes: list[Node], quant: dict[str, Quant]) -> bool:
    rows, columns = attrs["stride"]  # type: ignore[misc]
    shape = (-(-step.in_shape[1] // rows), -(-step.in_shape[2] // columns))  # type: ignore[has-type]
    if shape != step.out_shape[1:]:
        return False
    nodes.append(Node("subsample", "thinned", ("x",), {"stride": (rows, columns)}))  # type: ignore[has-type]
    index = tuple(i % step.in_shape[0] for i in range(step.out_shape[0]))
    nodes.append(Node("channel_map", "residual", ("thinned",), {"index": index}))
    if step.in_int8:
        quant["thinned"] = quant["residual"] = _QUANT
    return True


def _random_weights(rng: np.random.Generator, size: tuple[int, ...], bits: int) -> dict[str, np.ndarray]:
    bias = rng.normal(size=size[0]).astype(np.float32)
    if bits == 8:
        weight = rng.integers(-127, 128, size, dtype=np.int8)
        return {"weight": weight, "weight_scale": np.full(size[0], 0.01, np.float32), "bias": bias}
    return {"weight": rng.normal(size=size).astype(np.float32), "bias": bias}
