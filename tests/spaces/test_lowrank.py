"""Factorised layers, against NumPy's singular value decomposition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor

from trimtab.errors import BadInput
from trimtab.spaces import Network, Op, Space
from trimtab.spaces.execute import run
from trimtab.spaces.lowrank import factorise, full_rank, pays, svd_factors

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]
SHAPES = [(8, 20), (20, 8), (6, 4, 3, 3), (40, 2, 3, 3), (5, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_the_error_is_the_discarded_singular_values(shape: tuple[int, ...], fraction: float) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = weight.reshape(shape[0], -1)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    rank = max(1, round(fraction * len(values)))
    left, right = svd_factors(weight, rank)
    assert left.shape == (shape[0], rank)
    assert right.shape == (rank, *shape[1:])
    assert left.dtype == right.dtype == np.float32
    error = float(((matrix - left @ right.reshape(rank, -1)) ** 2).sum())
    assert error == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-4, abs=1e-6)
    right = right.reshape(rank, -1)
    gram = left.T @ left if shape[0] <= matrix.shape[1] else right @ right.T
    assert np.allclose(gram, np.eye(rank), atol=1e-5)


def test_a_weight_of_lower_rank_than_asked_is_reproduced() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(8, 2)) @ rng.normal(size=(2, 9))).astype(np.float32)
    left, right = svd_factors(weight, 5)
    assert np.allclose(left @ right, weight, atol=1e-5)
    assert all(np.isfinite(factor).all() for factor in svd_factors(np.zeros((4, 6), np.float32), 2))


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_a_rank_pays_where_the_factors_have_fewer_weights(outputs: int, inputs: int, rank: int) -> None:
    factors = np.empty((outputs, rank)).size + np.empty((rank, inputs)).size
    assert pays(outputs, inputs, rank) == (factors < outputs * inputs)
    assert not pays(outputs, inputs, full_rank(outputs, inputs))


@pytest.mark.parametrize("name", ["residual-b", "inverted", "concat-flatten", "dense"])
def test_full_rank_equals_the_dense_network(name: str, space_of: SpaceOf, image: Image) -> None:
    network = space_of(name).network
    ranks = {
        op.name: full_rank(op.weight.shape[0], op.weight[0].size)
        for op in network.layers
        if op.weight is not None and op.groups == 1
    }
    x = image(2)
    expected, found = run(network, x), run(factorise(network, ranks), x)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_factorised_convolution_takes_stride_and_padding_into_its_first_factor(space_of: SpaceOf) -> None:
    network = space_of("residual-b").network
    dense = network.op("layer2.0.conv1")
    found = factorise(network, {dense.name: 3})
    first, second = found.op(f"{dense.name}/factor"), found.op(dense.name)
    assert (first.attrs, first.inputs, first.shape) == (dense.attrs, dense.inputs, (3, *dense.shape[1:]))
    assert first.bias is None
    assert second.inputs == (first.name,)
    assert second.shape == dense.shape
    assert second.attrs["stride"] == (1, 1)
    assert second.weight is not None
    assert second.weight.shape == (dense.shape[0], 3, 1, 1)


def test_factors_do_not_depend_on_the_number_of_threads() -> None:
    weight = np.random.default_rng(0).normal(size=(128, 64, 3, 3)).astype(np.float32)
    attrs = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    network = Network("x", (64, 8, 8), (Op("conv2d", "a", ("x",), (128, 8, 8), attrs, weight),), "a")
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(factorise(network, {"a": 20}).weights_hash())
    assert found[0] == found[1]


def test_a_rank_out_of_range_names_the_layer(space_of: SpaceOf) -> None:
    network = space_of("residual-b").network
    with pytest.raises(BadInput, match="'conv1': rank 7 is not between 1 and 6"):
        factorise(network, {"conv1": 7})


def test_a_grouped_convolution_cannot_be_factorised(space_of: SpaceOf) -> None:
    with pytest.raises(BadInput, match=r"'grouped.0' cannot be factorised"):
        factorise(space_of("grouped").network, {"grouped.0": 1})
