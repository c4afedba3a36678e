"""A short fine-tuning of a candidate, in PyTorch, under its own quantisation: what a proxy is compared with.

Weights and activations are rounded in the forward pass to what the candidate stores, and gradients pass straight
through (Bengio et al. 2013, arXiv:1308.3432). Pruned channels and ranks are gone from the network, so they stay gone;
weights that a pattern made zero stay zero; shared weights stay as they are. Layers that had a batch norm get one back
while they are trained: without, a network of folded norms moves only at rates at which it takes ages.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.evaluators.accuracy import simulated
from trimtab.evaluators.data import Images, Labels
from trimtab.evaluators.engines.torch_operators import to_bf16
from trimtab.graph import Array, Node, Quant
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import apply_layer, apply_op
from trimtab.spaces.numbers.formats import WeightFormat
from trimtab.spaces.numbers.quantise import dequantise
from trimtab.threads import torch_threads

__all__ = ["Schedule", "finetune"]

#: Pixels by which training images are shifted at most.
SHIFT = 4

#: Images that batch norms are measured on before the first step, and what keeps a dead channel's finite.
MEASURED = 256
EPSILON = 1e-5

#: Scales are positive: the sign of a norm's factor goes into the integers.
SMALLEST_SCALE = 1e-20


@dataclass(frozen=True)
class Schedule:
    """`steps` of `batch` images, SGD with momentum, a learning rate that falls to 0 along a half cosine, `seed`."""

    steps: int = 100
    batch: int = 64
    learning_rate: float = 1e-3
    momentum: float = 0.9
    seed: int = 0


@torch_threads(1)
def finetune(
    candidate: Candidate, normalised: Collection[str], images: Images, labels: Labels, schedule: Schedule
) -> Candidate:
    """Return the candidate with weights fitted to training images (N, C, H, W) and labels (N,), on one thread.

    `normalised` names the layers that had a batch norm (`Space.normalised`).
    """
    model = _Trainable(candidate, normalised, torch.from_numpy(images[:MEASURED].copy()))
    optimiser = torch.optim.SGD(model.parameters, schedule.learning_rate, schedule.momentum)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, schedule.steps)
    rng = np.random.default_rng(schedule.seed)
    for _ in range(schedule.steps):
        batch = rng.integers(len(images), size=schedule.batch)
        x = torch.from_numpy(_augmented(images[batch], rng))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), torch.from_numpy(labels[batch]))
        torch.autograd.backward(loss)
        optimiser.step()
        falling.step()
    return model.candidate()


def _augmented(images: Images, rng: np.random.Generator) -> Images:
    """Shift images by up to SHIFT pixels, and mirror half of them; what comes in at the edges is black.

    Networks are trained on crops of pictures with a black edge: their norms know it, and lose points without (grey, the
    zero of scaled images, is no replacement).
    """
    shift = SHIFT if min(images.shape[2:]) >= 8 * SHIFT else 0
    height, width = images.shape[2:]
    padded = np.empty((*images.shape[:2], height + 2 * shift, width + 2 * shift), images.dtype)
    padded[:] = images.min((0, 2, 3), keepdims=True)
    padded[:, :, shift : shift + height, shift : shift + width] = images
    out = np.empty_like(images)
    for i, (row, column) in enumerate(rng.integers(2 * shift + 1, size=(len(images), 2))):
        part = padded[i, :, row : row + height, column : column + width]
        out[i] = part[:, :, ::-1] if shift and rng.random() < 0.5 else part
    return out


class _Norm:
    """A batch norm that at first gives the outputs that it is measured on back as they are."""

    def __init__(self, y: Tensor) -> None:
        columns = y.transpose(0, 1).flatten(1)
        self.mean, self.variance = columns.mean(1), columns.var(1, correction=0)
        self.weight = (self.variance + EPSILON).sqrt().requires_grad_()
        self.bias = self.mean.clone().requires_grad_()

    def __call__(self, y: Tensor) -> Tensor:
        return F.batch_norm(y, self.mean, self.variance, self.weight, self.bias, training=True, eps=EPSILON)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the shift of every channel."""
        factor = self.weight.detach() / (self.variance + EPSILON).sqrt()
        return factor, self.bias.detach() - self.mean * factor


