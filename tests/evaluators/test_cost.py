from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.evaluators.fakes import FakeEngine
from tests.evaluators.nets import NETS, candidate_of, model_of, random_policies, space_of
from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.evaluators import Cost, CostModel, LatencyTable, count_macs, lower
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.price.cost import TableFit, peak_memory
from trimtab.evaluators.price.plan import Call, Step, StepPlan
from trimtab.evaluators.price.size import Coded
from trimtab.graph import check_graph
from trimtab.graph.passes import fuse, legalise
from trimtab.kernels import packing, stored_bytes
from trimtab.kernels.packing import estimate
from trimtab.spaces import Candidate, LayerDecision, Policy, Space, build_space
from trimtab.spaces.forms.layer_forms import parse_form
from trimtab.spaces.numbers.formats import FLOAT, LayerFormat, WeightFormat
from trimtab.spaces.numbers.quantise import quantise_weight


def model_for(space: Space, fit: TableFit | None = None) -> CostModel:
    return CostModel(space, LatencyTable(FakeEngine(), space), fit)


# bytes


@pytest.mark.parametrize("name", NETS)
def test_size_is_what_the_repaired_candidate_stores(name: str) -> None:
    space = space_of(name)
    for policy in [
        *random_policies(space, 3),
        space.uniform(1.0, LayerFormat.of(8, 32)),
        space.uniform(0.5, FLOAT, "svd 0.25"),
    ]:
        candidate = candidate_of(name, policy)
        size = model_for(space).size(policy)
        assert size == nominal_bytes(candidate)
        assert stored_bytes(lower(candidate)) <= size


def nominal_bytes(candidate: Candidate) -> int:
    """The bytes of a candidate whose layers use every value that their bits allow."""
    total = sum(array.nbytes for op in candidate.network if not op.is_layer for array in op.weights.values())
    for op in candidate.network.layers:
        bits, weights = candidate.decisions[op.name].format.weight.bits, op.weight.size
        packed = bits * math.ceil(weights / 8) + 2**bits if bits < 8 else weights * bits // 8
        total += min(packed, weights) if bits < 8 else packed
        total += 4 * (op.bias is not None) * len(op.weight)
        total += 4 * len(op.weight) * (bits <= 8)
    return total


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_size_is_exact_without_coding_for_layers_that_use_their_bits(data: st.DataObject) -> None:
    space = space_of("resnet8")
    base = space.base()
    bits = st.sampled_from(next(knob.choices for knob in space.knobs if knob.kind == "bits"))
    layers = {name: space.decision(name, base.channels, data.draw(bits), "dense") for name in base.layers}
    policy = replace(base, layers=layers)
    graph = lower(candidate_of("resnet8", policy))
    assert model_for(space).size(policy) == sum(
        packing.uncoded(array).data.size for node in graph.nodes for array in node.weights.values()
    )
    assert stored_bytes(graph) <= model_for(space).size(policy)


@pytest.mark.parametrize("bits", [(1, 8), (2, 8), (4, 8), (8, 8), (16, 32), (32, 32)])
def test_coded_size_is_about_what_is_stored(bits: tuple[int, int]) -> None:
    space = space_of("resnet20")
    policy = replace(space.base(), layers={name: LayerDecision(LayerFormat.of(*bits)) for name in space.base().layers})
    model, stored = model_for(space), stored_bytes(lower(timing_candidate(space, policy)))
    assert stored <= model.coded_size(policy) <= min(1.03 * stored, model.size(policy))
    assert model.get(policy, "size") == model.cost(policy).size == model.coded_size(policy)


@pytest.mark.parametrize(("bits", "grid"), [(8, "uniform"), (4, "uniform"), (3, "power2"), (32, "uniform")])
def test_what_coding_leaves_of_a_sparse_layer(bits: int, grid: str) -> None:
    op = max(space_of("resnet20").network.layers, key=lambda op: op.weight.size)
    weight = op.folded().weight
    sparse = np.where(np.abs(weight) < np.median(np.abs(weight)), np.float32(0), weight)
    stored = estimate(sparse if bits == 32 else quantise_weight(sparse, WeightFormat(bits, grid))[0])
    predicted = Coded.of(op, WeightFormat(bits, grid), "weights 0.5").bytes(weight.size)
    assert predicted == pytest.approx(stored, rel=0.03)
    assert predicted <= Coded.of(op, WeightFormat(bits, grid)).bytes(weight.size)


