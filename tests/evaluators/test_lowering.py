from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluators.nets import NETS, candidate_of, model_of, pictures, random_policies, space_of
from tests.kernels import reference
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.evaluators import lower
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.lowering import Storage, storage
from trimtab.graph import Graph, Node
from trimtab.spaces import FORMATS, Calibration, Candidate, LayerDecision, build_space, compress
from trimtab.spaces.numbers.formats import LayerFormat
from trimtab.spaces.numbers.ranges import activation_quant

Array = Any
INT8, WEIGHT_ONLY, FLOAT = (LayerDecision(LayerFormat.of(*bits)) for bits in ((8, 8), (8, 32), (32, 32)))


def run(graph: Graph, x: Array) -> Array:
    return NativeEngine().compile(graph, 4).run(x)


@pytest.mark.parametrize("name", NETS)
def test_the_untouched_network_computes_what_the_model_computes(name: str) -> None:
    x = pictures(5)
    with torch.no_grad():
        expected = model_of(name)(torch.from_numpy(x)).numpy()
    found = run(lower(candidate_of(name, space_of(name).base())), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETS)
def test_integer_programs_give_the_reference_s_integers(name: str) -> None:
    graph, x = lower(candidate_of(name, space_of(name).int8())), pictures(3)
    np.testing.assert_array_equal(run(graph, x), reference.output(graph, x))


@pytest.mark.parametrize("name", NETS)
def test_narrow_programs_give_the_reference_s_integers(name: str) -> None:
    space, x = space_of(name), pictures(3)
    for bits in ((4, 4), (1, 2), (3, 1), (6, 8)):
        candidate = candidate_of(name, space.uniform(1.0, LayerFormat.of(*bits)))
        graph = lower(candidate)
        np.testing.assert_array_equal(run(graph, x), reference.output(graph, x))
    rng = np.random.default_rng(4)
    integers = [each for each in FORMATS if max(each.weight.bits, each.activation_bits) <= 8]
    layers = {op.name: LayerDecision(integers[rng.integers(len(integers))]) for op in space.network.layers}
    graph = lower(candidate_of(name, replace(space.base(), layers=layers)))
    np.testing.assert_array_equal(run(graph, x), reference.output(graph, x))


class Small(nn.Module):
    """A pool that moves integers, a residual, a flatten: what the hand-written reference below computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 6, 1)
        self.last = nn.Linear(6 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.relu(self.second(x) + x)
        result: Tensor = self.last(F.relu(self.third(x)).flatten(1))
        return result


class ByHand:
    """Integer arithmetic from a candidate's own weights, scales and ranges, as docs/arithmetic.md has it."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    def quant(self, tensor: str) -> tuple[float, int]:
        return activation_quant(*self.candidate.ranges[tensor])

    def sums(self, layer: str, q: Array, at: tuple[float, int]) -> tuple[Array, Array]:
        """Exact integer sums (N, O, ...) and their scale in float64, shaped alike."""
        weight, scale = self.candidate.int8[layer]
        op = self.candidate.network.node(layer)
        x, w = torch.from_numpy(q.astype(np.float64) - at[1]), torch.from_numpy(weight.astype(np.float64))
        padding = (weight.shape[-1] - 1) // 2 if weight.ndim == 4 else 0
        acc = F.linear(x, w) if weight.ndim == 2 else F.conv2d(x, w, padding=padding)
        each = at[0] * scale.astype(np.float64)
        shape = (1, -1) if weight.ndim == 2 else (1, -1, 1, 1)
        assert op.bias is not None
        bias = np.rint(op.bias.astype(np.float64) / each).reshape(shape)
        return acc.numpy() + bias, each.reshape(shape)

    def relu_to(self, acc: Array, each: Array, to: tuple[float, int]) -> Array:
        value = acc.astype(np.float32) * (each / to[0]).astype(np.float32)
        return np.clip(np.rint(value), 0, 255 - to[1]) + to[1]

    def store(self, x: Array, to: tuple[float, int]) -> Array:
        return np.clip(np.rint(x * np.float32(1 / to[0])), -to[1], 255 - to[1]) + to[1]

    def __call__(self, x: Array) -> Array:
        network = self.candidate.network
        relus = [op.name for op in network if op.kind == "activation"]
        seen, pooled, summed, narrow = (self.quant(name) for name in (network.input, relus[0], relus[1], relus[2]))
        q = self.relu_to(*self.sums("first", self.store(x, seen), seen), pooled)
        q = q.reshape(len(q), 8, 8, 2, 8, 2).max(axis=(3, 5))
        acc, each = self.sums("second", q, pooled)
        real = acc.astype(np.float32) * each.astype(np.float32)
        real = real + (q - pooled[1]).astype(np.float32) * np.float32(pooled[0])
        q = self.store(np.maximum(real, 0), summed)
        q = self.relu_to(*self.sums("third", q, summed), narrow)
        acc, each = self.sums("last", q.reshape(len(q), -1), narrow)
        return acc.astype(np.float32) * each.astype(np.float32)


