"""torchvision's networks, from module to native session: in float32 they are PyTorch's; pruned and in int8, the
reference's, step by step."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from tests.kernels import reference
from tests.spaces.conftest import randomise_norms
from tests.spaces.test_groups import assert_close, random_kept, run_with_zeroed_channels
from tests.spaces.zeroed import zero_channels
from torch import nn

from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.cost import count_macs
from trimtab.evaluators.price.plan import StepPlan
from trimtab.graph import is_integer
from trimtab.graph.passes import legalise
from trimtab.kernels import Graph, Session, fuse
from trimtab.spaces import Calibration, Options, Repairs, Space, build_space, compress
from trimtab.spaces.candidate import apply
from trimtab.spaces.channels.prune import kept_channels, prune
from trimtab.spaces.execute import run

SIDE = 64
#: Whether the network takes more than a few seconds here.
NETWORKS = {
    "resnet18": False,
    "resnet50": True,
    "vgg11": True,
    "vgg11_bn": True,
    "vgg16": True,
    "vgg16_bn": True,
    "mobilenet_v2": False,
    "mobilenet_v3_small": False,
    "mobilenet_v3_large": True,
    "shufflenet_v2_x1_0": False,
    "squeezenet1_1": False,
    "efficientnet_b0": True,
    "densenet121": True,
    "vit_b_16": True,
}
SEARCHED = [
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "efficientnet_b0",
    "densenet121",
    "vit_b_16",
]
#: Operators that sum floats, in an order that depends on the level.
SUMS = ("layer_norm", "attention", "avg_pool2d", "global_avg_pool2d", "adaptive_avg_pool2d")


def marked(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.slow] if NETWORKS[name] else []) for name in names]


def model_of(name: str) -> nn.Module:
    options = {"image_size": SIDE} if name.startswith("vit") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None, **options)
        for path, parameter in model.named_parameters():
            if path.startswith("heads") or "class_token" in path:  # zeros as made
                nn.init.normal_(parameter, 0, 0.05)
    return randomise_norms(model)


@cache
def space_of(name: str) -> Space:
    return build_space(model_of(name), torch.zeros(1, 3, SIDE, SIDE), Options(channels=4))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", marked(list(NETWORKS)))
def test_in_float32_a_network_is_pytorch_s(name: str) -> None:
    space, x = space_of(name), pictures(2)
    session = Session(lower(apply(space, space.base())), batch=2)
    with torch.no_grad():
        wanted = model_of(name)(x).numpy()
    assert np.abs(session.run(x.numpy()) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", marked(SEARCHED))
def test_pruned_and_in_integers_every_step_is_the_reference_s(name: str) -> None:
    space = space_of(name)
    rng = np.random.default_rng(0)
    calibration = Calibration.of(space, pictures(4, 1).numpy(), repairs=Repairs(reconstruct=False))
    vector = [int(rng.integers(len(knob.choices))) for knob in space.knobs]
    for policy in (space.int8(), space.decode(vector)):
        graph = lower(compress(space, policy, calibration))
        assert [call.tensor for call in StepPlan(space).calls(policy)] == [n.name for n in legalise(fuse(graph)).nodes]
        check_steps(graph, pictures(2).numpy())


def check_steps(graph: Graph, x: np.ndarray) -> None:
    """Every step computes what the reference computes from the same inputs."""
    values = Session(graph).run_tensors(x)
    graph = legalise(fuse(graph))
    integers = 0
    for node in graph.nodes:
        if node.name not in values or not values.keys() >= set(node.inputs):
            continue  # inside of a fused chain
        quants, to = [graph.quant.get(name) for name in node.inputs], graph.quant.get(node.name)
        inputs = [reference.store(values[name], quant) for name, quant in zip(node.inputs, quants, strict=True)]
        wanted = reference.real(reference.evaluate(node, inputs, quants, to), to)
        exact = is_integer(graph, node) or (node.kind not in (*SUMS, "conv2d", "linear"))
        integers += is_integer(graph, node)
        if exact:
            np.testing.assert_array_equal(values[node.name], wanted, node.name)
        else:
            step = 1e-4 * np.abs(wanted).max() if to is None else 1.01 * to.scale
            np.testing.assert_allclose(values[node.name], wanted, rtol=0, atol=step, err_msg=node.name)
    assert integers > 0


@pytest.mark.parametrize("name", marked(SEARCHED))
def test_pruning_equals_the_full_network_with_these_channels_zeroed(name: str) -> None:
    space, x = space_of(name), pictures(2)
    kept = kept_channels(space.groups, random_kept(space, 0))
    pruned, selected = prune(space.network, kept)
    found = run(pruned, x)
    assert any(pruned.shapes[op.name] != space.network.shapes[op.name] for op in pruned)
    assert_close(found, run_with_zeroed_channels(space.network, selected, x))
    assert_close(found, run(zero_channels(space.network, kept), x))


@pytest.mark.parametrize("name", marked(SEARCHED))
def test_macs_agree_with_two_other_counters(name: str) -> None:
    space = space_of(name)
    steps = StepPlan(space).steps(space.base())
    assert count_macs(model_of(name), pictures(1), steps) == sum(step.macs for step in steps)
