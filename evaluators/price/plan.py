"""The plan of what an engine executes under a policy: priceable steps, from shapes alone; no weight is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from trimtab.evaluators.lowering import Storage, copied_bits, moves, weight_arrays
from trimtab.graph import LAYERS, OPERATORS, Array, Graph, Node, Quant, bands
from trimtab.graph.passes import fused_nodes
from trimtab.spaces.factorisation import Geometry, factor_names, parts_of
from trimtab.spaces.forms.sharing import flips_signs
from trimtab.spaces.numbers.formats import FLOAT, LayerFormat
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.space import Space

__all__ = ["Step", "StepPlan", "step_graph"]

STEP = "step"

#: Storage is remembered for this many combinations of bits.
REMEMBERED = 4096

#: Output channels of a layer whose weights are drawn for its timing; all others repeat them, because rounding millions
#: of weights takes longer than timing them. No kernel looks for blocks of zeros in more channels than these at once.
DRAWN = 64

#: Attributes that change no time.
_TIMELESS = ("index", "epsilon", "scale", "align_corners")

_QUANT = Quant(0.05, 128)
_OUT_QUANT = Quant(0.07, 120)


@dataclass(frozen=True)
class Step:
    """One kernel call: what its time depends on. Shapes are (C, H, W) or (F,); `format` says which values a
    layer's weights and input have, `in_int8` and `out_int8` whether the input and the output are stored as uint8,
    `pattern` which of the weights are zero, and `hashing` how weights share values where that gives them
    other values than their grid has.
    Kind "chain": `members`, two or more, run together, band by band."""

    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    attrs: tuple[tuple[str, object], ...] = ()
    format: LayerFormat = FLOAT
    in_int8: bool = False
    out_int8: bool = False
    residual: bool = False
    pattern: str | None = None
    hashing: str | None = None
    members: tuple[Step, ...] = ()

    @property
    def parts(self) -> tuple[Step, ...]:
        """The members of a chain, or the step itself."""
        return self.members or (self,)

    @property
    def key(self) -> str:
        """A canonical text: the operator signature under which the latency table stores the time."""
        return json.dumps(self._fields(), sort_keys=True, separators=(",", ":"))

    def _fields(self) -> dict[str, object]:
        # `dataclasses.asdict` copies what it finds, and takes ten times as long.
        own = {name: getattr(self, name) for name in _KEPT}
        return {**own, **self.format.to_json(), "members": [member._fields() for member in self.members]}

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        if self.members:
            return sum(member.macs for member in self.members)
        return OPERATORS[self.kind].macs(dict(self.attrs), self.in_shape, self.out_shape)

    @property
    def weights(self) -> int:
        """Weight elements, without bias."""
        if self.members:
            return sum(member.weights for member in self.members)
        return self.macs // math.prod(self.out_shape[1:]) if self.kind in LAYERS else 0


_KEPT = tuple(field.name for field in fields(Step) if field.name not in ("format", "members"))


@dataclass(frozen=True, eq=False)
class Call:
    """A step in its place: it writes `tensor` and reads `reads`; `op` is the network's operator that it belongs to.

    `members` are the operators of the steps of a chain, whose last one is `op`. One plan gives the same object wherever
    nothing that it depends on differs.
    """

    op: str
    tensor: str
    reads: tuple[str, ...]
    step: Step
    members: tuple[str, ...] = ()

    @cached_property
    def size(self) -> int:
        """Bytes of what it writes, for one image."""
        return math.prod(self.step.out_shape) * (1 if self.step.out_int8 else 4)

    @property
    def link(self) -> bands.Link:
        """What decides whether it joins a chain."""
        return bands.Link(self.tensor, self.reads, self.step.kind == "conv2d", self.size)


class StepPlan:
    """The steps of one network's policies, as the native engine fuses and orders them.

    Fusion is worked out once. What an operator is executed as is worked out once for all policies that agree in what it
    depends on: its own decision and widths, and how its input and its output are stored.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.network = space.network
        fused = fused_nodes(self.network)  # no policy changes it, since what is fused stays float32
        by_origin = {each.origin: each.node for each in fused}
        origins = {each.node.name: each.origin for each in fused}
        #: In order, the operators that run, and between them (None) which of them is now to write its tensor.
        self._order: list[tuple[str, _Operator | None]] = []
        for op in self.network:
            if op.name in by_origin:
                self._order.append((op.name, _Operator(self.network, op, by_origin[op.name])))
            if op.name in origins:
                self._order.append((origins[op.name], None))
        self._storage = Storage(self.network)
        self._stored: dict[tuple[int | None, ...], Mapping[str, int]] = {}
        self._chains: dict[tuple[Call, ...], Call] = {}

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
        calls = self._alone(policy)
        if all(call.size < bands.CHAINED_BYTES for call in calls):
            return calls
        together = bands.find_chains([call.link for call in calls], self.network.output)
        return [self._joined(calls[part.start : part.stop]) for part in together]

    def _alone(self, policy: Policy) -> list[Call]:
        """Return the steps before any of them are joined to chains."""
        widths, stored = self.space.widths(policy.channels), self.stored(policy)
        calls: list[Call] = []
        copied: set[str] = set()
        last: dict[str, Call] = {}
        for name, operator in self._order:
            if operator is None:
                calls.append(last[name])
                continue
            run = operator.run(policy.layers.get(name), widths, stored)
            if run.copy is not None and run.copy.tensor not in copied:
                copied.add(run.copy.tensor)
                calls.append(run.copy)
            calls += run.before
            last[name] = run.last
        return calls

    def _joined(self, calls: list[Call]) -> Call:
        """Return one call for convolutions that run together."""
        if len(calls) == 1:
            return calls[0]
        key = tuple(calls)
        if key not in self._chains:
            members, last = tuple(call.step for call in calls), calls[-1]
            step = replace(
                members[-1], kind="chain", in_shape=members[0].in_shape, in_int8=members[0].in_int8, members=members
            )
            written = {call.tensor for call in calls}
            reads = tuple(name for call in calls for name in call.reads if name not in written)
            self._chains[key] = Call(last.op, last.tensor, reads, step, tuple(call.op for call in calls))
        return self._chains[key]

    def stored(self, policy: Policy) -> Mapping[str, int]:
        """Return the bits of the tensors that are stored as uint8."""
        formats = (policy.layers[op.name].format for op in self.network.layers)
        bits = tuple(each.activation_bits if each.is_integer else None for each in formats)
        if bits not in self._stored:
            if len(self._stored) >= REMEMBERED:
                self._stored.clear()
            self._stored[bits] = self._storage.bits(policy.layers)
        return self._stored[bits]


