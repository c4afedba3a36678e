"""Least-squares reconstruction: new weights for a layer, so that on calibration images it does what it used to do.

After He et al. 2017 (arXiv:1707.06168, section 3.1), layer by layer from input to output, on a sample of output
positions. A layer whose output is added to a shortcut is fitted to the untouched *sum*, so that it also makes up for
what the shortcut has lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.spaces.network import Array, Network, Op

__all__ = [
    "Positions",
    "Sample",
    "draw_positions",
    "receptive_fields",
    "sample_targets",
    "solve",
    "target_tensors",
]

#: Sampled output positions per input of the layer, and at least so many.
SAMPLES_PER_INPUT = 12
LEAST_SAMPLES = 1024

#: Ridge on the change of the weights, relative to the mean square of the layer's inputs.
RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class Positions:
    """Output positions of a layer (image, row, column), each (S,)."""

    image: Tensor
    row: Tensor
    column: Tensor

    def at(self, tensor: Tensor) -> Tensor:
        """Return a tensor's (N, C, H, W) or (N, F) values at the positions, (S, C)."""
        return tensor[self.image, :, self.row, self.column] if tensor.ndim == 4 else tensor[self.image]


@dataclass(frozen=True, eq=False)
class Sample(Positions):
    """Positions, and the untouched network's values there, (S, O).

    `other` names the tensor that is added to the layer's output before the values are taken, if one is.
    """

    values: Tensor
    other: str | None


def target_tensors(network: Network) -> dict[str, tuple[str, str | None]]:
    """Return for every dense layer the tensor it is fitted to, and the other operand where that is a sum."""
    order = {name: i for i, name in enumerate([network.input, *(op.name for op in network)])}
    targets: dict[str, tuple[str, str | None]] = {}
    for op in network.layers:
        if op.groups != 1:
            continue
        targets[op.name] = (op.name, None)
        readers = network.consumers(op.name)
        if len(readers) == 1 and readers[0].kind == "add" and op.name != network.output:
            (add,) = readers
            others = [name for name in add.inputs if name != op.name]
            if len(others) == 1 and order[others[0]] < order[op.name]:
                targets[op.name] = (add.name, others[0])
    return targets


def draw_positions(op: Op, shape: Sequence[int], seed: int) -> Positions:
    """Draw positions of a layer's output of this shape, (N, O, H, W) or (N, O), without repetition, seeded."""
    inputs = op.weight[0].size if op.weight is not None else 1
    grid = (shape[0], *(shape[2:] if len(shape) == 4 else (1, 1)))
    total = math.prod(grid)
    wanted = min(total, max(LEAST_SAMPLES, SAMPLES_PER_INPUT * inputs))
    drawn = np.sort(np.random.default_rng(seed).choice(total, wanted, replace=False))
    return Positions(*(torch.from_numpy(index) for index in np.unravel_index(drawn, grid)))


def sample_targets(op: Op, tensor: Tensor, other: str | None, seed: int) -> Sample:
    """Read an untouched tensor (N, O, H, W) or (N, O) at seeded positions of a layer."""
    places = draw_positions(op, tensor.shape, seed)
    return Sample(places.image, places.row, places.column, places.at(tensor), other)


def solve(
    op: Op, x: Tensor, sample: Sample, channels: Array, values: Mapping[str, Tensor]
) -> tuple[Array, Array, Tensor]:
    """Return the weight and bias of `op` with which its output on `x` is nearest to the sample's values.

    And the covariance of the layer's inputs (I, I), ridge included: what errors of the weights cost together.

    `x` (N, C, H, W) or (N, F) is the layer's input in the candidate, `channels` the untouched layer's output channels
    that `op` still has, `values` the candidate's tensors so far. The change of the weights is penalised, so a layer
    that has nothing to make up for stays as it is.
    """
    if op.weight is None:
        raise ValueError(f"{op.name} has no weight")
    weight = torch.from_numpy(op.weight.reshape(op.weight.shape[0], -1).astype(np.float32))
    bias = torch.zeros(len(weight)) if op.bias is None else torch.from_numpy(op.bias.astype(np.float32))
    inputs = receptive_fields(op, x, sample)
    wanted = sample.values[:, torch.from_numpy(channels)]
    if sample.other is not None:
        wanted = wanted - sample.at(values[sample.other])
    missing = wanted - inputs @ weight.T - bias
    mean_input, mean_missing = inputs.mean(0), missing.mean(0)
    centred = inputs - mean_input
    gram = centred.T @ centred / len(inputs)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp(min=1e-12))
    change = torch.cholesky_solve(centred.T @ (missing - mean_missing) / len(inputs), torch.linalg.cholesky(gram)).T
    bias = bias + mean_missing - change @ mean_input
    return (weight + change).numpy().reshape(op.weight.shape), bias.numpy(), gram


def receptive_fields(op: Op, x: Tensor, sample: Positions) -> Tensor:
    """Return the receptive field of every sampled output position, (S, C * kh * kw)."""
    if op.kind == "linear":
        return x[sample.image]
    top, left, bottom, right = op.attrs["padding"]
    padded = F.pad(x, (left, right, top, bottom)) if any((top, left, bottom, right)) else x
    (stride_h, stride_w), (dilation_h, dilation_w) = op.attrs["stride"], op.attrs["dilation"]
    height, width = op.weight.shape[2:]  # type: ignore[union-attr]
    rows = sample.row[:, None] * stride_h + torch.arange(height) * dilation_h
    columns = sample.column[:, None] * stride_w + torch.arange(width) * dilation_w
    # Indexing pixels of channels-last images reads whole channel vectors at once.
    pixels = padded.permute(0, 2, 3, 1).contiguous()
    fields = pixels[sample.image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return fields.permute(0, 3, 1, 2).reshape(len(sample.image), -1)
