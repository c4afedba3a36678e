"""Lowering of candidates to the program that engines compile: fusion is theirs, storage is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trimtab.graph import OPERATORS, Array, Graph, Node, Quant
from trimtab.spaces.candidate import Candidate, narrowed
from trimtab.spaces.numbers.formats import BYTE
from trimtab.spaces.numbers.ranges import activation_quant
from trimtab.spaces.policy import LayerDecision

__all__ = ["Storage", "copied_bits", "is_bf16", "is_integer", "lower", "moves", "quant_of", "storage", "weight_arrays"]


def is_integer(decision: LayerDecision | None) -> bool:
    """Whether a layer under this decision computes in integers."""
    return decision is not None and decision.format.is_integer


def is_bf16(layer: Node, decision: LayerDecision | None) -> bool:
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

    def __init__(self, network: Graph) -> None:
        # Readers come after what they read, so a walk from the end knows how each reader's own output is stored.
        tensors = [*(op.name for op in reversed(network.nodes)), network.input]
        readers = [(tensor, network.readers(tensor)) for tensor in tensors if tensor != network.output]
        self._readers = [(tensor, ops) for tensor, ops in readers if ops and all(map(_may_read_integers, ops))]
        self._moves = [(op.name, op.inputs[0]) for op in network if moves(op)]
        inner = {tensor for tensor, ops in self._readers if not any(op.is_layer for op in ops)}
        self._passed_on = {op.name for op in network if moves(op) and len(op.inputs) == 1 and op.name in inner}

    def bits(self, decisions: Mapping[str, LayerDecision]) -> dict[str, int]:
        """Return the bits of every tensor that is stored as uint8.

        As many as the widest of the layers that read it asks for; 8 where anything but a layer reads it too, for a
        residual sum that loses bits costs more accuracy than a copy costs time. What only moves a stored tensor's
        values, and is read by no layer, is stored as that one: nothing is rounded, and a quarter of the bytes move.
        """
        stored: dict[str, int] = {}
        for tensor, readers in self._readers:
            if all(not op.is_layer or is_integer(decisions.get(op.name)) for op in readers):
                asked = [_asked_bits(op, tensor, decisions.get(op.name), stored) for op in readers]
                if any(asked):
                    stored[tensor] = max(bits or BYTE for bits in asked)
        for moved, source in self._moves:
            if source in stored and (moved in stored or moved in self._passed_on):
                stored[moved] = stored[source]
        return stored


def moves(op: Node) -> bool:
    """Whether an operator hands on values of its input: stored as uint8 they keep their scale."""
    return OPERATORS[op.kind].moves(op.attrs)


def _may_read_integers(op: Node) -> bool:
    return OPERATORS[op.kind].reads_integers


def _asked_bits(reader: Node, tensor: str, decision: LayerDecision | None, stored: Mapping[str, int]) -> int | None:
    """The bits in which an operator asks for an input; None where it does not ask for uint8 at all."""
    if decision is not None:
        return decision.format.activation_bits if decision.format.is_integer else None
    return stored.get(reader.name) if tensor in OPERATORS[reader.kind].asks_for(reader) else None


def storage(candidate: Candidate) -> dict[str, Quant]:
    """Return scale and zero point of every tensor that is stored as uint8."""
    stored = Storage(candidate.network).bits(candidate.decisions)
    quant: dict[str, Quant] = {}
    for tensor in [candidate.network.input, *(op.name for op in candidate.network)]:
        if tensor not in stored:
            continue
        op = None if tensor == candidate.network.input else candidate.network.node(tensor)
        if op is not None and moves(op) and op.inputs[0] in quant:
            quant[tensor] = quant[op.inputs[0]]
        else:
            quant[tensor] = quant_of(candidate, tensor, stored[tensor])
    return quant


def quant_of(candidate: Candidate, tensor: str, bits: int) -> Quant:
    """Return scale and zero point of a tensor in so many bits."""
    return Quant(*activation_quant(*candidate.stored_range(tensor, bits), bits), bits)


def weight_arrays(layer: Node, decision: LayerDecision) -> dict[str, Array]:
    """Return what a layer's weight becomes under a decision, before repairs, by the names of its arrays in a node."""
    int8: dict[str, tuple[Array, Array]] = {}
    return dict(_stored(narrowed(layer, decision, int8), int8).weights)


def _quantised_copy(candidate: Candidate, tensor: str, bits: int, nodes: list[Node], quant: dict[str, Quant]) -> str:
    copy = f"{tensor}/int{bits}"
    if copy not in quant:
        quant[copy] = quant_of(candidate, tensor, bits)
        nodes.append(Node("quantize", copy, (tensor,)))
    return copy


def _stored(layer: Node, int8: Mapping[str, tuple[Array, Array]]) -> Node:
    """The layer with the integers that its weight stands for, if it is one of integers."""
    if layer.name not in int8:
        return layer
    weight, scale = int8[layer.name]
    return layer.with_weights(weight=weight, weight_scale=scale)


def _node(op: Node, inputs: tuple[str, ...], candidate: Candidate) -> Node:
    if is_bf16(op, candidate.decisions.get(op.name)):
        op = op.with_attrs(precision="bf16")
    sharing = candidate.decisions[op.name].sharing if op.name in candidate.int8 else None
    return replace(_stored(op, candidate.int8), inputs=inputs, sharing=sharing)