@dataclass(frozen=True)
class _Run:
    """The execution of an operator: the quantised copy that it reads, which is made once for all its readers, the
    steps before its last one, and that one, which writes what it absorbs."""

    copy: Call | None
    before: tuple[Call, ...]
    last: Call


class _Operator:
    """One operator of the network, which runs `fused` with what it absorbs, and all that it was executed as so far."""

    def __init__(self, network: Graph, op: Node, fused: Node) -> None:
        self.op, self.tensor, self.source = op, fused.name, op.inputs[0]
        self.activation = fused.attrs.get("activation", "none")
        self.residual = fused.inputs[1] if op.is_layer and len(fused.inputs) == 2 else None
        self._shape, self._source_shape = network.shapes[op.name], network.shapes[self.source]
        self._gates = op.kind == "mul" and self._shape != network.shapes[op.inputs[1]]
        self._runs: dict[tuple[object, ...], _Run] = {}

    def run(self, decision: LayerDecision | None, widths: Mapping[str, int], stored: Mapping[str, int]) -> _Run:
        """Return what it is executed as; `decision` is None where it is no layer."""
        in_bits, out_int8 = stored.get(self.source), self.tensor in stored
        key = (widths[self.source], widths[self.op.name], decision, in_bits, out_int8)
        run = self._runs.get(key)
        if run is None:
            in_shape, outputs = (widths[self.source], *self._source_shape[1:]), widths[self.op.name]
            if decision is None:
                run = self._other(in_shape, outputs, in_bits is not None, out_int8)
            else:
                run = self._layer(in_shape, outputs, decision, in_bits, out_int8)
            self._runs[key] = run
        return run

    def _layer(
        self, in_shape: tuple[int, ...], outputs: int, decision: LayerDecision, in_bits: int | None, out_int8: bool
    ) -> _Run:
        """A layer, or its factors; an integer one reads a quantised copy where its input is stored otherwise."""
        source, copy, bits = self.source, None, copied_bits(decision, in_bits)
        if bits is not None:
            source = f"{source}/int{bits}"
            copy = self._convert(source, in_shape, in_bits is not None, True)
        *before, last = parts_of(Geometry.of(self.op, in_shape[0], outputs), decision.factorisation, decision.rank)
        calls = []
        for tensor, part in zip(factor_names(self.op.name, len(before) + 1), before, strict=False):
            calls.append(self._call(tensor, (source,), _step(part, in_shape, decision, decision.format.is_integer)))
            source, in_shape = tensor, part.out_shape(in_shape)
        reads = (source,) if self.residual is None else (source, self.residual)
        step = _step(last, in_shape, decision, out_int8, self.activation, self.residual is not None)
        return _Run(copy, tuple(calls), self._call(self.tensor, reads, step))

    def _other(self, in_shape: tuple[int, ...], outputs: int, in_int8: bool, out_int8: bool) -> _Run:
        op, before, reads = self.op, [], self.op.inputs
        if moves(op) and in_int8 != out_int8:
            reads = (f"{op.name}.input",)
            before.append(self._convert(reads[0], in_shape, in_int8, out_int8))
            in_int8 = out_int8
        own = OPERATORS[op.kind].with_channels(op.attrs, self._source_shape[0], in_shape[0])
        attrs = {name: value for name, value in own.items() if name not in _TIMELESS}
        if op.kind == "add":
            attrs["activation"] = self.activation
        if op.kind == "mul":
            attrs["gate"] = self._gates
        step = Step(op.kind, in_shape, (outputs, *self._shape[1:]), _items(attrs), in_int8=in_int8, out_int8=out_int8)
        return _Run(None, tuple(before), self._call(self.tensor, reads, step))

    def _convert(self, tensor: str, shape: tuple[int, ...], in_int8: bool, out_int8: bool) -> Call:
        return self._call(tensor, (self.source,), Step("quantize", shape, shape, in_int8=in_int8, out_int8=out_int8))

    def _call(self, tensor: str, reads: tuple[str, ...], step: Step) -> Call:
        return Call(self.op.name, tensor, reads, step)


