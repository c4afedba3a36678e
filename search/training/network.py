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
from trimtab.evaluators.lowering import lower, moves
from trimtab.graph import Array, Node
from trimtab.kernels import stored_bytes
from trimtab.search.training.quantisers import TensorQuantiser, WeightQuantiser
from trimtab.search.training.rate import Rate, hold
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import apply_layer, apply_op, per_channel, per_output
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
        self.layers = nn.ModuleDict()
        self.stored = nn.ModuleDict()
        sources = {op.name: op.inputs[0] for op in self.network if moves(op)}
        for tensor, numbers in quant.items():
            # What only moves values stores them as they were stored.
            if sources.get(tensor) not in quant:
                self.stored[_key(tensor)] = TensorQuantiser(numbers)
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
        weights = _learned(layer.weight for layer in self._layers)
        quantisers = [each for each in self.modules() if isinstance(each, TensorQuantiser | WeightQuantiser)]
        steps = _learned(each.growth for each in quantisers)
        listed = {id(each) for each in (*weights, *steps)}
        return weights, steps, [each for each in _learned(self.parameters()) if id(each) not in listed]

    def statistics(self) -> list[Tensor]:
        """Return the means and variances of all norms."""
        return [each for norm in self._norms for each in (norm.mean, norm.variance)]

    def freeze_norms(self, batches: Iterable[Tensor]) -> None:
        """Measure the norms on batches of images, and hold their statistics from now on."""
        for norm in self._norms:
            norm.counted = 0
        with torch.no_grad():
            self.train()
            for x in batches:
                self(x)
        for norm in self._norms:
            norm.counted = None
            norm.frozen.fill_(True)

    @torch.no_grad()
    def hold(self, most: float) -> None:
        """Round weights so that no more than `most` bytes are stored of the network, if rounding can do that."""
        rates = [
            Rate(layer.quantiser, layer.masked_weight())
            for layer in self._layers
            if layer.quantiser is not None and layer.weight.requires_grad  # shared weights stay where they are
        ]
        hold(rates, most, lambda: stored_bytes(lower(self.candidate())))

    @torch.no_grad()
    def candidate(self, images: Tensor | None = None) -> Candidate:
        """Return the candidate as it was trained; `images` (N, ...) tell the ranges of its tensors, which else stay."""
        int8 = dict(self.original.int8)
        ops = [self._layer(op.name).folded(op, int8) if op.is_layer else op for op in self.original.network]
        network = replace(self.original.network, nodes=tuple(ops))
        ranges = dict(self.original.ranges)
        if images is not None:
            self.eval()
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

    @property
    def _norms(self) -> list[_Norm]:
        return [layer.behind for layer in self._layers if isinstance(layer.behind, _Norm)]

    def _layer(self, name: str) -> _Layer:
        return cast(_Layer, self.layers[_key(name)])

    def _quantiser(self, tensor: str) -> TensorQuantiser:
        return cast(TensorQuantiser, self.stored[_key(tensor)])


