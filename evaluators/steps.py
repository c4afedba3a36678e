"""What a policy makes the engine execute, as priceable steps, from shapes alone: no weight is touched."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from trimtab.evaluators.lowering import MOVES, copied_bits, is_bf16, is_integer, stored_bits
from trimtab.kernels.chains import Link, find_chains
from trimtab.kernels.graph import Graph, Node, Quant
from trimtab.spaces.factorisation import Geometry, factor_names, parts_of
from trimtab.spaces.grids import largest_integer
from trimtab.spaces.network import Network, Op
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.quantise import round_to_bf16
from trimtab.spaces.space import Space
from trimtab.spaces.sparsity import sparsify

__all__ = ["Step", "StepPlan", "step_graph"]

STEP = "step"

#: Storage is remembered for this many combinations of bits.
REMEMBERED = 4096

#: Attributes that change no time.
_TIMELESS = ("index", "epsilon", "scale")

#: A layer that is executed: the tensor that it writes, the shape of what it reads, its geometry.
_Part = tuple[str, tuple[int, ...], Geometry]

_QUANT = Quant(0.05, 128)
_OUT_QUANT = Quant(0.07, 120)


@dataclass(frozen=True)
class Step:
    """One kernel call: what its time depends on. Shapes are (C, H, W) or (F,); `in_int8` and `out_int8` say whether the
    input and the output are stored as uint8, `w_bits` and `a_bits` which values a layer's weights and input have,
    `pattern` which of the weights are zero.
    Kind "chain": `members`, two or more, run together, band by band."""

    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    attrs: tuple[tuple[str, object], ...] = ()
    w_bits: int = 32
    a_bits: int = 32
    in_int8: bool = False
    out_int8: bool = False
    residual: bool = False
    pattern: str | None = None
    members: tuple[Step, ...] = ()

    @property
    def parts(self) -> tuple[Step, ...]:
        """The members of a chain, or the step itself."""
        return self.members or (self,)

    @property
    def key(self) -> str:
        """A canonical text: the operator signature under which the latency table stores the time."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        if self.members:
            return sum(member.macs for member in self.members)
        if self.kind == "linear":
            return self.in_shape[0] * self.out_shape[0]
        if self.kind == "attention":
            return self.in_shape[1] ** 2 * (self.in_shape[0] + self.out_shape[0])
        if self.kind != "conv2d":
            return 0
        attrs = dict(self.attrs)
        return math.prod(self.out_shape) * self.in_shape[0] // int(attrs["groups"]) * math.prod(attrs["kernel"])  # type: ignore[call-overload,no-any-return]

    @property
    def weights(self) -> int:
        """Weight elements, without bias."""
        if self.members:
            return sum(member.weights for member in self.members)
        return self.macs // math.prod(self.out_shape[1:]) if self.kind in ("conv2d", "linear") else 0


@dataclass(frozen=True)
class Call:
    """A step in its place: it writes `tensor` and reads `reads`; `op` is the network's operator that it belongs to.

    `members` are the operators of the steps of a chain, whose last one is `op`.
    """

    op: str
    tensor: str
    reads: tuple[str, ...]
    step: Step
    members: tuple[str, ...] = ()


