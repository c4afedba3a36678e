"""What a layer is expected to take on disk, against what the repaired candidate's file holds of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.evaluators.fakes import FakeEngine
from tests.evaluators.nets import GRID_FORMATS, candidate_of, space_of

from trimtab.evaluators import CostModel, LatencyTable, lower
from trimtab.kernels import stored_bytes
from trimtab.spaces import Candidate, LayerDecision, Policy
from trimtab.spaces.numbers.formats import LayerFormat

#: Layers of fewer weights than this have tables and scales of half their bytes, and chance decides the rest.
REAL_SIZE = 2000


def bytes_by_layer(candidate: Candidate) -> dict[str, int]:
    """The bytes of each layer's arrays, as if it were the only one in the file."""
    graph = lower(candidate)
    return {node.name: stored_bytes(replace(graph, nodes=(node,))) for node in graph.nodes if "weight" in node.weights}


def taking_turns(first: int) -> Policy:
    """Every layer of ResNet-20 on another grid than the one before it."""
    base = space_of("resnet20").base()
    turns = [GRID_FORMATS[(first + i) % len(GRID_FORMATS)] for i in range(len(base.layers))]
    decisions = [LayerDecision(LayerFormat(weight, 8)) for weight in turns]
    return replace(base, layers=dict(zip(base.layers, decisions, strict=True)))


@pytest.mark.parametrize("first", range(0, len(GRID_FORMATS), 6))
def test_bytes_of_a_layer_are_those_of_its_grid(first: int) -> None:
    policy = taking_turns(first)
    candidate = candidate_of("resnet20", policy)
    model = CostModel(space_of("resnet20"), LatencyTable(FakeEngine(), space_of("resnet20")))
    predicted, stored = model.by_layer(policy, "size"), bytes_by_layer(candidate)
    for op in candidate.network.layers:
        if op.weight.size >= REAL_SIZE:
            assert predicted[op.name] == pytest.approx(stored[op.name], rel=0.06), (op.name, policy.layers[op.name])


def test_a_codebook_of_two_bits_takes_more_bytes_than_ternary_weights() -> None:
    space, layer = space_of("resnet20"), "layer3.1.conv2"
    model = CostModel(space, LatencyTable(FakeEngine(), space))
    found = {}
    for grid in ("uniform", "codebook"):
        decision = LayerDecision(LayerFormat.of(2, 8, grid))
        policy = replace(space.base(), layers=dict.fromkeys(space.base().layers, decision))
        found[grid] = model.by_layer(policy, "size")[layer]
        assert found[grid] == pytest.approx(bytes_by_layer(candidate_of("resnet20", policy))[layer], rel=0.02)
    assert found["codebook"] > 1.15 * found["uniform"]
