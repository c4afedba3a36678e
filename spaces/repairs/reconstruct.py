"""Least-squares reconstruction: new weights for a layer, so that on calibration images it does what it used to do.

After He et al. 2017 (arXiv:1707.06168, section 3.1), layer by layer from input to output, on a sample of output
positions. A layer whose output is added to a shortcut is fitted to the untouched *sum*, so that it also makes up for
what the shortcut has lost. Where only a ReLU reads what a layer is fitted to, values below zero need to be below zero
and no more (after Zhang et al. 2015, arXiv:1505.06798, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.graph import Array, Graph, Node
from trimtab.kernels.observe import read_fields
from trimtab.spaces.execute import channels_last

__all__ = [
    "SAMPLES_PER_INPUT",
    "InputStatistics",
    "Positions",
    "Sample",
    "draw_positions",
    "eager_order",
    "is_fitted",
    "is_rectified",
    "receptive_fields",
    "sample_targets",
    "solve",
    "target_tensors",
]

#: Sampled output positions per input of the layer where nothing else is asked for, and at least so many.
SAMPLES_PER_INPUT = 12
LEAST_SAMPLES = 1024

#: Inputs of a layer that is fitted, at most: their covariance takes the square of them, and solving with it the cube.
LARGEST_FIT = 8192

#: Ridge on the change of the weights, relative to the mean square of the layer's inputs.
RIDGE = 0.01

#: Steps towards the best fit in front of a ReLU. On 20 random policies of ResNet-20, 10 of them were 0.3 +- 0.2 points
#: worse than 3.
RECTIFIED_STEPS = 5


@dataclass(frozen=True, eq=False)
class Positions:
    """Output positions of a layer (image, row, column), each (S,)."""

    image: Tensor
    row: Tensor
    column: Tensor

    def at(self, tensor: Tensor) -> Tensor:
        """Return a tensor's (N, C, H, W) or (N, F) values at the positions, (S, C)."""
        if tensor.ndim != 4:
            return tensor[self.image]
        return tensor.permute(0, 2, 3, 1)[self.image, self.row, self.column]


@dataclass(frozen=True, eq=False)
class Sample(Positions):
    """Positions, and the untouched network's values there, (S, O).

    `other` names the tensor that is added to the layer's output before the values are taken, if one is; `rectified`
    says that nothing but a ReLU reads them.
    """

    values: Tensor
    other: str | None
    rectified: bool = False


def eager_order(network: Graph) -> tuple[Node, ...]:
    """Return the operators with those that have no weight as early as their inputs are there.

    So a shortcut without weights is there before the layer whose sum with it that layer is fitted to.
    """
    there, left, order = {network.input}, list(network.nodes), []
    while left:
        op = next((op for op in left if not op.is_layer and there.issuperset(op.inputs)), left[0])
        left.remove(op)
        there.add(op.name)
        order.append(op)
    return tuple(order)


def is_rectified(network: Graph, tensor: str) -> bool:
    """Whether nothing but ReLUs read a tensor."""
    readers = network.readers(tensor)
    relus = [op for op in readers if op.kind == "activation" and op.attrs["activation"] == "relu"]
    return bool(readers) and len(relus) == len(readers) and tensor != network.output


def target_tensors(network: Graph) -> dict[str, tuple[str, str | None]]:
    """Return for every dense layer the tensor it is fitted to, and the other operand where that is a sum."""
    order = {name: i for i, name in enumerate([network.input, *(op.name for op in eager_order(network))])}
    targets: dict[str, tuple[str, str | None]] = {}
    for op in network.layers:
        if op.groups != 1:
            continue
        targets[op.name] = (op.name, None)
        readers = network.readers(op.name)
        if len(readers) == 1 and readers[0].kind == "add" and op.name != network.output:
            (add,) = readers
            others = [name for name in add.inputs if name != op.name]
            if len(others) == 1 and order[others[0]] < order[op.name]:
                targets[op.name] = (add.name, others[0])
    return targets


def is_fitted(op: Node) -> bool:
    """Whether a layer's weights are fitted: those of so many inputs that their covariance could not be held are not."""
    return bool(op.weight[0].size <= LARGEST_FIT)


def draw_positions(op: Node, shape: Sequence[int], seed: int, per_input: int = SAMPLES_PER_INPUT) -> Positions:
    """Draw positions of a layer's output of this shape, (N, O, H, W) or (N, O), without repetition, seeded."""
    inputs = op.weight[0].size if op.is_layer else 1
    grid = (shape[0], *(shape[2:] if len(shape) == 4 else (1, 1)))
    total = math.prod(grid)
    wanted = min(total, max(LEAST_SAMPLES, per_input * inputs))
    drawn = np.sort(np.random.default_rng(seed).choice(total, wanted, replace=False))
    return Positions(*(torch.from_numpy(index.copy()) for index in np.unravel_index(drawn, grid)))


