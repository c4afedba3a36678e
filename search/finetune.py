"""A short fine-tuning of a candidate, in PyTorch, under its own quantisation: what a proxy is compared with.

Weights and activations are rounded in the forward pass to what the candidate stores, and gradients pass straight
through (Bengio et al. 2013, arXiv:1308.3432). Pruned channels and ranks are gone from the network, so they stay gone;
weights that a pattern made zero stay zero; shared weights stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.evaluators.accuracy import simulated
from trimtab.evaluators.data import Images, Labels
from trimtab.evaluators.engines.torch_operators import to_bf16
from trimtab.kernels.graph import Quant
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import apply_layer, apply_op
from trimtab.spaces.network import Array, Op

__all__ = ["Schedule", "finetune"]

#: Pixels by which training images are shifted at most.
SHIFT = 4

#: The largest norm of a step's gradient: a network without batch norms that was just cut has steep places.
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Schedule:
    """`steps` of `batch` images, SGD with momentum, a learning rate that falls to 0 along a half cosine, `seed`."""

    steps: int = 100
    batch: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0


def finetune(candidate: Candidate, images: Images, labels: Labels, schedule: Schedule) -> Candidate:
    """Return the candidate with weights fitted to training images (N, C, H, W) and labels (N,), on one thread."""
    torch.set_num_threads(1)
    model = _Trainable(candidate)
    optimiser = torch.optim.SGD(
        model.parameters, schedule.learning_rate, schedule.momentum, weight_decay=schedule.weight_decay
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, schedule.steps)
    rng = np.random.default_rng(schedule.seed)
    for _ in range(schedule.steps):
        batch = rng.integers(len(images), size=schedule.batch)
        x = torch.from_numpy(_augmented(images[batch], rng))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), torch.from_numpy(labels[batch]))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters, LARGEST_GRADIENT)
        optimiser.step()
        falling.step()
    return model.candidate()


def _augmented(images: Images, rng: np.random.Generator) -> Images:
    """Shift images by up to SHIFT pixels, and mirror half of them."""
    shift = SHIFT if min(images.shape[2:]) >= 8 * SHIFT else 0
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    height, width = images.shape[2:]
    out = np.empty_like(images)
    for i, (row, column) in enumerate(rng.integers(2 * shift + 1, size=(len(images), 2))):
        part = padded[i, :, row : row + height, column : column + width]
        out[i] = part[:, :, ::-1] if shift and rng.random() < 0.5 else part
    return out


class _Trainable:
    """A candidate whose weights and biases are parameters."""

    def __init__(self, candidate: Candidate) -> None:
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
            name: (torch.from_numpy(_levels(values, candidate.decisions[name].w_bits)), torch.from_numpy(scale))
            for name, (values, scale) in candidate.int8.items()
        }

    @property
    def parameters(self) -> list[Tensor]:
        return [p for p in (*self.weights.values(), *self.biases.values()) if p.requires_grad]

    def __call__(self, x: Tensor) -> Tensor:
        values = {self.network.input: self._stored(self.network.input, x)}
        for op in self.network:
            inputs = [values[name] for name in op.inputs]
            y = self._layer(op, inputs[0]) if op.is_layer else apply_op(op, inputs)
            values[op.name] = self._stored(op.name, y)
        return values[self.network.output]

    def candidate(self) -> Candidate:
        """Return the candidate as it was trained."""
        int8 = dict(self.original.int8)
        ops: list[Op] = []
        for op in self.original.network:
            if op.is_layer:
                with torch.no_grad():
                    weight = self._weight(op.name)
                op = replace(op, weight=weight.detach().numpy(), bias=self.biases[op.name].detach().numpy())
                if op.name in int8:
                    scale = int8[op.name][1]
                    shape = (-1, *[1] * (weight.ndim - 1))
                    values = np.rint(weight.detach().numpy() / scale.reshape(shape)).astype(np.int8)
                    int8[op.name] = values, scale
            ops.append(op)
        return replace(self.original, network=replace(self.original.network, ops=tuple(ops)), int8=int8)

    def _layer(self, op: Op, x: Tensor) -> Tensor:
        return apply_layer(op, x, self._weight(op.name), self.biases[op.name])

    def _weight(self, name: str) -> Tensor:
        """The weight as it is stored; its gradient is that of the parameter."""
        weight = self.weights[name]
        if name in self.masks:
            weight = weight * self.masks[name]
        if self.original.decisions[name].w_bits == 16:
            return weight + (to_bf16(weight) - weight).detach()
        if name not in self.levels:
            return weight
        levels, scale = self.levels[name]
        column = scale.reshape(-1, *[1] * (weight.ndim - 1))
        nearest = torch.bucketize((weight / column).detach(), (levels[1:] + levels[:-1]) / 2)
        return weight + (levels[nearest] * column - weight).detach()

    def _stored(self, name: str, y: Tensor) -> Tensor:
        """The tensor as it is stored; no gradient where its range cuts it off."""
        quant: Quant | None = self.quant.get(name)
        if quant is None:
            return y
        low, high = -quant.zero_point * quant.scale, (quant.top - quant.zero_point) * quant.scale
        inside = y.clamp(low, high)
        return inside + (torch.round(inside / quant.scale) * quant.scale - inside).detach()


def _levels(values: Array, bits: int) -> Array:
    """The integers that a layer's weights may have, ascending, float32: with 8 bits all, else those that it has."""
    found = np.arange(-127, 128) if bits == 8 else np.unique(values)
    return found.astype(np.float32)
