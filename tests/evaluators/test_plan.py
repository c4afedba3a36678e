from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.evaluators.nets import GRID_FORMATS, NETS, candidate_of, random_policies, space_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.plan import STEP, Step, StepPlan, step_graph
from trimtab.evaluators.price.size import Coded
from trimtab.graph import Node, check_graph
from trimtab.graph.passes import fuse, legalise
from trimtab.kernels import Graph, Session, emulated_levels, levels
from trimtab.kernels.packing import packed_size
from trimtab.spaces import LayerDecision, Policy, Space
from trimtab.spaces.candidate import reshape_network
from trimtab.spaces.execute import run
from trimtab.spaces.forms.layer_forms import parse_form
from trimtab.spaces.numbers.formats import INT8, LayerFormat, WeightFormat
from trimtab.spaces.numbers.quantise import quantise_weight

Line = tuple[object, ...]
LAYERS = ("conv2d", "linear")


def executed(graph: Graph) -> list[Line]:
    """What the engine makes of a program: every step's operator, tensors, shapes, storage, activation, residual."""
    graph = check_graph(legalise(fuse(graph)))

    def line(node: Node) -> Line:
        residual = node.kind in LAYERS and len(node.inputs) == 2
        first = node.inputs[0]
        kernel = node.weights["weight"].shape[2:] if node.kind == "conv2d" else None
        attrs = tuple(node.attrs.get(name) for name in ("activation", "stride", "padding", "dilation", "groups"))
        stored = (first in graph.quant, node.name in graph.quant)
        bits = graph.quant[first].bits if node.kind in LAYERS and first in graph.quant else 32
        bits = 16 if node.attrs.get("precision") == "bf16" else bits
        return (
            node.name,
            set(node.inputs),
            node.kind,
            graph.shapes[first],
            graph.shapes[node.name],
            *stored,
            residual,
            bits,
            kernel,
            attrs,
        )

    return [line(node) for node in graph.nodes]


def predicted(space: Space, policy: Policy) -> list[Line]:
    lines: list[Line] = []
    for call in StepPlan(space).calls(policy):
        step = call.step
        attrs = dict(step.attrs)
        kernel = attrs.get("kernel") if step.kind == "conv2d" else None
        named = tuple(attrs.get(name) for name in ("activation", "stride", "padding", "dilation", "groups"))
        stored, bits = (step.in_int8, step.out_int8), step.format.activation_bits
        shapes = (step.in_shape, step.out_shape)
        lines.append((call.tensor, set(call.reads), step.kind, *shapes, *stored, step.residual, bits, kernel, named))
    return lines


@pytest.mark.parametrize("name", [*NETS, "resnet8", "resnet8-b"])
def test_the_predicted_steps_are_those_that_run(name: str) -> None:
    space = space_of(name)
    for policy in random_policies(space, 12):
        assert predicted(space, policy) == executed(lower(timing_candidate(space, policy)))


@pytest.mark.parametrize("name", ["resnet8", "resnet8-b", "concat", "inverted"])
def test_the_compiled_session_runs_the_predicted_steps(name: str) -> None:
    space = space_of(name)
    for policy in random_policies(space, 1):
        session = NativeEngine().compile(lower(timing_candidate(space, policy))).session
        assert [call.tensor for call in StepPlan(space).calls(policy)] == session.steps


def weights_of(step: Step) -> np.ndarray:
    return next(node for node in step_graph(step).nodes if node.name == STEP).weights["weight"]


@pytest.mark.parametrize("weight", GRID_FORMATS, ids=str)
def test_step_weights_take_the_values_of_a_real_layer(weight: WeightFormat) -> None:
    step = Step("linear", (500,), (160,), (("activation", "none"),), LayerFormat(weight, 8), True)
    made = weights_of(step)
    real, _ = quantise_weight(np.random.default_rng(7).normal(size=made.shape), weight)
    assert len(np.unique(made)) == pytest.approx(len(np.unique(real)), abs=3 * (weight.bits == 8))
    if weight.grid in ("uniform", "power2"):  # one set of values for all layers
        assert np.abs(made).max() == np.abs(real).max()
    assert np.abs(made.astype(int)).mean() == pytest.approx(np.abs(real.astype(int)).mean(), rel=0.1)