class _Trainable:
    """A candidate whose weights and biases are parameters."""

    def __init__(self, candidate: Candidate, normalised: Collection[str], images: Tensor) -> None:
        self.original = candidate
        self.network, self.quant = simulated(candidate)
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        for op in candidate.network.layers:
            decision = candidate.decisions[op.name]
            weight = torch.tensor(op.weight)
            self.weights[op.name] = weight.requires_grad_(decision.sharing is None)
            bias = np.zeros(len(weight), np.float32) if op.bias is None else op.bias
            self.biases[op.name] = torch.tensor(bias, requires_grad=True)
            if decision.pattern is not None:
                self.masks[op.name] = (weight.detach() != 0).float()
        self.levels = {
            name: (torch.from_numpy(_levels(values, candidate.decisions[name].format.weight)), torch.from_numpy(scale))
            for name, (values, scale) in candidate.int8.items()
        }
        self.norms: dict[str, _Norm] = {}
        with torch.no_grad():
            self._run(images, set(normalised))

    @property
    def parameters(self) -> list[Tensor]:
        norms = [p for norm in self.norms.values() for p in (norm.weight, norm.bias)]
        own = [*self.weights.values(), *(bias for name, bias in self.biases.items() if name not in self.norms)]
        return [p for p in (*own, *norms) if p.requires_grad]

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x)

    def _run(self, x: Tensor, measured: Collection[str] = ()) -> Tensor:
        """Compute the output; layers in `measured` get their norm, as what they give now is distributed."""
        values = {self.network.input: self._stored(self.network.input, x)}
        for op in self.network:
            inputs = [values[name] for name in op.inputs]
            y = self._layer(op, inputs[0]) if op.is_layer else apply_op(op, inputs)
            if op.name in measured:
                self.norms[op.name] = _Norm(y)
            values[op.name] = self._stored(op.name, y)
        return values[self.network.output]

    def candidate(self) -> Candidate:
        """Return the candidate as it was trained."""
        int8 = dict(self.original.int8)
        ops: list[Node] = []
        for op in self.original.network:
            if op.is_layer:
                weight, bias = self._weight(op.name).detach(), self.biases[op.name].detach()
                factor = torch.ones_like(bias)
                if op.name in self.norms:
                    factor, shift = self.norms[op.name].folded()
                    bias = bias * factor + shift
                column = factor.reshape(-1, *[1] * (weight.ndim - 1))
                if op.name in int8:
                    scale = torch.from_numpy(int8[op.name][1])
                    values = torch.round(weight / scale.reshape(column.shape)) * torch.where(column < 0, -1, 1)
                    scale = (scale * factor.abs()).clamp(min=SMALLEST_SCALE)
                    int8[op.name] = values.to(torch.int8).numpy(), scale.numpy()
                    folded = dequantise(*int8[op.name])
                else:
                    stored = self.original.decisions[op.name].format.weight
                    folded = stored.round_floats((weight * column).numpy())
                op = op.with_weights(weight=folded, bias=bias.numpy())
            ops.append(op)
        return replace(self.original, network=replace(self.original.network, nodes=tuple(ops)), int8=int8)

    def _layer(self, op: Node, x: Tensor) -> Tensor:
        y = apply_layer(op, x, self._weight(op.name), self.biases[op.name])
        return self.norms[op.name](y) if op.name in self.norms else y

    def _weight(self, name: str) -> Tensor:
        """The weight as it is stored; its gradient is that of the parameter."""
        weight = self.weights[name]
        if name in self.masks:
            weight = weight * self.masks[name]
        if self.original.decisions[name].format.weight.is_bf16:
            return weight + (to_bf16(weight) - weight).detach()
        if name not in self.levels:
            return weight
        levels, scale = self.levels[name]
        column = scale.reshape(-1, *[1] * (weight.ndim - 1))
        nearest = torch.bucketize((weight / column).detach().contiguous(), (levels[1:] + levels[:-1]) / 2)
        return weight + (levels[nearest] * column - weight).detach()

    def _stored(self, name: str, y: Tensor) -> Tensor:
        """The tensor as it is stored; no gradient where its range cuts it off."""
        quant: Quant | None = self.quant.get(name)
        if quant is None:
            return y
        low, high = -quant.zero_point * quant.scale, (quant.top - quant.zero_point) * quant.scale
        inside = y.clamp(low, high)
        return inside + (torch.round(inside / quant.scale) * quant.scale - inside).detach()


def _levels(values: Array, to: WeightFormat) -> Array:
    """The integers that a layer's weights may have, ascending, float32: of narrow ones those that it has, else all."""
    every = None if to.is_narrow else to.levels
    return (np.unique(values) if every is None else every).astype(np.float32)