class StepPlan:
    """The steps of one network's policies, as the native engine fuses and orders them.

    Fusion is worked out once; a policy then only fills in widths and storage.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.network = space.network
        self._fusion = _Fusion.of(self.network)
        self._stored: dict[tuple[int, ...], Mapping[str, int]] = {}
        self._steps: dict[tuple[object, ...], Step] = {}
        self._parts: dict[tuple[object, ...], Sequence[_Part]] = {}
        self._chains: dict[tuple[Step, ...], Step] = {}

    def steps(self, policy: Policy) -> list[Step]:
        """Return the steps of a policy in execution order."""
        return [call.step for call in self.calls(policy)]

    def named_steps(self, policy: Policy) -> list[tuple[str, Step]]:
        """Return (operator, step) in execution order.

        All factors of a layer carry its name, a chain that of its last layer.
        """
        return [(call.op, call.step) for call in self.calls(policy)]

    def calls(self, policy: Policy) -> list[Call]:
        """Return the steps of a policy in execution order, with the tensors that they read and write."""
        calls = _Calls(self, policy).all()
        together = find_chains([_link(call) for call in calls], self.network.output)
        return [self._joined(calls[part.start : part.stop]) for part in together]

    def _joined(self, calls: list[Call]) -> Call:
        """Return one call for convolutions that run together."""
        if len(calls) == 1:
            return calls[0]
        members, last = tuple(call.step for call in calls), calls[-1]
        if members not in self._chains:
            self._chains[members] = replace(
                members[-1], kind="chain", in_shape=members[0].in_shape, in_int8=members[0].in_int8, members=members
            )
        written = {call.tensor for call in calls}
        reads = tuple(name for call in calls for name in call.reads if name not in written)
        return Call(last.op, last.tensor, reads, self._chains[members], tuple(call.op for call in calls))

    def stored(self, policy: Policy) -> Mapping[str, int]:
        """Return the bits of the tensors that are stored as uint8."""
        decisions = (policy.layers[op.name] for op in self.network.layers)
        bits = tuple(decision.a_bits if decision.is_integer else 32 for decision in decisions)
        if bits not in self._stored:
            if len(self._stored) >= REMEMBERED:
                self._stored.clear()
            self._stored[bits] = stored_bits(self.network, policy.layers)
        return self._stored[bits]


def _link(call: Call) -> Link:
    step = call.step
    size = math.prod(step.out_shape) * (1 if step.out_int8 else 4)
    return Link(call.tensor, call.reads, step.kind == "conv2d", size)


class _Calls:
    """Walks the network under one policy."""

    def __init__(self, plan: StepPlan, policy: Policy) -> None:
        self.plan, self.network, self.fusion, self.policy = plan, plan.network, plan._fusion, policy
        self.widths = plan.space.widths(policy.channels)
        self.stored = plan.stored(policy)
        self.copied: set[str] = set()
        self.calls: list[Call] = []

    def all(self) -> list[Call]:
        for op in self.network:
            if op.is_layer:
                self._before_layer(op)
            host = self.fusion.host.get(op.name)
            if host is not None:
                (self._layer if self.network.op(host).is_layer else self._other)(self.network.op(host), op.name)
        return self.calls

    def _source(self, layer: Op) -> str:
        """The tensor that a layer reads: an integer one a quantised copy where its input is stored otherwise."""
        source = layer.inputs[0]
        bits = copied_bits(self.policy.layers[layer.name], self.stored.get(source))
        return source if bits is None else f"{source}/int{bits}"

    def _before_layer(self, op: Op) -> None:
        source, decision = self._source(op), self.policy.layers[op.name]
        if source != op.inputs[0] and source not in self.copied:
            self.copied.add(source)
            self._convert(op, op.inputs[0], source, op.inputs[0] in self.stored, True)
        for tensor, in_shape, part in self._parts(op)[:-1]:
            key = (tensor, self._width(op), self.widths[op.name], decision)
            self._add(op, tensor, (source,), key, partial(self._dense, op, part, in_shape, is_integer(decision)))
            source = tensor

    def _layer(self, op: Op, final: str) -> None:
        decision, out_int8 = self.policy.layers[op.name], final in self.stored
        key = (op.name, self._width(op), self.widths[op.name], decision, out_int8)
        residual = self.fusion.residual.get(op.name)
        beside = () if residual is None else (residual,)
        *before, (_, in_shape, last) = self._parts(op)
        source = before[-1][0] if before else self._source(op)
        self._add(op, final, (source, *beside), key, partial(self._dense, op, last, in_shape, out_int8, True))

    def _parts(self, op: Op) -> Sequence[_Part]:
        """What a layer is executed as: itself, or its factors."""
        decision, in_shape, outputs = self.policy.layers[op.name], self._in_shape(op), self.widths[op.name]
        key = (op.name, in_shape, outputs, decision.factorisation, decision.rank)
        if key not in self.plan._parts:
            parts = parts_of(Geometry.of(op, in_shape[0], outputs), decision.factorisation, decision.rank)
            found = []
            for tensor, part in zip(factor_names(op.name, len(parts)), parts, strict=True):
                found.append((tensor, in_shape, part))
                in_shape = part.out_shape(in_shape)
            self.plan._parts[key] = found
        return self.plan._parts[key]

    def _in_shape(self, op: Op) -> tuple[int, ...]:
        return (self._width(op), *self.network.shape_of(op.inputs[0])[1:])

    def _dense(self, op: Op, part: Geometry, in_shape: tuple[int, ...], out_int8: bool, last: bool = False) -> Step:
        """One of the parts of a layer; only the last one absorbs what follows the layer."""
        decision = self.policy.layers[op.name]
        attrs = {**part.attrs, "activation": self.fusion.activation.get(op.name, "none") if last else "none"}
        if part.kernel:
            attrs["kernel"] = part.kernel
        residual = last and op.name in self.fusion.residual
        bits, integer = _bits(part, decision), is_integer(decision)
        out_shape = part.out_shape(in_shape)
        pattern = decision.pattern
        return Step(part.kind, in_shape, out_shape, _items(attrs), *bits, integer, out_int8, residual, pattern)

    def _other(self, op: Op, final: str) -> None:
        in_int8, out_int8 = op.inputs[0] in self.stored, final in self.stored
        inputs = op.inputs
        if op.kind in MOVES and in_int8 != out_int8:
            inputs = (f"{op.name}.input",)
            self._convert(op, op.inputs[0], inputs[0], in_int8, out_int8)
            in_int8 = out_int8
        key = (op.name, self._width(op), self.widths[op.name], in_int8, out_int8)
        self._add(op, final, inputs, key, lambda: self._plain(op, in_int8, out_int8))

    def _plain(self, op: Op, in_int8: bool, out_int8: bool) -> Step:
        out_shape = (self.widths[op.name], *op.shape[1:])
        attrs = {name: value for name, value in op.attrs.items() if name not in _TIMELESS}
        if op.kind == "add":
            attrs["activation"] = self.fusion.activation.get(op.name, "none")
        if op.kind == "mul":
            attrs["gate"] = op.shape != self.network.shape_of(op.inputs[1])
        return Step(op.kind, self._in_shape(op), out_shape, _items(attrs), in_int8=in_int8, out_int8=out_int8)

    def _convert(self, op: Op, source: str, tensor: str, in_int8: bool, out_int8: bool) -> None:
        shape = (self.widths[source], *self.network.shape_of(source)[1:])
        step = Step("quantize", shape, shape, in_int8=in_int8, out_int8=out_int8)
        self.calls.append(Call(op.name, tensor, (source,), step))

    def _add(
        self, op: Op, tensor: str, reads: tuple[str, ...], key: tuple[object, ...], make: Callable[[], Step]
    ) -> None:
        steps = self.plan._steps
        if key not in steps:
            steps[key] = make()
        self.calls.append(Call(op.name, tensor, reads, steps[key]))

    def _width(self, op: Op) -> int:
        return self.widths[op.inputs[0]]


def _bits(part: Geometry, decision: LayerDecision) -> tuple[int, int]:
    """Weight and activation bits that a layer computes with."""
    return decision.w_bits, 32 if decision.is_bf16 and not is_bf16(part, decision) else decision.a_bits


def _items(attrs: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(attrs.items()))


@dataclass(frozen=True)
class _Fusion:
    """What `trimtab.kernels.fuse` makes of the network; no policy changes it, since what is fused stays float32.

    `host`: every tensor that remains -> the operator that computes it; `activation` and `residual`: operator -> the
    activation and the tensor that it absorbs.
    """

    host: Mapping[str, str]
    activation: Mapping[str, str]
    residual: Mapping[str, str]

    @classmethod
    def of(cls, network: Network) -> _Fusion:
        uses = Counter(name for op in network for name in op.inputs)
        uses[network.output] += 1
        host: dict[str, str] = {}
        activation: dict[str, str] = {}
        residual: dict[str, str] = {}

        def bare(tensor: str, kinds: tuple[str, ...]) -> bool:
            """Whether an operator of these kinds computes the tensor, without activation, for one reader only."""
            computed_by = host.get(tensor)
            fits = computed_by is not None and network.op(computed_by).kind in kinds and computed_by not in activation
            return fits and uses[tensor] == 1

        for op in network:
            host[op.name] = op.name
            if op.kind == "activation" and bare(op.inputs[0], ("conv2d", "linear", "add")):
                host[op.name] = host.pop(op.inputs[0])
                activation[host[op.name]] = str(op.attrs["activation"])
            elif op.kind == "add":
                hosts = [t for t in op.inputs if bare(t, ("conv2d", "linear")) and host[t] not in residual]
                if hosts:
                    last = max(hosts, key=list(host).index)
                    host[op.name] = host.pop(last)
                    residual[host[op.name]] = op.inputs[1] if op.inputs[0] == last else op.inputs[0]
        return cls(host, activation, residual)


def step_graph(step: Step) -> Graph:
    """Return a small program whose node `step` is this step, or ends this chain, with seeded random weights of as many
    values as its bits allow, because kernels are chosen by the values.

    A residual comes from a copy of the input brought to the output's shape, where that is possible.
    """
    rng = np.random.default_rng(0)
    beside: list[Node] = []  # made of the input, before anything that might be a chain
    nodes: list[Node] = []
    quant = {"x": _stored_as(step.parts[0])} if step.in_int8 else {}
    source = "x"
    for i, part in enumerate(step.parts, 1):
        name = STEP if i == len(step.parts) else f"{STEP}.{i}"
        nodes.append(_node(rng, part, source, name, step.in_shape, beside, quant))
        if part.out_int8:
            following = step.parts[i] if i < len(step.parts) else None
            quant[name] = _output_stored_as(part, following)
        source = name
    return Graph("x", step.in_shape, (*beside, *nodes), STEP, quant)


def _node(
    rng: np.random.Generator,
    step: Step,
    source: str,
    name: str,
    image: tuple[int, ...],
    beside: list[Node],
    quant: dict[str, Quant],
) -> Node:
    """Return the step's node, which reads `source`.

    What else it reads is made of the program's input, of shape `image`, by nodes appended to `beside`.
    """
    attrs = dict(step.attrs)
    kernel = attrs.pop("kernel", None) if step.kind == "conv2d" else None
    inputs: tuple[str, ...] = (source,)
    weights = {}
    if step.kind in ("conv2d", "linear"):
        size: tuple[int, ...] = (step.out_shape[0], step.in_shape[0])
        if kernel is not None:
            size = (step.out_shape[0], step.in_shape[0] // int(attrs["groups"]), *kernel)  # type: ignore[misc,call-overload]
        weights = _random_weights(rng, size, step.w_bits, step.pattern)
        attrs["precision"] = "bf16" if step.a_bits == 16 else "fp32"
    if step.residual and _add_residual(f"{name}.residual", image, step.out_shape, beside, quant):
        inputs = (source, f"{name}.residual")
    if step.kind == "add":
        inputs = (source, source)
    if step.kind == "mul":
        inputs = (source, _factor(bool(attrs.pop("gate")), beside))
    if step.kind == "concat":
        inputs = _concat_inputs(step, beside, quant)
    if step.kind == "attention":
        inputs = (source, source, _attention_values(step, beside, quant))
    if step.kind == "layer_norm":
        ones = np.ones(step.in_shape[0], np.float32)
        weights = {"weight": ones, "bias": ones}
    if step.kind == "tokens":
        first = step.out_shape[1] - math.prod(step.in_shape[1:])
        weights = {"prefix": np.zeros((first, step.in_shape[0]), np.float32)} if first else {}
    if step.kind == "channel_map":
        index = [i if i < step.in_shape[0] else -1 for i in range(step.out_shape[0])]
        attrs["index"] = tuple(index)
    return Node(step.kind, name, inputs, attrs, weights)


def _output_stored_as(step: Step, following: Step | None) -> Quant:
    if following is not None and following.a_bits < 8:
        return _stored_as(following)
    # Operators that move values keep their input's scale; a concatenation's inputs each have their own.
    return _stored_as(step) if step.in_int8 and step.kind in MOVES else _OUT_QUANT


def _stored_as(step: Step) -> Quant:
    """Storage of a step's input: what layers read in few bits comes from a ReLU and has its zero at 0."""
    return _QUANT if step.a_bits >= 8 else Quant(3.0 / (2**step.a_bits - 1), 0, step.a_bits)


