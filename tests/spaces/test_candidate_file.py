"""Candidates in files: what is read is what was written, to the last bit, and nothing else is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.evaluators.nets import candidate_of, space_of

from trimtab.errors import BadInput
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.lowering import lower
from trimtab.kernels import save
from trimtab.spaces import LayerDecision, Policy
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.candidate_file import Provenance, load_candidate, save_candidate
from trimtab.spaces.numbers.formats import INT8, LayerFormat

SPACE = space_of("resnet8")
PROVENANCE = Provenance("repaired", {"images": 32, "repairs": {"bias": True}})


def decided(numbers: LayerFormat, **changes: object) -> Policy:
    """The int8 form, with one layer decided otherwise."""
    policy = SPACE.int8()
    layer = SPACE.network.layers[3].name
    return replace(policy, layers={**policy.layers, layer: LayerDecision(numbers, **changes)})  # type: ignore[arg-type]


POLICIES = {
    "as given": SPACE.base(),
    "int8": SPACE.int8(),
    "pruned": SPACE.uniform(0.5, INT8),
    "few bits": decided(LayerFormat.of(2, 8, "codebook")),
    "bf16": decided(LayerFormat.of(16, 32)),
    "binary": decided(LayerFormat.of(1, 8)),
    "factorised": decided(INT8, rank=4, factorisation="svd"),
    "sparse": decided(INT8, pattern="2:4"),
}


@pytest.fixture(params=POLICIES, scope="module")
def candidate(request: pytest.FixtureRequest) -> Candidate:
    return candidate_of("resnet8", POLICIES[request.param])


def test_what_is_read_is_what_was_written(candidate: Candidate, tmp_path: Path) -> None:
    path = tmp_path / "candidate.safetensors"
    save_candidate(path, candidate, PROVENANCE, SPACE)
    read, provenance = load_candidate(path, SPACE)
    assert provenance == PROVENANCE
    assert read.policy == candidate.policy
    assert read.decisions == candidate.decisions
    assert (read.ranges, read.stored) == (candidate.ranges, candidate.stored)
    for name, graph in (("written", lower(candidate)), ("read", lower(read))):
        save(graph, tmp_path / name)
    assert (tmp_path / "written").read_bytes() == (tmp_path / "read").read_bytes()
    images = np.random.default_rng(0).normal(size=(4, *SPACE.network.input_shape)).astype(np.float32)
    ours, theirs = (NativeEngine().compile(lower(one), 4).run(images) for one in (candidate, read))
    np.testing.assert_array_equal(ours, theirs)


def test_a_candidate_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "candidate.safetensors"
    save_candidate(path, candidate_of("resnet8", SPACE.int8()), PROVENANCE, SPACE)
    with pytest.raises(BadInput, match="another network"):
        load_candidate(path, space_of("resnet20"))
    layer = SPACE.network.layers[0]
    trained = [op.with_weights(weight=op.weight * 2) if op is layer else op for op in SPACE.network]  # type: ignore[operator]
    other = replace(SPACE, network=replace(SPACE.network, nodes=tuple(trained)))
    with pytest.raises(BadInput, match="other weights"):
        load_candidate(path, other)


def test_what_is_no_candidate_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "candidate.safetensors"
    with pytest.raises(BadInput, match="cannot read"):
        load_candidate(path, SPACE)
    path.write_bytes(b"no safetensors")
    with pytest.raises(BadInput, match="not a candidate"):
        load_candidate(path, SPACE)
    save_file({"x": np.ones(1)}, path)
    with pytest.raises(BadInput, match="not a candidate"):
        load_candidate(path, SPACE)
    save_candidate(path, candidate_of("resnet8", SPACE.int8()), PROVENANCE, SPACE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="not a candidate"):
        load_candidate(path, SPACE)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={"trimtab.candidate": json.dumps({"schema": 99})})
    with pytest.raises(BadInput, match="schema 2"):
        load_candidate(path, SPACE)