@pytest.mark.parametrize("how", ["hashed 0.25", "circulant 4", "kernels 32", "product 8"])
@pytest.mark.parametrize("w_bits", [8, 4, 1])
def test_weights_that_are_shared_take_fewer_bytes(how: str, w_bits: int) -> None:
    space = space_of("resnet8")
    narrow, form = LayerDecision(LayerFormat.of(w_bits, 8)), parse_form(how)
    layers = {op.name: replace(narrow, sharing=how) if form.applies(op) else narrow for op in space.network.layers}
    shared, plain = replace(space.base(), layers=layers), replace(space.base(), layers=dict.fromkeys(layers, narrow))
    space.check(shared)
    stored = {policy: stored_bytes(lower(timing_candidate(space, policy))) for policy in (shared, plain)}
    model = model_for(space)
    assert stored[shared] <= model.size(shared)
    assert model.coded_size(shared) <= model.size(shared) <= model.size(plain)
    if w_bits == 8:
        assert stored[shared] < stored[plain]


def test_stored_bytes_by_hand() -> None:
    space = build_space(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5, bias=False)), torch.zeros(1, 3, 4, 4)
    )
    float_bytes = 4 * (4 * 27 + 4 + 5 * 16)
    int8_bytes = (4 * 27 + 4 * 4) + 4 * 4 + (5 * 16 + 4 * 5) + 4 * 5  # weights, scales, biases: repair adds the last
    assert model_for(space).size(space.base()) == float_bytes
    assert model_for(space).size(space.int8()) == int8_bytes


# MACs


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet8-b", "resnet32-b", *NETS])
def test_three_counters_agree(name: str) -> None:
    space, model = space_of(name), model_of(name)
    example = torch.zeros(1, *space.network.input_shape)
    steps = StepPlan(space).steps(space.base())
    assert count_macs(model, example, steps) == model_for(space).cost(space.base()).macs


def test_known_macs() -> None:
    model = model_of("resnet20")
    space = build_space(model, torch.zeros(1, 3, 32, 32))
    # He et al. 2016: 40.6 million for shortcut option A (convolutions and the linear layer).
    assert count_macs(model, torch.zeros(1, 3, 32, 32), StepPlan(space).steps(space.base())) == 40_551_040


class Renamed(nn.Conv2d):
    """A subclass, which thop does not know."""


def test_a_network_that_a_counter_misses_is_refused() -> None:
    def network(kind: type[nn.Conv2d]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), kind(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 3))

    example = torch.zeros(1, 3, 16, 16)
    space = build_space(network(nn.Conv2d), example)
    steps = StepPlan(space).steps(space.base())
    assert count_macs(network(nn.Conv2d), example, steps) == 8 * 14 * 14 * 27 + 8 * 12 * 12 * 72 + 8 * 12 * 12 * 3
    with pytest.raises(TrimtabError, match="counters disagree"):
        count_macs(network(Renamed), example, steps)