def small_candidate() -> Candidate:
    torch.manual_seed(3)
    space = build_space(Small(), torch.zeros(1, 3, 16, 16))
    return compress(space, space.int8(), Calibration.of(space, pictures(16)))


def test_an_integer_candidate_computes_its_integers_exactly() -> None:
    candidate, x = small_candidate(), pictures(4, seed=9)
    np.testing.assert_array_equal(run(lower(candidate), x), ByHand(candidate)(x))


def test_moved_values_keep_their_scale() -> None:
    candidate = small_candidate()
    quant = storage(candidate)
    moves = [op for op in candidate.network if op.kind in ("max_pool2d", "flatten")]
    assert len(moves) == 2
    for op in moves:
        assert quant[op.name] == quant[op.inputs[0]]


def layer(name: str, source: str) -> Node:
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    return Node("conv2d", name, (source,), attrs, {"weight": np.ones((4, 4, 1, 1), np.float32)})


def op(kind: str, name: str, *sources: str) -> Node:
    return Node(kind, name, sources, {"activation": "relu"} if kind == "activation" else {})


def stored(ops: list[Node], floats: dict[str, LayerDecision] | None = None) -> set[str]:
    network = Graph("x", (4, 8, 8), tuple(ops), ops[-1].name)
    decisions = {found.name: INT8 for found in network.layers} | (floats or {})
    return set(Storage(network).bits(decisions))


RESIDUAL = [layer("a", "x"), layer("b", "a"), op("add", "sum", "b", "a"), layer("c", "sum")]
BRANCHES = [layer("l", "x"), layer("r", "x"), op("concat", "cat", "l", "r"), layer("c", "cat")]
TWO_READERS = [layer("a", "x"), layer("b", "a"), layer("c", "a"), op("add", "sum", "b", "c"), layer("d", "sum")]


@pytest.mark.parametrize("decision", [WEIGHT_ONLY, FLOAT])
def test_a_residual_is_stored_where_integers_read_it(decision: LayerDecision) -> None:
    assert stored(RESIDUAL) == {"x", "a", "sum"}  # b stays float32: it is fused into the sum
    assert stored(RESIDUAL, {"c": decision}) == {"x", "a"}
    assert stored(RESIDUAL, {"b": decision}) == {"x", "sum"}
    assert stored(RESIDUAL, {"a": decision}) == {"a", "sum"}


def test_a_concatenation_is_stored_with_its_parts_or_not_at_all() -> None:
    assert stored(BRANCHES) == {"x", "l", "r", "cat"}
    assert stored(BRANCHES, {"c": FLOAT}) == {"x"}
    assert stored(BRANCHES, {"l": FLOAT}) == {"l", "r", "cat"}  # a float layer reads x, so x stays float32


def test_pools_hand_integers_on_only_where_they_move_them() -> None:
    for kind, attrs, moves in (
        ("max_pool2d", {}, True),
        ("avg_pool2d", {}, False),
        ("depth_to_space", {}, True),
        ("upsample", {"mode": "nearest"}, True),
        ("upsample", {"mode": "bilinear"}, False),
    ):
        ops = [layer("a", "x"), replace(op(kind, "p", "a"), attrs=attrs), layer("c", "p")]
        assert stored(ops) == ({"x", "a", "p"} if moves else {"x", "p"})
        quant = lowered(ops, {}).quant
        assert ("a" in quant) == moves
        assert quant.get("a", quant["p"]) == quant["p"]
        assert stored(ops, {"c": FLOAT}) == {"x"}


def test_what_only_moves_stored_values_is_stored_alike() -> None:
    ops = [layer("a", "x"), op("max_pool2d", "p", "x"), op("add", "sum", "p", "a"), layer("c", "sum")]
    assert stored(ops) == {"x", "p", "sum"}
    quant = lowered(ops, {}).quant
    assert quant["p"] == quant["x"]
    joined = [*ops[:2], op("concat", "two", "p", "p"), op("add", "sum", "two", "a")]
    assert stored(joined) == {"x", "p"}  # its parts could be stored in different ways


def test_activations_and_the_output_stay_float() -> None:
    assert stored([layer("a", "x"), op("activation", "y", "a"), layer("c", "y")]) == {"x", "y"}
    assert stored([layer("a", "x"), op("activation", "y", "a"), layer("b", "a"), op("add", "z", "y", "b")]) == {"x"}


def test_a_float_reader_keeps_the_tensor_float() -> None:
    assert stored(TWO_READERS) == {"x", "a", "sum"}
    assert stored(TWO_READERS, {"c": FLOAT}) == {"x", "sum"}


