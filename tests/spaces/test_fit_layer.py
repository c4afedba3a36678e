"""Factors fitted to outputs: against the closed form, brute force, and what they start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.errors import BadInput
from trimtab.graph import Node
from trimtab.spaces import Calibration, LayerDecision, Policy, Space, compress
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import run
from trimtab.spaces.factorisation import (
    FACTORISATIONS,
    Geometry,
    Rectified,
    compose,
    fit_outputs,
    fit_rectified,
)
from trimtab.spaces.factorisation.fit import _auxiliary
from trimtab.spaces.numbers.formats import LayerFormat

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]
NAMES = tuple(FACTORISATIONS)
SHAPE = (9, 6, 3, 3)
INPUTS = 54


def correlated(count: int, seed: int = 0) -> np.ndarray:
    """Inputs (count, 54) of which some directions are much larger than others, and not centred."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(INPUTS, INPUTS)) * np.geomspace(3, 0.05, INPUTS)
    return np.asarray(rng.normal(size=(count, INPUTS)) @ mixing.T + 0.5)


def gram_of(inputs: np.ndarray) -> np.ndarray:
    return np.cov(inputs.T, bias=True) + 1e-6 * np.eye(INPUTS)


def squared(array: np.ndarray) -> float:
    return float((array**2).sum())