def _concat_inputs(step: Step, nodes: list[Node], quant: dict[str, Quant]) -> tuple[str, ...]:
    """As often the input as it fits, and its first channels for what is left."""
    times, rest = divmod(step.out_shape[0], step.in_shape[0])
    if not rest:
        return ("x",) * times
    nodes.append(Node("channel_map", "rest", ("x",), {"index": tuple(range(rest))}))
    if step.in_int8:
        quant["rest"] = _stored_as(step)
    return (*("x",) * times, "rest")


def _factor(gate: bool, nodes: list[Node]) -> str:
    if not gate:
        return "x"
    nodes.append(Node("global_avg_pool2d", "gate", ("x",)))
    return "gate"


def _attention_values(step: Step, nodes: list[Node], quant: dict[str, Quant]) -> str:
    if step.out_shape == step.in_shape:
        return "x"
    index = tuple(i % step.in_shape[0] for i in range(step.out_shape[0]))
    nodes.append(Node("channel_map", "values", ("x",), {"index": index}))
    if step.in_int8:
        quant["values"] = _QUANT
    return "values"


def _add_residual(
    name: str, image: tuple[int, ...], shape: tuple[int, ...], nodes: list[Node], quant: dict[str, Quant]
) -> bool:
    """Append a tensor of this name and shape, made of the program's input; return whether that is possible."""
    source = "x"
    if len(image) == 3:
        strides = tuple(-(-have // want) for have, want in zip(image[1:], shape[1:], strict=True))
        if tuple(-(-have // stride) for have, stride in zip(image[1:], strides, strict=True)) != shape[1:]:
            return False
        source = f"{name}.thinned"
        nodes.append(Node("subsample", source, ("x",), {"stride": strides}))
    index = tuple(i % image[0] for i in range(shape[0]))
    nodes.append(Node("channel_map", name, (source,), {"index": index}))
    if "x" in quant:
        quant[source] = quant[name] = quant["x"]
    return True


def _random_weights(
    rng: np.random.Generator, size: tuple[int, ...], bits: int, pattern: str | None
) -> dict[str, np.ndarray]:
    weights = _dense_weights(rng, size, bits)
    return weights if pattern is None else {**weights, "weight": sparsify(weights["weight"], pattern)}


def _dense_weights(rng: np.random.Generator, size: tuple[int, ...], bits: int) -> dict[str, np.ndarray]:
    bias = rng.normal(size=size[0]).astype(np.float32)
    if bits > 8:
        weight = rng.normal(size=size).astype(np.float32)
        return {"weight": round_to_bf16(weight) if bits == 16 else weight, "bias": bias}
    top = largest_integer(bits)
    integers = rng.integers(-top, top + 1, size, dtype=np.int8)
    if bits == 1:
        integers = np.where(integers > 0, 1, -1).astype(np.int8)
    return {"weight": integers, "weight_scale": np.full(size[0], 1.27 / top, np.float32), "bias": bias}