def decided(space: Space, decision: LayerDecision) -> Policy:
    return replace(space.base(), layers=dict.fromkeys(space.base().layers, decision))


def assert_timed_on_the_kernels_that_run(space: Space, policy: Policy) -> None:
    space.check(policy)
    graph = lower(timing_candidate(space, policy))
    steps = {call.tensor: step_graph(call.step) for call in StepPlan(space).calls(policy) if call.step.kind in LAYERS}
    for level in [*levels(), *emulated_levels()]:
        timed = {name: Session(made, level=level).kernels[STEP] for name, made in steps.items()}
        assert timed == Session(graph, level=level).kernels, level


@pytest.mark.parametrize("a_bits", [8, 4])
@pytest.mark.parametrize("weight", GRID_FORMATS, ids=str)
def test_a_grid_is_timed_on_the_kernels_that_run_it(weight: WeightFormat, a_bits: int) -> None:
    space = space_of("values")
    assert_timed_on_the_kernels_that_run(space, decided(space, LayerDecision(LayerFormat(weight, a_bits))))


@pytest.mark.parametrize("pattern", ["weights 0.75", "2:4", "block 0.75", "filters 0.75"])
@pytest.mark.parametrize(("grid", "bits"), [("uniform", 2), ("uniform", 4), ("uniform", 8), ("power2", 3)])
def test_zeros_are_timed_on_the_kernels_that_run_them(grid: str, bits: int, pattern: str) -> None:
    space = space_of("values")
    dense = decided(space, LayerDecision(LayerFormat.of(bits, 8, grid)))
    layers = {
        op.name: dense.layers[op.name] if op.groups > 1 else replace(dense.layers[op.name], pattern=pattern)
        for op in space.network.layers
    }
    assert_timed_on_the_kernels_that_run(space, replace(dense, layers=layers))


@pytest.mark.parametrize("a_bits", [8, 4])
@pytest.mark.parametrize("how", ["hashed 0.25", "circulant 4", "kernels 16"])
@pytest.mark.parametrize(("grid", "bits"), [("uniform", 2), ("codebook", 1), ("codebook", 2), ("codebook", 4)])
def test_shared_weights_are_timed_on_the_kernels_that_run_them(grid: str, bits: int, how: str, a_bits: int) -> None:
    space, form = space_of("values"), parse_form(how)
    layers = {
        op.name: LayerDecision(LayerFormat.of(bits, a_bits, grid), sharing=how if form.applies(op) else None)
        for op in space.network.layers
    }
    assert_timed_on_the_kernels_that_run(space, replace(space.base(), layers=layers))


def entries(*decisions: LayerDecision) -> int:
    """How many entries of the table one layer has under these decisions."""
    space = space_of("resnet20")
    plans = [StepPlan(space).named_steps(decided(space, decision)) for decision in decisions]
    return len({dict(plan)["layer3.1.conv2"].key for plan in plans})


def test_only_what_changes_the_values_is_an_entry_of_its_own() -> None:
    ternary, codebook = LayerDecision(LayerFormat.of(2, 8)), LayerDecision(LayerFormat.of(2, 8, "codebook"))
    assert entries(ternary, codebook) == 2
    assert entries(ternary, *(replace(ternary, sharing=how) for how in ("hashed 0.25", "circulant 4"))) == 1
    assert entries(codebook, *(replace(codebook, sharing=how) for how in ("hashed 0.25", "circulant 4"))) == 2
    half = LayerDecision(LayerFormat.of(16, 32))
    assert entries(half, replace(half, sharing="hashed 0.25")) == 1