def output_error(weight: np.ndarray, dense: np.ndarray, gram: np.ndarray) -> float:
    """The mean squared error of the outputs, summed over channels."""
    missing = (weight - dense).reshape(len(weight), -1)
    return float(np.trace(missing @ gram @ missing.T))


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_svd_reaches_the_optimum_of_the_weighted_problem(rank: int) -> None:
    weight, gram = np.random.default_rng(1).normal(size=SHAPE), gram_of(correlated(300))
    start = FACTORISATIONS["svd"].factors(weight, rank)
    found = compose("svd", fit_outputs("svd", start, weight, gram))
    values = np.linalg.svd(weight.reshape(9, -1) @ np.linalg.cholesky(gram), compute_uv=False)
    assert output_error(weight, found, gram) == pytest.approx(squared(values[rank:]), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_fitted_factors_miss_less_of_the_outputs_than_plain_ones(name: str, seed: int) -> None:
    weight, gram = np.random.default_rng(seed).normal(size=SHAPE), gram_of(correlated(200, seed))
    plain = FACTORISATIONS[name].factors(weight, 4)
    copies = [factor.copy() for factor in plain]
    fitted = fit_outputs(name, plain, weight, gram)
    errors = [output_error(weight, compose(name, factors), gram) for factors in (plain, fitted)]
    assert errors[1] < 0.9 * errors[0]
    assert all(np.array_equal(a, b) for a, b in zip(plain, copies, strict=True))
    again = output_error(weight, compose(name, fit_outputs(name, fitted, weight, gram)), gram)
    assert again <= errors[1] * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_factors_that_miss_nothing_stay(name: str) -> None:
    factors = FACTORISATIONS[name].factors(np.random.default_rng(0).normal(size=SHAPE), 3)
    weight = compose(name, factors)
    found = compose(name, fit_outputs(name, factors, weight, gram_of(correlated(100))))
    assert np.allclose(found, weight, atol=1e-7)


def test_auxiliary_values_are_the_best_on_a_fine_grid() -> None:
    rng = np.random.default_rng(0)
    wanted, sums = rng.normal(size=200), rng.normal(size=200)
    grid = np.linspace(-5, 5, 20001)
    for hold in (0.01, 0.3, 1.0, 10.0):
        cost = (np.maximum(wanted, 0)[:, None] - np.maximum(grid, 0)) ** 2 + hold * (grid - sums[:, None]) ** 2
        z = _auxiliary(np.maximum(wanted, 0), sums, hold)
        found = (np.maximum(wanted, 0) - np.maximum(z, 0)) ** 2 + hold * (z - sums) ** 2
        assert (found <= cost.min(1) + 1e-12).all()
        assert np.allclose(found, cost.min(1), atol=1e-4)


def layer_before_a_relu(seed: int) -> tuple[np.ndarray, np.ndarray, Rectified]:
    rng = np.random.default_rng(seed)
    weight, bias, inputs = rng.normal(size=SHAPE), rng.normal(size=9), correlated(800, seed)
    beside = rng.normal(size=(800, 9)) * 3
    wanted = inputs @ weight.reshape(9, -1).T + bias + beside
    f32 = [array.astype(np.float32) for array in (inputs, wanted, beside)]
    return weight, bias, Rectified(f32[0], gram_of(inputs), f32[1], f32[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_factors_fitted_behind_the_relu_miss_less_there(name: str, seed: int) -> None:
    weight, bias, layer = layer_before_a_relu(seed)
    factors = fit_outputs(name, FACTORISATIONS[name].factors(weight, 4), weight, layer.gram)
    # The bias that is best for outputs without the ReLU.
    bias = bias + (weight - compose(name, factors)).reshape(9, -1) @ layer.inputs.mean(0)
    before = layer.error(layer.sums(compose(name, factors), bias))
    found, moved, sums = fit_rectified(name, factors, weight, bias, layer)
    direct = layer.beside + layer.inputs @ compose(name, found).reshape(9, -1).T + moved
    assert np.allclose(sums, direct, atol=1e-3)
    after = squared(np.maximum(layer.wanted, 0) - np.maximum(direct, 0))
    assert after == pytest.approx(layer.error(sums), rel=1e-3)
    assert after < 0.98 * before


def test_what_cannot_be_bettered_behind_the_relu_stays() -> None:
    weight, bias, layer = layer_before_a_relu(0)
    factors = FACTORISATIONS["svd"].factors(weight, 9)
    found, moved, sums = fit_rectified("svd", factors, weight, bias, layer)
    assert layer.error(sums) <= layer.error(layer.sums(weight, bias)) + 1e-6
    assert np.allclose(compose("svd", found), weight, atol=1e-3)
    assert np.allclose(moved, bias, atol=1e-3)


def test_the_nearest_weight_is_that_of_ridge_regression() -> None:
    weight, bias, layer = layer_before_a_relu(1)
    sums = layer.wanted + np.random.default_rng(9).normal(size=layer.wanted.shape).astype(np.float32)
    found = replace(layer, gram=layer.gram + 0.1 * np.eye(INPUTS)).nearest(sums, weight + 0.1)
    # The same as rows of data: inputs, and the penalty's; both centred, for the bias is free.
    x = (layer.inputs - layer.inputs.mean(0)) / np.sqrt(800)
    missing = (sums - layer.wanted) + layer.inputs @ np.full((INPUTS, 9), -0.1) + bias
    rows = np.concatenate([x, np.sqrt(0.1) * np.eye(INPUTS)])
    targets = np.concatenate([(missing - missing.mean(0)) / np.sqrt(800), np.zeros((INPUTS, 9))])
    change = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    assert np.allclose(found, weight + 0.1 + change.reshape(SHAPE), atol=1e-4)


def ranked(space: Space, name: str, only: str | None = None) -> Policy:
    """Rank 3 in every layer that can have it, or in one."""
    layers = {}
    for op in space.network.layers:
        form = FACTORISATIONS[name]
        fits = form.applies(Geometry.of(op)) and form.full_rank(Geometry.of(op)) > 3 and only in (None, op.name)
        layers[op.name] = LayerDecision(rank=3, factorisation=name) if fits else LayerDecision()
    return Policy(space.fingerprint, space.base().channels, layers)


def compressed(space: Space, policy: Policy, images: Tensor, factors: str) -> Candidate:
    fitted = replace(space, options=replace(space.options, factors=factors))
    return compress(fitted, policy, Calibration.of(fitted, images.numpy()))


def tensors(candidate: Candidate, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def observe(op: Node, y: Tensor) -> None:
        found[op.name] = y

    run(candidate.network, x, observe)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_of_a_network_comes_nearer_to_what_it_was(name: str, space_of: SpaceOf, image: Image) -> None:
    space, x = space_of("residual-b"), image(48)
    layer, relu = (
        "layer2.0.conv1",
        next(op.name for op in space.network if op.kind == "activation" and op.inputs == ("layer2.0.conv1",)),
    )
    untouched = tensors(compress(space, space.base(), Calibration.of(space, x.numpy())), x)
    policy = ranked(space, name, layer)
    missed = {}
    for factors in ("plain", "outputs", "nonlinear"):
        found = tensors(compressed(space, policy, x, factors), x)
        missed[factors] = [float((found[tensor] - untouched[tensor]).square().mean()) for tensor in (layer, relu)]
    # What is fitted is a sample of the outputs, and moments are restored after it: hence the tolerance.
    assert missed["outputs"][0] <= 1.02 * missed["plain"][0]
    assert missed["nonlinear"][1] <= 1.02 * missed["outputs"][1]


@pytest.mark.parametrize("factors", ["plain", "outputs", "nonlinear"])
@pytest.mark.parametrize("bits", [(32, 32), (8, 8), (4, 4)])
def test_every_fit_takes_every_layer_pruned_and_in_few_bits(
    factors: str, bits: tuple[int, int], space_of: SpaceOf, image: Image
) -> None:
    for toy in ("residual-a", "residual-b"):
        space = space_of(toy)
        drawn = space.uniform(0.7)
        layers = {
            op.name: LayerDecision(LayerFormat.of(*bits), rank=2, factorisation=name)
            if FACTORISATIONS[name].applies(Geometry.of(op)) and min(op.weight.shape[:2]) > 5
            else LayerDecision(LayerFormat.of(*bits))
            for op, name in zip(space.network.layers, NAMES * 99, strict=False)
        }
        policy = Policy(space.fingerprint, drawn.channels, layers)
        assert sum(layer.rank is not None for layer in layers.values()) >= 4
        first, again = (compressed(space, policy, image(20), factors) for _ in range(2))
        assert first.network.weights_hash() == again.network.weights_hash()
        assert torch.isfinite(run(first.network, image(4))).all()
        assert set(first.ranges) == {first.network.input, *(op.name for op in first.network)}


def test_an_unknown_fit_is_bad_input(space_of: SpaceOf) -> None:
    with pytest.raises(BadInput, match=r"fit of factors.*'output'"):
        space_of("residual-b", factors="output")
