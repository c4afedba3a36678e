"""Factorised layers, against NumPy's decompositions, tensors of known rank, and dense layers of the same weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor

from trimtab.errors import BadInput
from trimtab.evaluators.lowering import lower
from trimtab.kernels import Session
from trimtab.spaces import Calibration, Graph, LayerDecision, Node, Policy, Space, compress
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import run
from trimtab.spaces.factorisation import (
    FACTORISATIONS,
    Geometry,
    compose,
    decompose,
    factor_names,
    factor_ops,
    factorise,
    layer_of,
    parts_of,
    pays,
)
from trimtab.spaces.factorisation.geometry import total_macs
from trimtab.spaces.numbers.formats import LayerFormat

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]
NAMES = tuple(FACTORISATIONS)
SHAPES = [(8, 20, 1, 1), (20, 8, 1, 1), (6, 4, 3, 3), (40, 2, 3, 3), (7, 12, 2, 5), (5, 1, 1, 1), (3, 2, 1, 3)]


def weight_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def geometry_of(shape: tuple[int, ...]) -> Geometry:
    return Geometry(shape[1], shape[0], tuple(shape[2:]))


def applicable(shapes: list[tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((name, s) for name in NAMES for s in shapes if FACTORISATIONS[name].applies(geometry_of(s)))


def squared(array: np.ndarray) -> float:
    return float((array**2).sum())


def tail(matrix: np.ndarray, rank: int) -> float:
    """The squared error of the nearest matrix of a rank."""
    return squared(np.linalg.svd(matrix, compute_uv=False)[rank:])


def unfolded(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


@pytest.mark.parametrize(("name", "shape"), applicable(SHAPES))
def test_factors_fill_the_layers_that_are_promised(name: str, shape: tuple[int, ...]) -> None:
    layer = geometry_of(shape)
    for rank in {1, FACTORISATIONS[name].rank_at(layer, 0.6), FACTORISATIONS[name].full_rank(layer)}:
        factors = FACTORISATIONS[name].factors(weight_of(shape), rank)
        parts = parts_of(layer, name, rank)
        assert [factor.size for factor in factors] == [part.weights for part in parts]
        assert [part.inputs for part in parts] == [shape[1], *(part.outputs for part in parts[:-1])]
        assert parts[-1].outputs == shape[0]
        assert compose(name, factors).shape == shape


@pytest.mark.parametrize(("name", "shape"), applicable(SHAPES))
def test_at_full_rank_the_weight_is_reproduced(name: str, shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    factors = FACTORISATIONS[name].factors(weight, FACTORISATIONS[name].full_rank(geometry_of(shape)))
    tolerance = 2e-2 if name == "cp" else 1e-9  # alternating least squares come near, not there
    assert squared(compose(name, factors) - weight) <= tolerance**2 * squared(weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_the_error_of_the_svd_is_the_discarded_singular_values(shape: tuple[int, ...], fraction: float) -> None:
    weight = weight_of(shape)
    rank = FACTORISATIONS["svd"].rank_at(geometry_of(shape), fraction)
    error = squared(weight - compose("svd", FACTORISATIONS["svd"].factors(weight, rank)))
    assert error == pytest.approx(tail(unfolded(weight, 0), rank), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", [shape for name, shape in applicable(SHAPES) if name == "spatial"])
@pytest.mark.parametrize("rank", [1, 3])
def test_two_kernels_are_as_near_as_eckart_and_young_allow(shape: tuple[int, ...], rank: int) -> None:
    weight = weight_of(shape)
    error = squared(weight - compose("spatial", FACTORISATIONS["spatial"].factors(weight, rank)))
    rows = np.array([[[weight[o, i, y] for o in range(shape[0])] for y in range(shape[2])] for i in range(shape[1])])
    assert error == pytest.approx(tail(rows.reshape(shape[1] * shape[2], -1), rank), rel=1e-9)


@pytest.mark.parametrize("rank", [2, 5, 11])
def test_tucker_keeps_the_bounds_of_the_higher_order_svd(rank: int) -> None:
    weight = weight_of((12, 9, 3, 3))
    inner = math.ceil(rank * 9 / 12)
    discarded = tail(unfolded(weight, 0), rank), tail(unfolded(weight, 1), inner)
    error = squared(weight - compose("tucker", FACTORISATIONS["tucker"].factors(weight, rank)))
    assert max(discarded) * (1 - 1e-9) <= error <= sum(discarded) * (1 + 1e-9)


def test_orthogonal_iteration_is_no_worse_than_the_truncated_higher_order_svd() -> None:
    for seed in range(5):
        weight = weight_of((10, 10, 3, 3), seed)
        bases = [np.linalg.svd(unfolded(weight, axis))[0][:, :4] for axis in (0, 1)]
        o, i = (basis @ basis.T for basis in bases)
        truncated = np.einsum("ab,bcyx,cd->adyx", o, weight, i)
        error = squared(weight - compose("tucker", FACTORISATIONS["tucker"].factors(weight, 4)))
        assert error < squared(weight - truncated)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_of_that_rank_is_found(name: str, seed: int) -> None:
    rank, shape = 3, (10, 10, 3, 3)
    parts = parts_of(geometry_of(shape), name, rank)
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=factor.shape) for factor in FACTORISATIONS[name].factors(weight_of(shape), rank)]
    assert [factor.size for factor in made] == [part.weights for part in parts]
    weight = compose(name, made)
    found = compose(name, FACTORISATIONS[name].factors(weight, rank))
    assert squared(found - weight) <= 1e-8 * squared(weight)


def test_terms_of_cp_cancel_each_other_less_than_those_of_plain_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of((16, 16, 3, 3))
    sizes = []
    for proximity in (decompose.PROXIMITY, 1e-9):
        monkeypatch.setattr(decompose, "PROXIMITY", proximity)
        factors = FACTORISATIONS["cp"].factors(weight, 30)
        norms = np.array([np.linalg.norm(factor if len(factor) == 30 else factor.T, axis=1) for factor in factors])
        assert np.allclose(norms, norms[0])  # every factor of a term takes an equal part of its size
        sizes.append(squared(norms.prod(axis=0)))
    assert sizes[0] < 0.9 * sizes[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_zeros_has_finite_factors(name: str) -> None:
    factors = FACTORISATIONS[name].factors(np.zeros((6, 5, 3, 3)), 4)
    assert all(np.isfinite(factor).all() for factor in factors)
    assert not compose(name, factors).any()


GEOMETRIES = st.builds(
    Geometry,
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)


@settings(max_examples=200, deadline=None)
@given(GEOMETRIES, st.integers(9, 20), st.integers(9, 20), st.sampled_from(NAMES), st.floats(0, 1))
def test_parts_make_the_layer_s_output_and_cost_what_pytorch_says(
    layer: Geometry, height: int, width: int, name: str, fraction: float
) -> None:
    if not FACTORISATIONS[name].applies(layer):
        return
    rank = FACTORISATIONS[name].rank_at(layer, fraction)
    shape: tuple[int, ...] = (layer.inputs, height, width)
    macs = weights = 0
    for part in parts_of(layer, name, rank):
        convolution = torch.nn.Conv2d(
            part.inputs, part.outputs, part.kernel, part.stride, 0, part.dilation, part.groups, False, device="meta"
        )
        top, left, bottom, right = part.padding
        padded = torch.zeros((1, *shape), device="meta")
        shape = tuple(convolution(torch.nn.functional.pad(padded, (left, right, top, bottom))).shape[1:])
        weights += convolution.weight.numel()
        macs += convolution.weight[0].numel() * math.prod(shape)
    assert shape == layer.out_shape((layer.inputs, height, width))
    assert macs == total_macs(parts_of(layer, name, rank), (layer.inputs, height, width))
    cheaper = weights < layer.weights and macs < layer.macs((layer.inputs, height, width))
    assert pays(layer, name, rank, (layer.inputs, height, width)) == cheaper


def conv(outputs: int, inputs: int, kernel: tuple[int, int], **attrs: object) -> tuple[Graph, Node]:
    """A network of one convolution, of an odd image of 11 x 9."""
    weight = np.random.default_rng(1).normal(size=(outputs, inputs, *kernel)).astype(np.float32)
    bias = np.linspace(-1, 1, outputs, dtype=np.float32)
    full = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, **attrs}
    op = Node("conv2d", "a", ("x",), full, {"weight": weight, "bias": bias})
    return Graph("x", (inputs, 11, 9), (op,), "a"), op


def reconstructed(op: Node, name: str, rank: int) -> Node:
    """The dense layer with the weight that the factors stand for."""
    assert op.is_layer
    kernel = op.weight.reshape(*op.weight.shape[:2], *(op.weight.shape[2:] or (1, 1))).astype(np.float64)
    dense = compose(name, FACTORISATIONS[name].factors(kernel, rank))
    return op.with_weights(weight=dense.reshape(op.weight.shape).astype(np.float32))


PLACES: list[dict[str, object]] = [
    {},
    {"padding": (1, 1, 1, 1)},
    {"stride": (2, 2), "padding": (1, 1, 1, 1)},
    {"stride": (2, 2), "padding": (0, 0, 1, 1)},
    {"stride": (2, 1), "padding": (2, 0, 0, 1)},
    {"dilation": (2, 1), "padding": (2, 1, 2, 1)},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_factors_run_as_the_dense_layer_of_their_weight(name: str, place: dict[str, object]) -> None:
    layers = [conv(10, 6, kernel, **place) for kernel in ((3, 3), (2, 3), (1, 1))]
    layers = [(network, op) for network, op in layers if FACTORISATIONS[name].applies(Geometry.of(op))]
    assert layers
    for network, op in layers:
        x = torch.randn((3, 6, 11, 9), generator=torch.Generator().manual_seed(0))
        factorised = factorise(network, {"a": (name, 4)})
        assert [layer.name for layer in factorised] == factor_names("a", len(factorised.nodes))
        expected = run(replace(network, nodes=(reconstructed(op, name, 4),)), x)
        assert torch.allclose(run(factorised, x), expected, atol=1e-4 * float(expected.abs().max()))
        found = Session(lower(bare(factorised))).run(x.numpy())
        assert np.allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))


def bare(network: Graph) -> Candidate:
    """The network in float32."""
    policy = Policy(network.fingerprint(), {}, {})
    return Candidate(policy, network, {op.name: LayerDecision() for op in network.layers}, {}, {})


def test_a_linear_layer_has_two_factors() -> None:
    weight = np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)
    op = Node("linear", "a", ("x",), weights={"weight": weight, "bias": np.ones(12, np.float32)})
    network = Graph("x", (20,), (op,), "a")
    factorised = factorise(network, {"a": ("svd", 5)})
    x = torch.randn((4, 20), generator=torch.Generator().manual_seed(0))
    expected = run(replace(network, nodes=(reconstructed(op, "svd", 5),)), x)
    assert torch.allclose(run(factorised, x), expected, atol=1e-4)
    assert np.allclose(Session(lower(bare(factorised))).run(x.numpy()), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_factors_in_integers_stay_near_those_in_float(name: str, space_of: SpaceOf, image: Image) -> None:
    space, x = space_of("residual-b", factorisations=NAMES), image(16)
    calibration = Calibration.of(space, x.numpy())
    logits = []
    for bits in ((32, 32), (8, 8)):
        layers = {
            op.name: LayerDecision(LayerFormat.of(*bits), rank=4, factorisation=name)
            if FACTORISATIONS[name].applies(Geometry.of(op)) and FACTORISATIONS[name].full_rank(Geometry.of(op)) > 4
            else LayerDecision(LayerFormat.of(*bits))
            for op in space.network.layers
        }
        assert sum(layer.rank is not None for layer in layers.values()) >= 5
        candidate = compress(space, Policy(space.fingerprint, space.base().channels, layers), calibration)
        logits.append(Session(lower(candidate)).run(x.numpy()))
        expected = run(candidate.network, x).numpy()
        assert np.abs(logits[-1] - expected).max() < (1e-3 if bits[0] == 32 else 0.25) * np.abs(expected).max()
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", ["residual-b", "inverted", "concat-flatten", "dense"])
def test_full_rank_equals_the_dense_network(name: str, space_of: SpaceOf, image: Image) -> None:
    network = space_of(name).network
    svd = FACTORISATIONS["svd"]
    ranks = {op.name: ("svd", svd.full_rank(Geometry.of(op))) for op in network.layers if op.groups == 1}
    x = image(2)
    expected, found = run(network, x), run(factorise(network, ranks), x)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_only_the_last_factor_has_the_bias_and_the_name() -> None:
    network, op = conv(10, 6, (3, 3), stride=(2, 2))
    factors = FACTORISATIONS["cp"].factors(op.weight.astype(np.float64), 5)
    made = factor_ops(op, "cp", factors)
    assert [part.name for part in made] == ["a/factor", "a/factor2", "a/factor3", "a"]
    assert [part.bias is None for part in made] == [True, True, True, False]
    assert [part.attrs["stride"] for part in made] == [(1, 1), (2, 1), (1, 2), (1, 1)]
    assert {layer_of(part.name) for part in made} == {"a"}
    assert replace(network, nodes=tuple(made)).shapes["a"] == network.shapes["a"]


@pytest.mark.parametrize("name", NAMES)
def test_factors_do_not_depend_on_the_number_of_threads(name: str) -> None:
    weight = np.random.default_rng(0).normal(size=(96, 48, 3, 3)).astype(np.float32)
    attrs = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    network = Graph("x", (48, 8, 8), (Node("conv2d", "a", ("x",), attrs, {"weight": weight}),), "a")
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(factorise(network, {"a": (name, 20)}).weights_hash())
    assert found[0] == found[1]


def test_a_rank_out_of_range_names_the_layer(space_of: SpaceOf) -> None:
    network = space_of("residual-b").network
    with pytest.raises(BadInput, match="'conv1': rank 7 is not between 1 and 6"):
        factorise(network, {"conv1": ("svd", 7)})


@pytest.mark.parametrize(("name", "layer"), [("svd", "grouped.0"), ("cp", "reduce.0"), ("tucker", "reduce.0")])
def test_a_layer_that_cannot_be_factorised_is_named(name: str, layer: str, space_of: SpaceOf) -> None:
    with pytest.raises(BadInput, match=f"{layer!r} cannot be factorised by {name!r}: only dense convolutions"):
        factorise(space_of("grouped").network, {layer: (name, 1)})