def test_a_network_of_which_a_layer_is_left_out_is_refused() -> None:
    space, model = space_of("residual-b"), model_of("residual-b")
    steps = StepPlan(space).steps(space.base())
    with pytest.raises(TrimtabError, match="counters disagree"):
        count_macs(model, torch.zeros(1, 3, 16, 16), steps[1:])


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).train()
    space = build_space(model, torch.zeros(1, 3, 8, 8))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, torch.randn(1, 3, 8, 8), StepPlan(space).steps(space.base()))
    assert all(module.training and not module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# memory


def call(tensor: str, reads: Sequence[str], elements: int, int8: bool = False) -> Call:
    return Call(tensor, tensor, tuple(reads), Step("add", (1,), (elements,), out_int8=int8))


def test_peak_memory_of_a_chain_is_its_largest_neighbours() -> None:
    chain = [call("a", ["x"], 100), call("b", ["a"], 50, int8=True), call("c", ["b"], 200)]
    assert peak_memory(chain, 30) == max(30 + 400, 400 + 50, 50 + 800)


def test_a_residual_lives_across_its_block() -> None:
    block = [call("a", ["x"], 100), call("b", ["a"], 100), call("c", ["b"], 100), call("d", ["c", "a"], 100)]
    assert peak_memory(block, 0) == 4 * 300  # a, b and c, then a, c and d
    assert peak_memory([*block[:3], call("d", ["c"], 100)], 0) == 4 * 200


def test_an_input_that_is_read_late_lives_until_then() -> None:
    calls = [call("a", ["x"], 10), call("b", ["a"], 10), call("c", ["b", "x"], 10)]
    assert peak_memory(calls, 1000) == 1000 + 80


def liveness_peak(space: Space, policy: Policy) -> int:
    """The peak of a simulated run of the real program: every tensor is dropped after its last reader."""
    graph = check_graph(legalise(fuse(lower(timing_candidate(space, policy)))))
    size = {name: math.prod(shape) * (1 if name in graph.quant else 4) for name, shape in graph.shapes.items()}
    live, peak = {graph.input}, size[graph.input]
    for i, node in enumerate(graph.nodes):
        live.add(node.name)
        peak = max(peak, sum(size[name] for name in live))
        later = {name for following in graph.nodes[i + 1 :] for name in following.inputs} | {graph.output}
        live &= later
    return peak


@pytest.mark.parametrize("name", [*NETS, "resnet20"])
def test_memory_is_the_peak_of_live_activations(name: str) -> None:
    space = space_of(name)
    for policy in random_policies(space, 5):
        assert model_for(space).get(policy, "memory") == liveness_peak(space, policy)


# latency


def test_costs_one_by_one_are_the_cost() -> None:
    space = space_of("residual-a")
    model = model_for(space, TableFit(1.1, 1e-7, 1e-6))
    for policy in random_policies(space, 3):
        cost = model.cost(policy)
        assert isinstance(cost, Cost)
        for budget in ("latency", "size", "macs", "memory"):
            assert model.get(policy, budget) == cost.get(budget)


def test_latency_is_the_sum_over_steps() -> None:
    space = space_of("residual-a")
    model = model_for(space)
    for policy in random_policies(space, 2):
        steps = model.plan.steps(policy)
        assert model.get(policy, "latency") == pytest.approx(sum(FakeEngine().truth(step) for step in steps))
        fitted = CostModel(space, model.table, TableFit(2.0, 1e-6, 5e-6))
        expected = 2.0 * model.get(policy, "latency") + 1e-6 * len(steps) + 5e-6
        assert fitted.get(policy, "latency") == pytest.approx(expected)


def drawn_totals(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(1e-4, 1e-3, count), rng.integers(10, 40, count)


def test_fit_recovers_an_affine_law() -> None:
    totals, steps = drawn_totals()
    measured = 1.3 * totals + 1e-6 * steps + 2e-6
    fit = TableFit.of(totals, steps.tolist(), measured)
    errors = [fit(total, int(n)) / seconds - 1 for total, n, seconds in zip(totals, steps, measured, strict=True)]
    assert np.abs(errors).max() < 0.01
    assert fit.factor == pytest.approx(1.3, rel=0.02)
    assert fit.per_step == pytest.approx(1e-6, rel=0.25)


def test_fit_does_not_depend_on_the_machine_s_speed() -> None:
    totals, steps = drawn_totals()
    noisy = totals * np.random.default_rng(1).uniform(0.9, 1.3, len(totals)) + 2e-5
    fast, slow = (TableFit.of(totals * k, steps.tolist(), noisy * k) for k in (1, 100))
    assert slow.factor == pytest.approx(fast.factor)
    assert slow.per_step == pytest.approx(100 * fast.per_step)
    assert slow.constant == pytest.approx(100 * fast.constant)


def test_fit_leaves_a_perfect_table_alone() -> None:
    totals, steps = drawn_totals()
    fit = TableFit.of(totals, steps.tolist(), totals)
    assert fit.factor == pytest.approx(1.0)
    assert abs(fit.per_step) < 1e-12
    assert abs(fit.constant) < 1e-12


def test_fit_of_one_measurement_stays_sane() -> None:
    fit = TableFit.of([1e-3], [20], [1.2e-3])
    assert fit(1e-3, 20) == pytest.approx(1.2e-3, rel=0.01)
    assert 0.5 < fit.factor < 1.5


def test_a_fit_never_predicts_nothing() -> None:
    assert TableFit(1.0, 0.0, -1.0)(1e-3, 10) == pytest.approx(1e-4)


def test_table_error_is_relative_to_the_measurement() -> None:
    space = space_of("residual-a")
    model = model_for(space)
    policies = random_policies(space, 1)
    factors = (1.0, 0.8, 1.25)
    measured = {p: model.get(p, "latency") / f for p, f in zip(policies, factors, strict=True)}
    error = model.error(measured)
    assert (error.median, error.largest, error.networks) == (pytest.approx(0.2), pytest.approx(0.25), 3)
    nothing = model.error({})
    assert nothing.networks == 0
    assert math.isnan(nothing.median)
    assert math.isnan(nothing.largest)


def test_norms_before_their_layer_do_not_count_as_a_disagreement() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.conv(torch.relu(self.norm(x))).mean((2, 3)))
            return result

    model, example = PreNorm().eval(), torch.zeros(1, 3, 8, 8)
    space = build_space(model, example)
    assert count_macs(model, example, StepPlan(space).steps(space.base())) > 0


@pytest.mark.parametrize("budget", ["latency", "size", "macs"])
@pytest.mark.parametrize("name", NETS)
def test_the_parts_of_a_cost_add_up_to_it(name: str, budget: str) -> None:
    space = space_of(name)
    model = CostModel(space, model_for(space).table, TableFit(1.5, 1e-6, 3e-6))
    for policy in [space.base(), space.int8(), *random_policies(space, 3)]:
        parts = model.by_layer(policy, budget)
        assert set(parts) - {""} == {op.name for op in space.network.layers}
        assert sum(parts.values()) == pytest.approx(model.get(policy, budget), abs=1 if budget == "size" else 1e-12)


def neighbours(space: Space, count: int) -> list[Policy]:
    """A walk: every policy differs from the one before it in one knob."""
    rng = np.random.default_rng(3)
    vector = space.encode(random_policies(space, 1)[-1])
    policies = []
    for _ in range(count):
        knob = int(rng.integers(len(vector)))
        vector[knob] = int(rng.integers(len(space.knobs[knob].choices)))
        policies.append(space.decode(vector))
    return policies


def prices(model: CostModel, policy: Policy) -> list[object]:
    parts = [model.by_layer(policy, budget) for budget in ("latency", "size", "macs")]
    return [model.cost(policy), model.size(policy), parts, model.plan.steps(policy), dict(model.plan.stored(policy))]


@pytest.mark.parametrize("name", NETS)
def test_what_was_priced_before_changes_no_price(name: str) -> None:
    """What is remembered of other policies must hold for this one: to the bit, a model that knows none agrees."""
    space = space_of(name)
    used = model_for(space, TableFit(1.5, 1e-6, 3e-6))
    for policy in [space.base(), space.int8(), *neighbours(space, 24)]:
        fresh = CostModel(replace(space), used.table, used.fit)
        assert fresh.space.decode(fresh.space.encode(policy)) == policy
        assert prices(used, policy) == prices(fresh, policy)


def test_a_neighbour_is_priced_by_what_is_known_of_its_other_layers() -> None:
    space = space_of("resnet20")
    model = model_for(space)
    policies = neighbours(space, 400)
    for policy in policies[:300]:
        model.cost(policy)
    known = len(model._layer_sizes)
    for policy in policies[300:]:
        model.cost(policy)
    # A channel group concerns up to ten layers of this network, bits and forms one: nearly all are known already.
    assert len(model._layer_sizes) - known < 0.2 * 100 * len(space.network.layers)