class _Norm(nn.Module):
    """A batch norm behind a layer's products; its factor is never negative, so that folding it leaves integers as they
    are. Factors and biases are learned in units of the layer, so that one rate suits all layers."""

    mean: Tensor
    variance: Tensor
    unit: Tensor
    frozen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("unit", torch.tensor(1.0))
        self.register_buffer("frozen", torch.tensor(False))
        #: How many batches the statistics are of, while all of them count alike.
        self.counted: int | None = None

    def start(self, y: Tensor, factor: Tensor, shift: Tensor) -> None:
        """Become what makes y * factor + shift of products y (N, C, ...), with factor and shift (C,)."""
        columns = y.transpose(0, 1).flatten(1)
        self.mean.copy_(columns.mean(1))
        self.variance.copy_(columns.var(1, correction=0))
        weight = factor * (self.variance + EPSILON).sqrt()
        self.unit.copy_(_size(weight))
        self.weight.copy_(weight / self.unit)
        self.bias.copy_((shift + factor * self.mean) / self.unit)

    def forward(self, y: Tensor) -> Tensor:
        """Return the outputs (N, C, ...)."""
        training, share = self.training and not self.frozen, MOMENTUM
        if self.counted is not None:
            self.counted += 1
            share = 1 / self.counted
        weight, bias = self.weight.abs() * self.unit, self.bias * self.unit
        return F.batch_norm(y, self.mean, self.variance, weight, bias, training, share, EPSILON)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the shift of every channel."""
        factor = self.weight.detach().abs() * self.unit / (self.variance + EPSILON).sqrt()
        return factor, self.bias.detach() * self.unit - self.mean * factor


class _Shift(nn.Module):
    """The bias of a layer without a norm, learned in units of its outputs, and the layer's size, which stays."""

    factor: Tensor
    unit: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("factor", torch.ones(channels))
        self.register_buffer("unit", torch.tensor(1.0))

    def start(self, y: Tensor, factor: Tensor, shift: Tensor) -> None:
        """Become what makes y * factor + shift of products y (N, C, ...), with factor and shift (C,)."""
        self.factor.copy_(factor)
        self.unit.copy_(_size(y * per_channel(factor, y) + per_channel(shift, y)))
        self.bias.copy_(shift / self.unit)

    def forward(self, y: Tensor) -> Tensor:
        """Return the outputs (N, C, ...)."""
        return torch.addcmul(per_channel(self.bias * self.unit, y), y, per_channel(self.factor, y))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the shift of every channel."""
        return self.factor, self.bias.detach() * self.unit


class _Layer(nn.Module):
    """A layer whose weight is rounded to what is stored of it, with what is behind its products.

    Behind a norm the size of a channel's weights is free, and they start at length 1; without one, the mean square of
    these lengths starts at 1, and the layer's size is put back behind the products. So a rate means the same in all
    layers, however many weights a channel has and however many of them are zero.
    """

    mask: Tensor | None

    def __init__(self, op: Node, candidate: Candidate, normalised: bool) -> None:
        super().__init__()
        decision = candidate.decisions[op.name]
        self.op, self.format = op, decision.format.weight
        weight = torch.tensor(op.weight)
        bias = torch.zeros(len(weight)) if op.bias is None else torch.tensor(op.bias)
        lengths = weight.flatten(1).norm(dim=1)
        size = lengths if normalised else _size(lengths).expand(len(weight))
        self.start = torch.where(size > 0, size, 1.0), bias
        self.behind = _Norm(len(weight)) if normalised else _Shift(len(weight))
        self.weight = nn.Parameter(weight / per_output(self.start[0], weight), requires_grad=decision.sharing is None)
        self.register_buffer("mask", None if decision.pattern is None else (weight != 0).float(), persistent=False)
        self.quantiser: WeightQuantiser | None = None
        if op.name in candidate.int8:
            values, scale = candidate.int8[op.name]
            self.quantiser = WeightQuantiser(self.format, values, scale / self.start[0].numpy())
            if decision.sharing is not None:
                self.quantiser.requires_grad_(False)  # what is nearest must not change

    def forward(self, x: Tensor, first: bool = False) -> Tensor:
        """Return the outputs; `first`, as they were before any training."""
        y = apply_layer(self.op, x, self.stored_weight(), None)
        if first:
            self.behind.start(y, *self.start)
        outputs: Tensor = self.behind(y)
        return outputs

    def masked_weight(self) -> Tensor:
        """Return the weight with its pattern's zeros."""
        return self.weight if self.mask is None else self.weight * self.mask

    def stored_weight(self) -> Tensor:
        """Return the weight as it is stored, with gradients."""
        weight = self.masked_weight()
        if self.quantiser is not None:
            return self.quantiser(weight)  # type: ignore[no-any-return]
        return _straight(weight, to_bf16(weight)) if self.format.is_bf16 else weight

    def folded(self, op: Node, int8: dict[str, tuple[Array, Array]]) -> Node:
        """Return the layer as it was trained, what is behind it folded; integers are put into `int8`."""
        factor, shift = self.behind.folded()
        weight = self.masked_weight().detach()
        if self.quantiser is None:
            stored = self.format.round_floats((weight * per_output(factor, weight)).numpy())
        else:
            values, step = self.quantiser.integers(weight)
            int8[op.name] = values, np.maximum(step * factor.numpy(), SMALLEST_SCALE)
            stored = dequantise(*int8[op.name])
        return op.with_weights(weight=stored, bias=shift.numpy().copy())


def _learned(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [each for each in parameters if each.requires_grad]


def _straight(x: Tensor, stored: Tensor) -> Tensor:
    """What is stored of values, with their own gradients (Bengio et al. 2013, arXiv:1308.3432)."""
    return x + (stored - x).detach()


def _key(name: str) -> str:
    """A name that a module may have, whatever methods it has."""
    return "_" + name.replace(".", "|")


def _size(values: Tensor) -> Tensor:
    """The root of the mean square; 1 of nothing but zeros."""
    size = values.square().mean().sqrt()
    return torch.where(size > 0, size, 1.0)
