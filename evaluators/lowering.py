"""Lowering of candidates to the program that engines compile: fusion is theirs, storage is decided here."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.kernels.graph import Graph, Node, Quant, moves
from trimtab.spaces.candidate import Candidate, narrowed
from trimtab.spaces.formats import BYTE
from trimtab.spaces.network import Array, Network, Op
from trimtab.spaces.policy import LayerDecision
from trimtab.spaces.ranges import activation_quant

__all__ = ["Storage", "copied_bits", "is_bf16", "is_integer", "lower", "quant_of", "storage", "weight_arrays"]

#: Operators that may read uint8 although they compute in real numbers; so may those that move values.
READS_INT8 = frozenset({"add", "mul", "concat", "avg_pool2d", "global_avg_pool2d", "adaptive_avg_pool2d", "upsample"})


def is_integer(decision: LayerDecision | None) -> bool:
    """Whether a layer under this decision computes in integers."""
    return decision is not None and decision.format.is_integer


def is_bf16(layer: Op, decision: LayerDecision | None) -> bool:
    """Whether a layer under this decision multiplies bf16 numbers: a depthwise one never does."""
    return decision is not None and decision.format.executed(layer.is_depthwise).is_bf16


def copied_bits(decision: LayerDecision | None, stored: int | None) -> int | None:
    """The bits of the copy that a layer reads of a tensor `stored` in so many (None: as float32); None: no copy."""
    if decision is None or not decision.format.is_integer or decision.format.activation_bits == stored:
        return None
    return decision.format.activation_bits


def lower(candidate: Candidate) -> Graph:
    """Return the candidate as an engine's program.

    A tensor is stored as uint8 when an integer layer reads it and all its other readers can; where a float layer reads
    it too, it stays float32. An integer layer whose activations have other bits than its input is stored in reads a
    quantised copy, `<tensor>/int<bits>`.
    """
    network = candidate.network
    stored = Storage(network).bits(candidate.decisions)
    quant = storage(candidate)
    nodes: list[Node] = []
    for op in network:
        inputs = list(op.inputs)
        bits = copied_bits(candidate.decisions.get(op.name), stored.get(inputs[0]))
        if bits is not None:
            inputs[0] = _quantised_copy(candidate, inputs[0], bits, nodes, quant)
        nodes.append(_node(op, tuple(inputs), candidate))
    return Graph(network.input, network.input_shape, tuple(nodes), network.output, quant)


class Storage:
    """Decides which tensors of a network are stored as uint8, and in how many bits."""

    def __init__(self, network: Network) -> None:
        # Readers come after what they read, so a walk from the end knows how each reader's own output is stored.
        tensors = [*(op.name for op in reversed(network.ops)), network.input]
        readers = [(tensor, network.consumers(tensor)) for tensor in tensors if tensor != network.output]
        self._readers = [(tensor, ops) for tensor, ops in readers if ops and all(map(_might_read_int8, ops))]
        self._moves = [(op.name, op.inputs[0]) for op in network if moves(op.kind, op.attrs)]

    def bits(self, decisions: Mapping[str, LayerDecision]) -> dict[str, int]:
        """Return the bits of every tensor that is stored as uint8.

        As many as the widest of the layers that read it asks for; 8 where anything but a layer reads it too, for a
        residual sum that loses bits costs more accuracy than a copy costs time.
        """
        stored: dict[str, int] = {}
        for tensor, readers in self._readers:
            if all(not op.is_layer or is_integer(decisions.get(op.name)) for op in readers):
                asked = [_asked_bits(op, tensor, decisions.get(op.name), stored) for op in readers]
                if any(asked):
                    stored[tensor] = max(bits or BYTE for bits in asked)
        for moved, source in self._moves:
            if moved in stored and source in stored:
                stored[moved] = stored[source]
        return stored


def _might_read_int8(op: Op) -> bool:
    return op.is_layer or op.kind in READS_INT8 or moves(op.kind, op.attrs)


def _asked_bits(reader: Op, tensor: str, decision: LayerDecision | None, stored: Mapping[str, int]) -> int | None:
    """The bits in which an operator asks for an input; None where it does not ask for uint8 at all.

    A product asks for its first operand: the second may be a gate, which is small.
    """
    if decision is not None:
        return decision.format.activation_bits if decision.format.is_integer else None
    asks = reader.kind == "concat" or moves(reader.kind, reader.attrs)
    asks = asks or (reader.kind == "mul" and reader.inputs[0] == tensor)
    return stored.get(reader.name) if asks else None


def storage(candidate: Candidate) -> dict[str, Quant]:
    """Return scale and zero point of every tensor that is stored as uint8."""
    stored = Storage(candidate.network).bits(candidate.decisions)
    quant: dict[str, Quant] = {}
    for tensor in [candidate.network.input, *(op.name for op in candidate.network)]:
        if tensor not in stored:
            continue
        op = None if tensor == candidate.network.input else candidate.network.op(tensor)
        if op is not None and moves(op.kind, op.attrs) and op.inputs[0] in quant:
            quant[tensor] = quant[op.inputs[0]]
        else:
            quant[tensor] = quant_of(candidate, tensor, stored[tensor])
    return quant


def quant_of(candidate: Candidate, tensor: str, bits: int) -> Quant:
    """Return scale and zero point of a tensor in so many bits."""
    return Quant(*activation_quant(*candidate.stored_range(tensor, bits), bits), bits)


def weight_arrays(layer: Op, decision: LayerDecision) -> dict[str, Array]:
    """Return what a layer's weight becomes under a decision, before repairs, by the names of its arrays in a node."""
    int8: dict[str, tuple[Array, Array]] = {}
    return _weight(narrowed(layer, decision, int8), int8)


def _quantised_copy(candidate: Candidate, tensor: str, bits: int, nodes: list[Node], quant: dict[str, Quant]) -> str:
    copy = f"{tensor}/int{bits}"
    if copy not in quant:
        quant[copy] = quant_of(candidate, tensor, bits)
        nodes.append(Node("quantize", copy, (tensor,)))
    return copy


def _weight(layer: Op, int8: Mapping[str, tuple[Array, Array]]) -> dict[str, Array]:
    if layer.name in int8:
        return dict(zip(("weight", "weight_scale"), int8[layer.name], strict=True))
    return {} if layer.weight is None else {"weight": layer.weight}


def _node(op: Op, inputs: tuple[str, ...], candidate: Candidate) -> Node:
    attrs = dict(op.attrs)
    weights = dict(op.constants)
    if op.kind in ("conv2d", "linear", "add"):
        attrs["activation"] = "none"
    if is_bf16(op, candidate.decisions.get(op.name)):
        attrs["precision"] = "bf16"
    weights |= _weight(op, candidate.int8)
    if op.bias is not None:
        weights["bias"] = op.bias
    sharing = candidate.decisions[op.name].sharing if op.name in candidate.int8 else None
    return Node(op.kind, op.name, inputs, attrs, weights, sharing)