def _step(
    part: Geometry,
    in_shape: tuple[int, ...],
    decision: LayerDecision,
    out_int8: bool,
    activation: str = "none",
    residual: bool = False,
) -> Step:
    """Return the step of a layer or of one of its factors."""
    attrs = {**part.attrs, "activation": activation}
    if part.kernel:
        attrs["kernel"] = part.kernel
    return Step(
        part.kind,
        in_shape,
        part.out_shape(in_shape),
        _items(attrs),
        decision.format.executed(part.is_depthwise),
        decision.format.is_integer,
        out_int8,
        residual,
        decision.pattern,
        _hashing(decision),
    )


def _hashing(decision: LayerDecision) -> str | None:
    """The way of sharing, where its weights have values that their grid lacks.

    Shared weights run dense, on the values of their grid. Hashing turns the sign of some, and codebooks do not have
    every value with both signs.
    """
    how = decision.sharing
    return how if how is not None and flips_signs(how) and not decision.format.weight.is_symmetric else None


def _items(attrs: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(attrs.items()))


def step_graph(step: Step) -> Graph:
    """Return a small program whose node `step` is this step, or ends this chain, with what a candidate makes of seeded
    normal weights, because kernels are chosen by the values.

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
    if step.kind in LAYERS:
        size: tuple[int, ...] = (step.out_shape[0], step.in_shape[0])
        if kernel is not None:
            size = (step.out_shape[0], step.in_shape[0] // int(attrs["groups"]), *kernel)  # type: ignore[misc,call-overload]
        weights = _weights(rng, step, size)
        attrs["precision"] = "bf16" if step.format.is_bf16 else "fp32"
    elif step.kind == "tokens":
        first = step.out_shape[1] - math.prod(step.in_shape[1:])
        weights = {"prefix": np.zeros((first, step.in_shape[0]), np.float32)} if first else {}
    else:  # constants of every channel
        weights = dict.fromkeys(OPERATORS[step.kind].weights, np.ones(step.in_shape[0], np.float32))
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
    if step.kind == "channel_map":
        index = [i if i < step.in_shape[0] else -1 for i in range(step.out_shape[0])]
        attrs["index"] = tuple(index)
    return Node(step.kind, name, inputs, attrs, weights)


def _output_stored_as(step: Step, following: Step | None) -> Quant:
    if following is not None and following.format.reads_narrow:
        return _stored_as(following)
    # Operators that move values keep their input's scale; a concatenation's inputs each have their own.
    return _stored_as(step) if step.in_int8 and OPERATORS[step.kind].moves(dict(step.attrs)) else _OUT_QUANT


def _stored_as(step: Step) -> Quant:
    """Storage of a step's input: what layers read in few bits comes from a ReLU and has its zero at 0."""
    bits = step.format.activation_bits
    return Quant(3.0 / (2**bits - 1), 0, bits) if step.format.reads_narrow else _QUANT


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


def _weights(rng: np.random.Generator, step: Step, size: tuple[int, ...]) -> dict[str, Array]:
    """The arrays of a layer whose weight is (O, I, ...), by their names in a node."""
    drawn = rng.normal(size=(min(DRAWN, size[0]), *size[1:])).astype(np.float32)
    decision = LayerDecision(step.format, pattern=step.pattern, sharing=step.hashing)
    arrays = weight_arrays(Node(step.kind, STEP, (), weights={"weight": drawn}), decision)
    repeated = {name: np.resize(array, (size[0], *array.shape[1:])) for name, array in arrays.items()}
    return {**repeated, "bias": rng.normal(size=size[0]).astype(np.float32)}
