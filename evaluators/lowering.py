"""From a candidate to the program that engines compile: fusion is theirs, storage is decided here."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.kernels.graph import Graph, Node, Quant
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.network import Network, Op
from trimtab.spaces.policy import LayerDecision
from trimtab.spaces.quantise import activation_quant

__all__ = ["is_integer", "lower", "storage", "stored_as_int8"]

#: Operators that hand on values of their input: stored as uint8 they keep its scale, so integers are only moved.
MOVES = frozenset({"max_pool2d", "subsample", "channel_map", "flatten"})

#: Operators that may read uint8 although they compute in real numbers.
READS_INT8 = MOVES | {"add", "concat", "avg_pool2d", "global_avg_pool2d"}


def is_integer(decision: LayerDecision | None) -> bool:
    """Whether a layer under this decision computes in integers."""
    return decision is not None and (decision.w_bits, decision.a_bits) == (8, 8)


def lower(candidate: Candidate) -> Graph:
    """Return the candidate as an engine's program.

    A tensor is stored as uint8 when an integer layer reads it and all its other readers can; where a float layer reads
    it too, it stays float32 and the integer layers read a quantised copy, `<tensor>/int8`.
    """
    network = candidate.network
    stored = stored_as_int8(network, candidate.decisions)
    quant = storage(candidate)
    nodes: list[Node] = []
    copies: dict[str, str] = {}
    for op in network:
        inputs = list(op.inputs)
        if is_integer(candidate.decisions.get(op.name)) and inputs[0] not in stored:
            inputs[0] = _quantised_copy(candidate, inputs[0], nodes, copies, quant)
        nodes.append(_node(op, tuple(inputs), candidate))
    return Graph(network.input, network.input_shape, tuple(nodes), network.output, quant)


def stored_as_int8(network: Network, decisions: Mapping[str, LayerDecision]) -> frozenset[str]:
    """Return the tensors that are stored as uint8."""
    stored: set[str] = set()
    # Readers come after what they read, so a walk from the end knows how each reader's own output is stored.
    for tensor in [op.name for op in reversed(network.ops)] + [network.input]:
        readers = network.consumers(tensor)
        if tensor == network.output or not readers:
            continue
        can_read = all(op.kind in READS_INT8 or is_integer(decisions.get(op.name)) for op in readers)
        wanted = any(
            is_integer(decisions.get(op.name)) or (op.kind in MOVES | {"concat"} and op.name in stored)
            for op in readers
        )
        if can_read and wanted:
            stored.add(tensor)
    return frozenset(stored)


def storage(candidate: Candidate) -> dict[str, Quant]:
    """Return scale and zero point of every tensor that is stored as uint8."""
    stored = stored_as_int8(candidate.network, candidate.decisions)
    quant: dict[str, Quant] = {}
    for tensor in [candidate.network.input, *(op.name for op in candidate.network)]:
        if tensor not in stored:
            continue
        op = None if tensor == candidate.network.input else candidate.network.op(tensor)
        if op is not None and op.kind in MOVES and op.inputs[0] in quant:
            quant[tensor] = quant[op.inputs[0]]
        else:
            quant[tensor] = Quant(*activation_quant(*candidate.ranges[tensor]))
    return quant


def _quantised_copy(
    candidate: Candidate, tensor: str, nodes: list[Node], copies: dict[str, str], quant: dict[str, Quant]
) -> str:
    if tensor not in copies:
        copies[tensor] = f"{tensor}/int8"
        quant[copies[tensor]] = Quant(*activation_quant(*candidate.ranges[tensor]))
        nodes.append(Node("quantize", copies[tensor], (tensor,)))
    return copies[tensor]


def _node(op: Op, inputs: tuple[str, ...], candidate: Candidate) -> Node:
    attrs = dict(op.attrs)
    weights = {}
    if op.kind in ("conv2d", "linear", "add"):
        attrs["activation"] = "none"
    if op.weight is not None:
        if op.name in candidate.int8:
            weights["weight"], weights["weight_scale"] = candidate.int8[op.name]
        else:
            weights["weight"] = op.weight
        if op.bias is not None:
            weights["bias"] = op.bias
    return Node(op.kind, op.name, inputs, attrs, weights)