def sample_targets(
    op: Node,
    tensor: Tensor,
    other: str | None,
    seed: int,
    rectified: bool = False,
    per_input: int = SAMPLES_PER_INPUT,
) -> Sample:
    """Read an untouched tensor (N, O, H, W) or (N, O) at seeded positions of a layer."""
    places = draw_positions(op, tensor.shape, seed, per_input)
    return Sample(places.image, places.row, places.column, places.at(tensor), other, rectified)


def solve(
    op: Node, x: Tensor, sample: Sample, channels: Array, values: Mapping[str, Tensor]
) -> tuple[Array, Array, InputStatistics]:
    """Return the weight and bias of `op` with which its output on `x` is nearest to the sample's values.

    And the statistics of the layer's inputs that they were found with.

    `x` (N, C, H, W) or (N, F) is the layer's input in the candidate, `channels` the untouched layer's output channels
    that `op` still has, `values` the candidate's tensors so far. The change of the weights is penalised, so a layer
    that has nothing to make up for stays as it is.
    """
    if not op.is_layer:
        raise ValueError(f"{op.name} has no weight")
    weight = torch.from_numpy(op.weight.reshape(op.weight.shape[0], -1).astype(np.float32))
    bias = torch.zeros(len(weight)) if op.bias is None else torch.from_numpy(op.bias.astype(np.float32))
    inputs = receptive_fields(op, x, sample)
    wanted = sample.values[:, torch.from_numpy(channels)]
    found = torch.addmm(bias, inputs, weight.T)
    if sample.other is not None:
        found += sample.at(values[sample.other])
    fit = _Fit(inputs)
    change, mean = fit.to(wanted - found)
    if sample.rectified:
        change, mean = _rectified(fit, wanted, found, change, mean)
    shift = mean - change @ fit.mean
    statistics = InputStatistics(fit.mean, fit.gram, fit.ridge)
    return (weight + change).numpy().reshape(op.weight.shape), (bias + shift).numpy(), statistics


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """The mean (I,) of a layer's inputs and their covariance (I, I), whose diagonal has a `ridge` added: what errors of
    the weights cost together."""

    mean: Tensor
    gram: Tensor
    ridge: float

    def moments(self, op: Node) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation (O,) of every output channel of a layer on these inputs."""
        weight = torch.from_numpy(op.weight.reshape(len(op.weight), -1))
        bias = 0.0 if op.bias is None else torch.from_numpy(op.bias)
        variance = ((weight @ self.gram - self.ridge * weight) * weight).sum(1)
        return weight @ self.mean + bias, variance.clamp(min=0).sqrt()


class _Fit:
    """Ridge regression on inputs (S, I), which it overwrites, with a constant that is not penalised."""

    def __init__(self, inputs: Tensor) -> None:
        self.mean = inputs.mean(0)
        self.centred = inputs.sub_(self.mean)
        self.gram = self.centred.T @ self.centred / len(inputs)
        self.ridge = RIDGE * max(float(self.gram.diagonal().mean()), 1e-12)
        self.gram.diagonal().add_(self.ridge)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.gram))

    def to(self, missing: Tensor) -> tuple[Tensor, Tensor]:
        """Return coefficients (O, I) of the centred inputs and constant (O,) whose outputs are nearest to (S, O)."""
        product = missing.T @ self.centred / len(missing)  # the centred inputs' sum is zero, whatever is missing
        return product @ self.inverse, missing.mean(0)


def _rectified(fit: _Fit, wanted: Tensor, found: Tensor, change: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Move a plain fit (change, mean) of `wanted - found` towards the least squared error behind a ReLU.

    Where `wanted` is positive it counts as it is, elsewhere only what is above zero is an error: a convex bound of the
    error behind the ReLU. What is below zero is taken as wanted, and the fit repeated, each step a little further
    (Nesterov's acceleration, as in Beck and Teboulle 2009).
    """
    high = wanted.clamp(min=0) - found
    low = torch.where(wanted > 0, high, -torch.inf)
    missing = torch.empty_like(found)
    before, now, pace = (change, mean), (change, mean), 1.0
    for _ in range(RECTIFIED_STEPS):
        next_pace = (1 + math.sqrt(1 + 4 * pace * pace)) / 2
        ahead = (pace - 1) / next_pace
        change, mean = (b + ahead * (b - a) for a, b in zip(before, now, strict=True))
        torch.addmm(mean, fit.centred, change.T, out=missing)
        torch.clamp(missing, low, high, out=missing)
        before, now, pace = now, fit.to(missing), next_pace
    return now


def receptive_fields(op: Node, x: Tensor, sample: Positions) -> Tensor:
    """Return the receptive field of every sampled output position, (S, C * kh * kw)."""
    if op.kind == "linear":
        return x[sample.image]
    top, left, _, _ = op.attrs["padding"]
    geometry = (*op.weight.shape[2:], *op.attrs["stride"], *op.attrs["dilation"], top, left)
    pixels = channels_last(x).movedim(1, -1).numpy()
    image, row, column = (index.numpy() for index in (sample.image, sample.row, sample.column))
    return torch.from_numpy(read_fields(pixels, image, row, column, geometry))
