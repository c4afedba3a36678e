"""Reconstruction against numpy's least squares, PyTorch's unfold, and what it is for: less error on fresh images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.spaces import Calibration, Node, Repairs, Space, compress
from trimtab.spaces.execute import apply_op, run
from trimtab.spaces.repairs import reconstruct as module
from trimtab.spaces.repairs.reconstruct import (
    Sample,
    eager_order,
    is_rectified,
    receptive_fields,
    sample_targets,
    solve,
    target_tensors,
)

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]


def convolution(stride: int = 1, padding: tuple[int, int, int, int] = (1, 1, 1, 1), dilation: int = 1) -> Node:
    rng = np.random.default_rng(3)
    attrs = {"stride": (stride, stride), "padding": padding, "dilation": (dilation, dilation), "groups": 1}
    weight = rng.normal(size=(5, 4, 3, 3)).astype(np.float32)
    return Node("conv2d", "c", ("x",), attrs, {"weight": weight, "bias": rng.normal(size=5).astype(np.float32)})


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, (1, 1, 1, 1), 1), (2, (0, 0, 1, 1), 1), (1, (2, 1, 2, 3), 2)]
)
def test_receptive_fields_times_the_weight_are_the_convolution(
    stride: int, padding: tuple[int, int, int, int], dilation: int
) -> None:
    op, x = convolution(stride, padding, dilation), torch.randn(3, 4, 9, 9)
    y = apply_op(op, [x])
    sample = sample_targets(op, y, None, seed=1)
    assert op.is_layer
    by_fields = receptive_fields(op, x, sample) @ torch.from_numpy(op.weight.reshape(5, -1)).T + torch.from_numpy(
        op.bias
    )
    assert torch.allclose(by_fields, sample.values, atol=1e-4)


def test_samples_are_drawn_without_repetition_and_by_their_seed() -> None:
    op, y = convolution(), torch.randn(3, 5, 9, 9)
    one, same, other = (sample_targets(op, y, None, seed) for seed in (1, 1, 2))
    places = set(zip(one.image.tolist(), one.row.tolist(), one.column.tolist(), strict=True))
    assert len(places) == len(one.image) == min(3 * 81, module.LEAST_SAMPLES)
    assert torch.equal(one.values, same.values)
    assert torch.equal(one.values, y[one.image, :, one.row, one.column])
    assert len(one.values) == len(other.values)


def test_the_solution_is_numpys_ridge_regression_on_the_change() -> None:
    torch.manual_seed(0)
    op, x = convolution(), torch.randn(8, 4, 9, 9)
    target = torch.randn(8, 5, 9, 9)
    sample = sample_targets(op, target, None, seed=1)
    weight, bias, statistics = solve(op, x, sample, np.arange(5), {})
    assert op.is_layer
    patches = F.unfold(x, 3, padding=1).double().reshape(8, 36, 9, 9)
    rows = patches[sample.image, :, sample.row, sample.column].numpy()
    wanted = target.double()[sample.image, :, sample.row, sample.column].numpy()
    residual = wanted - rows @ op.weight.reshape(5, -1).T.astype(np.float64) - op.bias
    centred = rows - rows.mean(0)
    ridge = module.RIDGE * np.mean(centred**2) * len(rows)
    stacked = np.concatenate([centred, np.sqrt(ridge) * np.eye(36)])
    right = np.concatenate([residual - residual.mean(0), np.zeros((36, 5))])
    change = np.linalg.lstsq(stacked, right, rcond=None)[0].T
    assert np.allclose(weight.reshape(5, -1), op.weight.reshape(5, -1) + change, atol=1e-4)
    assert np.allclose(bias, op.bias + residual.mean(0) - change @ rows.mean(0), atol=1e-4)
    assert np.allclose(statistics.gram, stacked.T @ stacked / len(rows), atol=1e-4)
    y = rows @ op.weight.reshape(5, -1).T + op.bias
    mean, std = statistics.moments(op)
    assert np.allclose(mean, y.mean(0), atol=1e-4)
    assert np.allclose(std, y.std(0), rtol=1e-4)


def test_a_layer_with_nothing_to_make_up_for_stays_as_it_is() -> None:
    op, x = convolution(), torch.randn(4, 4, 9, 9)
    weight, bias, _ = solve(op, x, sample_targets(op, apply_op(op, [x]), None, seed=1), np.arange(5), {})
    assert np.allclose(weight, op.weight, atol=1e-5)
    assert np.allclose(bias, op.bias, atol=1e-5)


def test_a_layer_in_a_sum_makes_up_for_what_the_other_operand_lost() -> None:
    op, x = convolution(), torch.randn(16, 4, 9, 9)
    lost = 0.3 * x.sum(1, keepdim=True).expand(-1, 5, -1, -1)
    whole = apply_op(op, [x]) + lost
    sample = sample_targets(op, whole, "shortcut", seed=1)
    weight, bias, _ = solve(op, x, sample, np.arange(5), {"shortcut": torch.zeros(16, 5, 9, 9)})
    fitted = op.with_weights(weight=weight, bias=bias)
    assert (apply_op(fitted, [x]) - whole).square().mean() < 0.01 * lost.square().mean()


def test_only_the_later_operand_of_a_residual_sum_is_fitted_to_it(space_of: SpaceOf) -> None:
    network = space_of("residual-b").network
    targets = target_tensors(network)
    fitted_to_sums = {name for name, (tensor, other) in targets.items() if other is not None}
    sums = [op for op in network if op.kind == "add"]
    assert len(fitted_to_sums) == len(sums)
    order = [op.name for op in network]
    for name in fitted_to_sums:
        tensor, other = targets[name]
        assert set(network.node(tensor).inputs) == {name, other}
        assert order.index(str(other)) < order.index(name)


def test_every_sum_of_option_a_is_fitted_by_the_block_s_last_layer(space_of: SpaceOf) -> None:
    # Where the image shrinks the shortcut comes last in the trace, though it could be computed before the block.
    network = space_of("residual-a").network
    fitted = {name: tensor for name, (tensor, other) in target_tensors(network).items() if other is not None}
    assert set(fitted) == {f"layer{stage}.0.conv2" for stage in (1, 2, 3)}
    order = [op.name for op in eager_order(network)]
    assert sorted(order) == sorted(op.name for op in network)
    for i, name in enumerate(order):
        assert set(network.node(name).inputs) <= {network.input, *order[:i]}


def rectified_loss(op: Node, x: Tensor, target: Tensor) -> float:
    """What `solve` makes small in front of a ReLU: below zero, only what is above zero is an error."""
    y = apply_op(op, [x])
    error = torch.where(target > 0, y - target, y.clamp(min=0))
    return float(error.double().square().mean())


@pytest.mark.parametrize("steps", [5, 400])
def test_in_front_of_a_relu_only_its_output_counts(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECTIFIED_STEPS", steps)
    monkeypatch.setattr(module, "RIDGE", 1e-6)
    torch.manual_seed(0)
    op, x = convolution(), torch.randn(8, 4, 9, 9)
    target = apply_op(op, [x]) * 0.5 + torch.randn(8, 5, 9, 9)
    losses = {}
    for rectified in (False, True):
        sample = sample_targets(op, target, None, 1, rectified)
        weight, bias, _ = solve(op, x, sample, np.arange(5), {})
        losses[rectified] = rectified_loss(op.with_weights(weight=weight, bias=bias), x, target)
    # The convex problem's optimum by L-BFGS.
    fields = F.unfold(x, 3, padding=1).double().transpose(1, 2).reshape(-1, 36)
    fields = torch.cat([fields, torch.ones(len(fields), 1)], 1)
    wanted = target.double().permute(0, 2, 3, 1).reshape(-1, 5)
    coefficients = torch.zeros(37, 5, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([coefficients], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        y = fields @ coefficients
        value = torch.where(wanted > 0, y - wanted, y.clamp(min=0)).square().mean()
        value.backward()
        return value

    search.step(loss)
    best = float(loss().detach())
    slack = 1.05 if steps == 5 else 1.002
    assert best * 0.999 <= losses[True] <= slack * best
    assert losses[True] < 0.9 * losses[False]


def test_what_a_relu_alone_reads_is_rectified(space_of: SpaceOf) -> None:
    network = space_of("residual-b").network
    sums = [op.name for op in network if op.kind == "add"]
    assert all(is_rectified(network, name) for name in ["conv1", *sums])
    assert not is_rectified(network, "layer1.0.conv2")
    assert not is_rectified(network, network.output)


@pytest.mark.parametrize("name", ["residual-a", "residual-b", "inverted", "concat"])
@pytest.mark.parametrize("bits", [(32, 32), (8, 8)])
def test_reconstruction_reduces_the_error_on_fresh_images(
    name: str, bits: tuple[int, int], space_of: SpaceOf, image: Image
) -> None:
    space, fresh = space_of(name), image(64, 11)
    policy = space.uniform(0.75, bits)
    expected = run(space.network, fresh)
    errors = []
    for fit in (False, True):
        calibration = Calibration.of(space, image(128, 12).numpy(), repairs=Repairs(reconstruct=fit))
        found = run(compress(space, policy, calibration).network, fresh)
        errors.append(float((found - expected).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_a_sample_reads_images_and_features() -> None:
    index = torch.tensor([1, 0])
    sample = Sample(index, index, index, torch.empty(0), None)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(sample.at(x), torch.stack([x[1, :, 1, 1], x[0, :, 0, 0]]))
    assert torch.equal(sample.at(x[:, :, 0, 0]), x[[1, 0], :, 0, 0])
