"""The network of a candidate as it is trained: what is stored of it is rounded in every forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.evaluators.accuracy import simulated
from trimtab.evaluators.engines.torch_operators import to_bf16
from trimtab.evaluators.lowering import moves
from trimtab.graph import Array, Node
from trimtab.search.training.quantisers import TensorQuantiser, WeightQuantiser
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import apply_layer, apply_op
from trimtab.spaces.numbers.quantise import dequantise
from trimtab.spaces.numbers.ranges import whole_range

__all__ = ["TrainedNetwork"]

#: What keeps a dead channel's norm finite.
EPSILON = 1e-5

#: How much of its running statistics a norm forgets with every batch.
MOMENTUM = 0.1

#: Scales are positive.
SMALLEST_SCALE = 1e-20


class TrainedNetwork(nn.Module):
    """A candidate whose weights, biases and steps are parameters; channels, ranks, zeros and formats stay.

    Layers that had a batch norm, `normalised`, get one back: without, a network of folded norms moves only at rates at
    which it takes ages. At first each gives back the outputs that it is measured on, those of `images` (N, ...).
    """

    def __init__(self, candidate: Candidate, normalised: Collection[str], images: Tensor) -> None:
        super().__init__()
        self.original = candidate
        self.network, quant = simulated(candidate)
        shapes = self.network.shapes
        self.layers = nn.ModuleDict()
        self.stored = nn.ModuleDict()
        sources = {op.name: op.inputs[0] for op in self.network if moves(op)}
        for tensor, numbers in quant.items():
            # What only moves values stores them as they were stored.
            if sources.get(tensor) not in quant:
                self.stored[_key(tensor)] = TensorQuantiser(numbers, int(np.prod(shapes[tensor])))
        if _key(self.network.input) in self.stored:
            # Images are what they are; and without a gradient of theirs, the first layer is quicker.
            self._quantiser(self.network.input).requires_grad_(False)
        for op in self.network.layers:
            self.layers[_key(op.name)] = _Layer(op, candidate, op.name in set(normalised))
        self._rectified = {
            op.name for op in self.network if op.attrs.get("activation") == "relu" and self._cuts_below_zero(op.name)
        }
        with torch.no_grad():
            self._run(images, first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for images (N, ...)."""
        return self._run(x)

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """Return the weights, the steps of quantisers, and all other parameters that are learned."""
        weights = [layer.weight for layer in self._layers]
        steps = [each.step for each in self.modules() if isinstance(each, TensorQuantiser | WeightQuantiser)]
        told = {id(parameter) for parameter in (*weights, *steps)}
        others = [each for each in self.parameters() if id(each) not in told]
        learned = ([each for each in some if each.requires_grad] for some in (weights, steps, others))
        first, second, third = learned
        return first, second, third

    def statistics(self) -> list[Tensor]:
        """Return the means and variances of all norms."""
        norms = [layer.norm for layer in self._layers if layer.norm is not None]
        return [each for norm in norms for each in (norm.mean, norm.variance)]

    def freeze_norms(self, batches: Iterable[Tensor]) -> None:
        """Measure the norms on batches of images, and hold their statistics from now on."""
        norms = [layer.norm for layer in self._layers if layer.norm is not None]
        for norm in norms:
            norm.counted = 0
        with torch.no_grad():
            self.train()
            for x in batches:
                self(x)
        for norm in norms:
            norm.counted = None
            norm.frozen.fill_(True)

    @torch.no_grad()
    def candidate(self, images: Tensor) -> Candidate:
        """Return the candidate as it was trained; `images` (N, ...) tell the ranges of its tensors."""
        self.eval()
        int8 = dict(self.original.int8)
        ops = [self._layer(op.name).folded(op, int8) if op.is_layer else op for op in self.original.network]
        network = replace(self.original.network, nodes=tuple(ops))
        ranges = dict(self.original.ranges)
        self._run(images, ranges=ranges)
        return replace(self.original, network=network, int8=int8, ranges=ranges, stored=self._ranges())

    def _ranges(self) -> dict[int, dict[str, tuple[float, float]]]:
        """By bits, what of each tensor is stored: from the learned steps where it is."""
        stored = {bits: dict(ranges) for bits, ranges in self.original.stored.items()}
        _, quant = simulated(self.original)
        for tensor in quant:
            if _key(tensor) in self.stored:
                numbers = self._quantiser(tensor).quant()
                low, high = -numbers.zero_point * numbers.scale, (numbers.top - numbers.zero_point) * numbers.scale
                stored.setdefault(numbers.bits, {})[tensor.removesuffix(f"/int{numbers.bits}")] = low, high
        return stored

    def _run(self, x: Tensor, first: bool = False, ranges: dict[str, tuple[float, float]] | None = None) -> Tensor:
        network = self.network
        last = {name: i for i, op in enumerate(network.nodes) for name in op.inputs}
        values: dict[str, Tensor] = {}

        def keep(name: str, y: Tensor) -> None:
            if ranges is not None and name in ranges:
                ranges[name] = whole_range(y)
            values[name] = self._quantiser(name)(y) if _key(name) in self.stored else y

        keep(network.input, x[..., None] if x.ndim == 3 else x)
        for i, op in enumerate(network.nodes):
            inputs = [values[name] for name in op.inputs]
            if op.is_layer:
                y = self._layer(op.name)(inputs[0], first)
            elif op.name in self._rectified and ranges is None:
                (y,) = inputs  # rounding cuts off what is below zero
            elif op.name.endswith("/bf16"):
                y = _straight(inputs[0], to_bf16(inputs[0]))
            else:
                y = apply_op(op, inputs)
            keep(op.name, y)
            for name in op.inputs:
                if last[name] == i and name != network.output:
                    values.pop(name, None)
        return values[network.output]

    def _cuts_below_zero(self, tensor: str) -> bool:
        return _key(tensor) in self.stored and self._quantiser(tensor).cuts_below_zero

    @property
    def _layers(self) -> list[_Layer]:
        return [self._layer(op.name) for op in self.network.layers]

    def _layer(self, name: str) -> _Layer:
        return cast(_Layer, self.layers[_key(name)])

    def _quantiser(self, tensor: str) -> TensorQuantiser:
        return cast(TensorQuantiser, self.stored[_key(tensor)])