def lowered(ops: list[Node], decisions: dict[str, LayerDecision]) -> Graph:
    network = Graph("x", (4, 8, 8), tuple(ops), ops[-1].name)
    all_decisions = {found.name: INT8 for found in network.layers} | decisions
    int8 = {
        name: (np.ones((4, 4, 1, 1), np.int8), np.ones(4, np.float32))
        for name, decision in all_decisions.items()
        if decision.format.weight.bits <= 8
    }
    ranges = dict.fromkeys(["x", *(found.name for found in network)], (-1.0, 1.0))
    policy = space_of("concat").base()  # not looked at
    return lower(Candidate(policy, network, all_decisions, int8, ranges))


def test_integer_layers_share_one_quantised_copy() -> None:
    ops = [
        layer("a", "x"),
        layer("b", "a"),
        layer("c", "a"),
        layer("d", "a"),
        op("add", "s", "b", "c"),
        op("add", "t", "s", "d"),
    ]
    graph = lowered(ops, {"c": FLOAT})
    copies = [node for node in graph.nodes if node.kind == "quantize"]
    assert [(node.name, node.inputs) for node in copies] == [("a/int8", ("a",))]
    reads = {node.name: node.inputs[0] for node in graph.nodes}
    assert (reads["b"], reads["c"], reads["d"]) == ("a/int8", "a", "a/int8")
    assert "a" not in graph.quant
    assert "a/int8" in graph.quant


W4A4, W8A4, W1A1 = (LayerDecision(LayerFormat.of(*bits)) for bits in ((4, 4), (8, 4), (1, 1)))


def bits_of(ops: list[Node], decisions: dict[str, LayerDecision]) -> dict[str, int]:
    return {name: quant.bits for name, quant in lowered(ops, decisions).quant.items()}


def test_a_tensor_is_stored_in_the_bits_that_its_readers_ask_for() -> None:
    chain = [layer("a", "x"), layer("b", "a"), layer("c", "b")]
    assert bits_of(chain, {"b": W4A4, "c": W1A1}) == {"x": 8, "a": 4, "b": 1}
    pooled = [layer("a", "x"), op("max_pool2d", "p", "a"), layer("b", "p")]
    assert bits_of(pooled, {"b": W4A4}) == {"x": 8, "a": 4, "p": 4}
    assert bits_of(BRANCHES, {"c": W4A4}) == {"x": 8, "l": 4, "r": 4, "cat": 4}


def test_a_residual_keeps_eight_bits_and_its_layer_reads_a_copy() -> None:
    assert bits_of(RESIDUAL, {"b": W4A4}) == {"x": 8, "a": 8, "a/int4": 4, "sum": 8}
    graph = lowered(RESIDUAL, {"b": W4A4})
    reads = {node.name: node.inputs for node in graph.nodes}
    assert (reads["a/int4"], reads["b"], reads["sum"]) == (("a",), ("a/int4",), ("b", "a"))


def test_layers_that_ask_for_other_bits_read_copies() -> None:
    expected = {"x": 8, "a": 4, "a/int1": 1, "sum": 8}
    assert bits_of(TWO_READERS, {"b": W8A4, "c": W1A1}) == expected
    assert bits_of(TWO_READERS, {"b": FLOAT, "c": W1A1}) == {"x": 8, "a/int1": 1, "sum": 8}
    moved = [layer("a", "x"), op("max_pool2d", "p", "a"), layer("b", "p"), layer("c", "a"), op("add", "s", "p", "p")]
    assert bits_of(moved[:3], {"b": W1A1}) == {"x": 8, "a": 1, "p": 1}
    assert bits_of([*moved[:4], layer("d", "c")], {"b": W1A1}) == {"x": 8, "a": 8, "p": 8, "p/int1": 1, "c": 8}


def test_no_copy_without_a_float_reader() -> None:
    assert "quantize" not in {node.kind for node in lowered(TWO_READERS, {}).nodes}
    assert "quantize" not in {node.kind for node in lowered(TWO_READERS, dict.fromkeys("abcd", FLOAT)).nodes}


@pytest.mark.parametrize("name", NETS)
def test_layers_compute_in_the_bits_that_were_decided(name: str) -> None:
    for policy in random_policies(space_of(name), 5):
        candidate = timing_candidate(space_of(name), policy)
        graph = lower(candidate)
        for node in graph.nodes:
            if node.kind in ("conv2d", "linear"):
                decision = candidate.decisions[node.name]
                assert (node.weights["weight"].dtype == np.int8) == (decision.format.weight.bits <= 8)
                assert (node.inputs[0] in graph.quant) == (decision.format.activation_bits <= 8)
                depthwise = candidate.network.node(node.name).is_depthwise
                bf16 = (decision.format.weight.bits, decision.format.activation_bits) == (16, 16)
                assert ("precision" in node.attrs) == (bf16 and not depthwise)
                if decision.format.weight.bits < 8:
                    assert len(np.unique(node.weights["weight"])) <= 2**decision.format.weight.bits
                if decision.format.activation_bits <= 8:
                    assert graph.quant[node.inputs[0]].bits == decision.format.activation_bits