@pytest.mark.parametrize("weight", [each for each in GRID_FORMATS if each.grid != "uniform"], ids=str)
def test_a_grid_has_a_price_of_its_own_where_its_levels_are_its_own(weight: WeightFormat) -> None:
    even, op = WeightFormat(weight.bits), space_of("resnet20").network.node("layer3.1.conv2")
    rows = op.weight.reshape(len(op.weight), -1)
    assert set(weight.fit(rows)[0].tolist()) != set(even.fit(rows)[0].tolist())
    assert entries(LayerDecision(LayerFormat(weight, 8)), LayerDecision(LayerFormat(even, 8))) == 2
    predicted, stored = (
        {each: size(each) for each in (weight, even)}
        for size in (
            lambda each: Coded.of(op, each).bytes(op.weight.size),
            lambda each: packed_size(quantise_weight(op.weight, each)[0]),
        )
    )
    assert predicted == pytest.approx(stored, rel=0.03)
    if weight.bits > 1:  # of two levels, whichever they are, every weight takes one bit
        assert predicted[weight] != predicted[even]


def test_both_factors_carry_their_layer_s_name() -> None:
    space = space_of("resnet8")
    policy = space.uniform(1.0, INT8, "svd 0.25")
    named = StepPlan(space).named_steps(policy)
    ranked = [name for name, decision in policy.layers.items() if decision.rank is not None]
    assert ranked
    for name in ranked:
        first, second = (step for found, step in named if found == name)
        assert first.out_shape[0] == second.in_shape[0] == policy.layers[name].rank
        assert (first.residual, dict(first.attrs)["activation"]) == (False, "none")


def test_a_block_s_addition_and_activation_cost_no_step() -> None:
    space = space_of("resnet8-b")
    kinds = [step.kind for step in StepPlan(space).steps(space.base())]
    assert set(kinds) == {"conv2d", "global_avg_pool2d", "flatten", "linear"}
    residuals = [name for name, step in StepPlan(space).named_steps(space.base()) if step.residual]
    assert len(residuals) == 3


@pytest.mark.parametrize("name", NETS)
def test_macs_are_torch_s(name: str) -> None:
    space = space_of(name)
    for policy in random_policies(space, 4):
        network, _ = reshape_network(space, policy)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(network, torch.zeros(1, *network.input_shape))
        assert 2 * sum(step.macs for step in StepPlan(space).steps(policy)) == counter.get_total_flops()


@pytest.mark.parametrize("name", NETS)
def test_weights_are_those_of_the_layers(name: str) -> None:
    space = space_of(name)
    for policy in random_policies(space, 2):
        candidate = timing_candidate(space, policy)
        weights = sum(op.weight.size for op in candidate.network.layers if op.is_layer)
        assert sum(step.weights for step in StepPlan(space).steps(policy)) == weights


@pytest.mark.parametrize("name", [*NETS, "resnet8", "resnet8-b"])
def test_every_step_s_program_holds_just_that_step(name: str) -> None:
    space = space_of(name)
    steps = {step for policy in random_policies(space, 6) for step in StepPlan(space).steps(policy)}
    for step in steps:
        graph = step_graph(step)
        assert STEP in Session(graph).steps
        line = next(line for line in executed(graph) if line[0] == STEP)
        expected = (step.kind, step.in_shape, step.out_shape, step.in_int8, step.out_int8, step.residual)
        assert line[2:8] == expected
        node = next(node for node in graph.nodes if node.name == STEP)
        if step.kind in LAYERS and step.in_int8:
            assert graph.quant[node.inputs[0]].bits == step.format.activation_bits
        if node.kind in LAYERS:
            if step.format.weight.bits < 8:
                assert len(np.unique(node.weights["weight"])) <= 2**step.format.weight.bits
            if step.format.weight.bits == 16:
                assert not (node.weights["weight"].view(np.uint32) & 0xFFFF).any()
            assert (node.weights["weight"].dtype == "int8") == (step.format.weight.bits <= 8)
            assert (node.attrs["precision"] == "bf16") == (step.format.activation_bits == 16)