class _Norm(nn.Module):
    """A batch norm; its factor is never negative, so that folding it keeps integers as they are."""

    mean: Tensor
    variance: Tensor
    frozen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("frozen", torch.tensor(False))
        #: How many batches the statistics are of, while all of them count alike.
        self.counted: int | None = None

    def start(self, y: Tensor, factor: Tensor, shift: Tensor) -> None:
        """Become what makes y * factor + shift of outputs (N, C, ...), with factor and shift (C,)."""
        columns = y.transpose(0, 1).flatten(1)
        self.mean.copy_(columns.mean(1))
        self.variance.copy_(columns.var(1, correction=0))
        self.weight.copy_(factor * (self.variance + EPSILON).sqrt())
        self.bias.copy_(shift + factor * self.mean)

    def forward(self, y: Tensor) -> Tensor:
        training, share = self.training and not self.frozen, MOMENTUM
        if self.counted is not None:
            self.counted += 1
            share = 1 / self.counted
        return F.batch_norm(y, self.mean, self.variance, self.weight.abs(), self.bias, training, share, EPSILON)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the shift of every channel."""
        factor = self.weight.detach().abs() / (self.variance + EPSILON).sqrt()
        return factor, self.bias.detach() - self.mean * factor


class _Layer(nn.Module):
    """A layer whose weight is rounded to what is stored of it, with its batch norm where it has one."""

    mask: Tensor | None

    def __init__(self, op: Node, candidate: Candidate, normalised: bool) -> None:
        super().__init__()
        self.op, self.format, shared = op, candidate.decisions[op.name].format.weight, candidate.decisions[op.name]
        weight = torch.tensor(op.weight)
        bias = torch.zeros(len(weight)) if op.bias is None else torch.tensor(op.bias)
        # Behind a norm the length of a channel's weights is free: of length 1, all learn at the rate that is meant.
        length = weight.flatten(1).norm(dim=1) if normalised else torch.ones(len(weight))
        self.start = torch.where(length > 0, length, 1.0), bias
        self.norm = _Norm(len(weight)) if normalised else None
        self.bias = None if normalised else nn.Parameter(bias.clone())
        self.weight = nn.Parameter(weight / _column(self.start[0], weight), requires_grad=shared.sharing is None)
        self.register_buffer("mask", None if shared.pattern is None else (weight != 0).float(), persistent=False)
        self.quantiser: WeightQuantiser | None = None
        if op.name in candidate.int8:
            values, scale = candidate.int8[op.name]
            self.quantiser = WeightQuantiser(self.format, values, scale / self.start[0].numpy())
            if shared.sharing is not None:
                self.quantiser.requires_grad_(False)  # what is nearest must not change

    def forward(self, x: Tensor, first: bool = False) -> Tensor:
        """Return the outputs; the `first` ones are what the norm starts from."""
        y = apply_layer(self.op, x, self.stored_weight(), self.bias)
        if self.norm is None:
            return y
        if first:
            self.norm.start(y, *self.start)
        normed: Tensor = self.norm(y)
        return normed

    def stored_weight(self) -> Tensor:
        """Return the weight as it is stored, with gradients."""
        weight: Tensor = self.weight if self.mask is None else self.weight * self.mask
        if self.quantiser is not None:
            return self.quantiser(weight)  # type: ignore[no-any-return]
        return _straight(weight, to_bf16(weight)) if self.format.is_bf16 else weight

    def folded(self, op: Node, int8: dict[str, tuple[Array, Array]]) -> Node:
        """Return the layer as it was trained, its norm folded; integers are put into `int8`."""
        factor, shift = self._affine()
        weight = self.weight.detach() if self.mask is None else self.weight.detach() * self.mask
        if self.quantiser is None:
            stored = self.format.round_floats((weight * _column(factor, weight)).numpy())
        else:
            values, step = self.quantiser.integers(weight)
            int8[op.name] = values, np.maximum(step * factor.numpy(), SMALLEST_SCALE)
            stored = dequantise(*int8[op.name])
        return op.with_weights(weight=stored, bias=shift.numpy().copy())

    def _affine(self) -> tuple[Tensor, Tensor]:
        """What is made of the products, per channel: factor and shift."""
        if self.norm is not None:
            return self.norm.folded()
        return torch.ones(len(self.weight)), cast(Tensor, self.bias).detach()


def _straight(x: Tensor, stored: Tensor) -> Tensor:
    """What is stored of values, with their own gradients (Bengio et al. 2013, arXiv:1308.3432)."""
    return x + (stored - x).detach()


def _key(name: str) -> str:
    """A name that a module may have."""
    return name.replace(".", "|")


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
