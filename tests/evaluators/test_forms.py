"""Sparse and shared layers end to end: what is decided, priced, built, stored and run agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.errors import BadInput
from trimtab.evaluators.accuracy import torch_logits
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.cost import CostModel
from trimtab.evaluators.price.plan import StepPlan, step_graph
from trimtab.evaluators.price.table import LatencyTable
from trimtab.kernels import stored_bytes
from trimtab.spaces import Calibration, LayerDecision, Options, Policy, Space, build_space, compress
from trimtab.spaces.forms.sparsity import parse_pattern, pattern_mask
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.spaces.repairs.database import LayerDatabase
from trimtab.spaces.zoo import CifarResNet

PATTERNS = ("2:4", "block 0.5", "weights 0.75", "filters 0.5")
IMAGES = np.random.default_rng(0).normal(size=(32, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def space() -> Space:
    torch.manual_seed(0)
    model = CifarResNet(8, width=16).eval()
    return build_space(
        model, torch.zeros(1, 3, 16, 16), Options(patterns=PATTERNS, bits=(LayerFormat.of(4, 8), INT8, FLOAT))
    )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [(4, 8), (8, 8), (32, 32)])
def test_a_pattern_s_zeros_are_in_what_runs(space: Space, pattern: str, bits: tuple[int, int]) -> None:
    policy = space.uniform(0.75, bits, pattern)
    assert space.decode(space.encode(policy)) == policy
    assert Policy.from_json(policy.to_json()) == policy
    candidate = compress(space, policy, Calibration.of(space, IMAGES))
    zeros = parse_pattern(pattern).zeros
    for op in candidate.network.layers:
        weight = op.weight
        assert weight is not None
        share = float((weight == 0).mean())
        if weight.shape[1] % 4 == 0:  # whole blocks cannot make up any share of fewer input channels
            assert share >= zeros - 0.13, op.name
        if pattern == "2:4" and weight.shape[1] % 4 == 0:
            groups = weight.reshape(weight.shape[0], weight.shape[1] // 4, 4, -1) != 0
            assert groups.sum(2).max() <= 2
    logits = NativeEngine().compile(lower(candidate), 8).run(IMAGES[:8])
    simulated = torch_logits(candidate, IMAGES[:8])
    assert np.sqrt(((logits - simulated) ** 2).mean()) < 0.1 * simulated.std()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_is_timed_with_the_zeros_of_its_pattern(space: Space, pattern: str) -> None:
    for name, step in StepPlan(space).named_steps(space.uniform(1.0, INT8, pattern)):
        if step.kind in ("conv2d", "linear"):
            assert step.pattern == pattern, name
            weight = step_graph(step).nodes[-1].weights["weight"]
            assert (weight == 0).mean() >= (~pattern_mask(np.ones(weight.shape), parse_pattern(pattern))).mean()


def test_zeros_cost_fewer_bytes_and_blocks_of_them_less_time_by_the_table(space: Space) -> None:
    model = CostModel(space, LatencyTable(make_engine("native", 1), space))
    dense = space.uniform(1.0, INT8)
    for pattern in PATTERNS:
        policy = space.uniform(1.0, INT8, pattern)
        assert model.coded_size(policy) < 0.75 * model.coded_size(dense)
        stored = stored_bytes(lower(compress(space, policy, Calibration.of(space, IMAGES))))
        assert stored == pytest.approx(model.coded_size(policy), rel=0.05)


def test_a_layer_database_makes_sparse_layers_too(space: Space, tmp_path: Path) -> None:
    base = LayerDatabase(space, IMAGES, tmp_path)
    dense, sparse = space.uniform(0.75, INT8), space.uniform(0.75, INT8, "2:4")
    assert sum(base.errors(sparse).values()) > sum(base.errors(dense).values())
    for op in base.stitch(sparse).network.layers[1:]:
        assert op.is_layer
        assert (op.weight == 0).mean() > 0.37


def test_bits_without_a_zero_have_no_pattern(space: Space) -> None:
    base = space.base()
    layers = {**base.layers, "linear": LayerDecision(LayerFormat.of(1, 8), pattern="2:4")}
    with pytest.raises(BadInput, match="no zero"):
        space.check(Policy(base.network, base.channels, layers))
    assert space.decision("linear", base.channels, LayerFormat.of(1, 8), "2:4") == LayerDecision(LayerFormat.of(1, 8))


def test_depthwise_layers_have_no_pattern() -> None:
    from torchvision.models import mobilenet_v2

    space = build_space(mobilenet_v2(weights=None), torch.zeros(1, 3, 32, 32), Options(patterns=("2:4",), ranks=()))
    sparse = {knob.target for knob in space.knobs if knob.kind == "form"}
    assert sparse == {op.name for op in space.network.layers if op.groups == 1}