IMAGE = (8, 5, 6)
OTHERS = [
    Step("prelu", (8,), (8,)),
    Step("channel_affine", IMAGE, IMAGE, in_int8=True),
    Step("group_norm", IMAGE, IMAGE, (("groups", 4),)),
    Step("upsample", IMAGE, (8, 10, 12), (("mode", "nearest"), ("size", (10, 12))), in_int8=True, out_int8=True),
    Step("upsample", IMAGE, (8, 9, 3), (("mode", "bilinear"), ("size", (9, 3))), in_int8=True, out_int8=True),
    Step("depth_to_space", IMAGE, (2, 9, 12), (("block", (2, 2)), ("crop", (1, 0))), in_int8=True, out_int8=True),
]


@pytest.mark.parametrize("step", OTHERS, ids=[f"{step.kind}{i}" for i, step in enumerate(OTHERS)])
def test_a_step_without_weights_to_decide_is_timed_alone(step: Step) -> None:
    graph = step_graph(step)
    assert Session(graph).steps == [STEP]  # what moves values keeps its scale, and needs no conversion
    assert executed(graph)[0][2:7] == (step.kind, step.in_shape, step.out_shape, step.in_int8, step.out_int8)
    assert json.loads(step.key)["kind"] == step.kind


def test_keys_tell_steps_apart() -> None:
    steps = {
        step
        for name in NETS
        for policy in random_policies(space_of(name), 3)
        for step in StepPlan(space_of(name)).steps(policy)
    }
    assert len({step.key for step in steps}) == len(steps)


def test_prediction_needs_no_weights() -> None:
    space = space_of("resnet8")
    policy = random_policies(space, 1)[-1]
    shapes = [call.step.out_shape for call in StepPlan(space).calls(policy)]
    graph = check_graph(legalise(fuse(lower(candidate_of("resnet8", policy)))))
    assert shapes == [graph.shapes[node.name] for node in graph.nodes]


def test_an_operand_added_to_itself_is_not_fused() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            result: torch.Tensor = self.last(y + y)
            return result

    from trimtab.spaces import build_space

    space = build_space(Twice(), torch.zeros(1, 3, 16, 16))
    for policy in (space.base(), space.int8()):
        assert predicted(space, policy) == executed(lower(timing_candidate(space, policy)))


def test_macs_of_one_step_by_hand() -> None:
    attrs = (("groups", 2), ("kernel", (3, 3)), ("stride", (2, 2)))
    assert Step("conv2d", (8, 9, 9), (6, 4, 4), attrs).macs == 6 * 4 * 4 * (8 // 2) * 9
    assert Step("linear", (10,), (7,)).macs == math.prod((10, 7))
    assert Step("add", (8, 9, 9), (8, 9, 9)).macs == 0


@pytest.mark.parametrize("name", ["resnet8", "concat", "inverted"])
def test_chains_are_predicted_as_they_are_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.graph.bands.CHAINED_BYTES", 1)
    space = space_of(name)
    plan = StepPlan(space)
    chains = 0
    for policy in [*random_policies(space, 2), space.uniform(1.0, INT8, "svd 0.25")]:
        calls = plan.calls(policy)
        session = NativeEngine().compile(lower(timing_candidate(space, policy))).session
        assert [call.tensor for call in calls] == session.steps
        for call in calls:
            assert set(call.reads) <= {space.network.input, *(c.tensor for c in calls)}
            assert STEP in Session(step_graph(call.step)).steps
            assert Session(step_graph(call.step)).steps.count(STEP) == 1
        chained = [call.step for call in calls if call.step.kind == "chain"]
        chains += len(chained)
        for step in chained:
            assert [part.in_shape for part in step.parts[1:]] == [part.out_shape for part in step.parts[:-1]]
            assert not {f"{STEP}.{i}" for i in range(1, 9)} & set(Session(step_graph(step)).steps)
    assert chains


@pytest.mark.parametrize("name", ["resnet8", "inverted"])
def test_chains_do_not_change_what_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(name)
    policy = random_policies(space, 1)[-1]

    def counts() -> tuple[int, int]:
        steps = StepPlan(space).steps(policy)
        return sum(step.macs for step in steps), sum(step.weights for step in steps)

    apart = counts()
    monkeypatch.setattr("trimtab.graph.bands.CHAINED_BYTES", 1)
    assert counts() == apart
