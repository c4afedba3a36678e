"""Repairs: what makes a compressed network worth judging before any fine-tuning, from a few hundred images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from trimtab.spaces.candidate import Candidate, layer_decisions, narrowed, prune_network
from trimtab.spaces.execute import apply_op, run
from trimtab.spaces.factorisation import factor_ops, layer_of, plain_factors
from trimtab.spaces.network import Array, Op
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.quantise import Quantisation, dequantise, round_to_bf16
from trimtab.spaces.ranges import activation_quant, activation_range, sampled, whole_range
from trimtab.spaces.reconstruct import Sample, sample_targets, solve, target_tensors
from trimtab.spaces.refactor import fitted_factors, rectified_layers
from trimtab.spaces.space import Space

__all__ = ["Calibration", "compress", "settle"]

#: Batch-norm re-estimation changes a channel's scale by at most this factor.
LARGEST_RESCALE = 8.0


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images (N, C, H, W) for repairs, and what the untouched network does on them.

    `moments` are per layer the output's (mean, std), (O,); `samples` are per dense layer the values that
    reconstruction fits, none where reconstruction is off. `quantisation` is how candidates are rounded.
    """

    images: Tensor
    moments: Mapping[str, tuple[Tensor, Tensor]]
    samples: Mapping[str, Sample] = field(default_factory=dict)
    quantisation: Quantisation = field(default_factory=Quantisation)

    @classmethod
    def of(
        cls, space: Space, images: Array, reconstruct: bool = True, quantisation: Quantisation | None = None
    ) -> Calibration:
        """Record the untouched network on float32 images (N, C, H, W)."""
        moments: dict[str, tuple[Tensor, Tensor]] = {}
        samples: dict[str, Sample] = {}
        fitted = {tensor: (name, other) for name, (tensor, other) in target_tensors(space.network).items()}

        def observe(op: Op, y: Tensor) -> None:
            if op.is_layer:
                moments[op.name] = _moments(y)
            if reconstruct and op.name in fitted:
                name, other = fitted[op.name]
                samples[name] = sample_targets(space.network.op(name), y, other, seed=len(samples))

        x = torch.from_numpy(np.array(images, dtype=np.float32))
        run(space.network, x, observe)
        return cls(x, moments, samples, quantisation or Quantisation())


def compress(space: Space, policy: Policy, calibration: Calibration) -> Candidate:
    """Apply a policy and repair it in one pass over the calibration images, from input to output.

    Every dense layer's weights are fitted to what the untouched layer did (`trimtab.spaces.reconstruct`), then
    quantised. Every layer's output gets the mean that the untouched network had there (bias correction; Nagel et al.
    2019, arXiv:1906.04721, section 4.2); one that is fitted to a sum makes up for the sum's mean. A layer that had a
    batch norm, and is not part of a sum, gets the standard deviation too. That is batch-norm re-estimation relative to
    the untouched network's statistics *on the same images*: so a policy that changes nothing is repaired to exactly
    what it was, whatever the images.
    """
    space.check(policy)
    return _Repair(space, policy, calibration).run()


def settle(space: Space, candidate: Candidate, calibration: Calibration) -> Candidate:
    """Correct the moments of every layer of a stitched candidate, as `compress` does, in one pass over the images.

    Entries of the layer database know nothing of each other: this makes up for how their errors shift what comes after
    them, at a fraction of what fitting the weights again would cost.
    """
    return _Settling(space, candidate, calibration).run()


class _Repair:
    """One pass; `values` holds the candidate's tensors that are still to be read."""

    def __init__(self, space: Space, policy: Policy, calibration: Calibration) -> None:
        self.space, self.policy, self.calibration = space, policy, calibration
        self.network, self.channels = prune_network(space, policy)
        self.untouched = policy.id == space.base().id
        self.samples = {} if self.untouched else dict(calibration.samples)
        after_relu = space.options.factors == "nonlinear"
        self.rectified = rectified_layers(space.network) if after_relu else frozenset[str]()
        self.values = {self.network.input: calibration.images}
        self.int8: dict[str, tuple[Array, Array]] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        # Sums and products are stored in 8 bits, whatever the layers that read them ask for.
        bits = {decision.a_bits for decision in policy.layers.values() if decision.is_integer}
        self.stored: dict[int, dict[str, tuple[float, float]]] = {b: {} for b in sorted({*bits, 8} if bits else bits)}

    def run(self) -> Candidate:
        last = self._last_readers()
        self._measure(self.network.input, self.calibration.images)
        ops = []
        with torch.no_grad():
            for i, op in enumerate(self.network.ops):
                parts = self._executed_as(op)
                for part in parts:
                    repaired, y = self._layer(part) if part.is_layer else (part, self._output(part))
                    ops.append(repaired)
                    self.values[part.name] = y
                    self._measure(part.name, y)
                read = [name for name, reader in last.items() if reader == i]
                for name in [*read, *(part.name for part in parts[:-1])]:
                    self.values.pop(name, None)
        network = replace(self.network, ops=tuple(ops))
        decisions = layer_decisions(network, self.policy)
        return Candidate(self.policy, network, decisions, self.int8, self.ranges, self.stored)

    def _executed_as(self, op: Op) -> list[Op]:
        """The operator itself, or the factors of a factorised layer."""
        decision = self.policy.layers.get(op.name)
        if decision is None or decision.rank is None:
            return [op]
        x, sample = self._input(op), self.samples.get(op.name)
        if sample is None or self.space.options.factors == "plain":
            factors = plain_factors(op, decision.factorisation, decision.rank)
            return factor_ops(op, decision.factorisation, factors, tuple(x.shape[1:]))
        rectified, kept = self._is_fitted_behind_relu(op), self.channels[op.name]
        parts, self.samples[op.name] = fitted_factors(op, decision, x, sample, kept, self.values, rectified)
        return parts

    def _is_fitted_behind_relu(self, op: Op) -> bool:
        """Whether a layer is fitted behind its ReLU."""
        return op.name in self.rectified and self._decision(op).rank is not None

    def _last_readers(self) -> dict[str, int]:
        """The index of the last operator that needs a tensor; a layer fitted to a sum needs the other operand."""
        last: dict[str, int] = {}
        for i, op in enumerate(self.network.ops):
            sample = self.calibration.samples.get(op.name)
            needed = [*op.inputs, sample.other] if sample is not None and sample.other else op.inputs
            last.update(dict.fromkeys(needed, i))
        return last

    def _measure(self, tensor: str, values: Tensor) -> None:
        """Note a tensor's range, and what of it each storage holds that the policy asks for anywhere."""
        self.ranges[tensor] = low, high = whole_range(values)
        sample = sampled(values)
        for bits, ranges in self.stored.items():
            ranges[tensor] = activation_range(sample, low, high, bits, self.calibration.quantisation.ranges)

    def _output(self, op: Op) -> Tensor:
        return apply_op(op, [self.values[name] for name in op.inputs])

    def _input(self, op: Op) -> Tensor:
        """What a layer reads: rounded where its activations have fewer than 8 bits, which are worth making up for."""
        x, bits = self.values[op.inputs[0]], self._decision(op).a_bits
        if bits >= 8:
            return x
        scale, zero = activation_quant(*self.stored[bits][op.inputs[0]], bits)
        return torch.clamp(torch.round(x / scale), -zero, 2**bits - 1 - zero) * scale

    def _decision(self, op: Op) -> LayerDecision:
        return self.policy.layers[layer_of(op.name)]

    def _layer(self, op: Op) -> tuple[Op, Tensor]:
        """Fit, quantise and correct one layer; return it with its output."""
        sample = self.samples.get(op.name)
        x = self._input(op)
        gram = None
        if sample is not None:
            weight, bias, gram = solve(op, x, sample, self.channels[op.name], self.values)
            op = replace(op, weight=weight, bias=bias)
        covariance = None if gram is None else gram.numpy()
        rounding = self.calibration.quantisation.rounding
        op = narrowed(op, self._decision(op), self.int8, covariance, rounding)
        y = apply_op(op, [x])
        return (op, y) if self.untouched else self._settled(op, y, sample)

    def _settled(self, op: Op, y: Tensor, sample: Sample | None) -> tuple[Op, Tensor]:
        """A layer and its output, both corrected; inner factors have nothing to be compared with."""
        if op.name not in self.calibration.moments:
            return op, y
        factor, shift = self._correction(op, y, sample)
        return self._corrected(op, factor, shift), y * _per_channel(factor, y) + _per_channel(shift, y)

    def _correction(self, op: Op, y: Tensor, sample: Sample | None) -> tuple[Tensor, Tensor]:
        """Per-channel factor and shift that bring the output's moments to the untouched network's."""
        mean, std = _moments(y)
        factor = torch.ones_like(mean)
        kept = torch.from_numpy(self.channels[op.name])
        target_mean, target_std = (moment[kept] for moment in self.calibration.moments[op.name])
        if sample is not None and (sample.other is not None or self._is_fitted_behind_relu(op)):
            # A layer fitted to a sum, or behind a ReLU, has to differ from what it was: the mean there is what it owes.
            beside = sample.at(self.values[sample.other]) if sample.other is not None else 0
            return factor, (sample.values[:, kept] - beside - sample.at(y)).mean(0)
        if op.name in self.space.normalised:
            alive = (std > 1e-6) & (target_std > 1e-6)
            ratio = (target_std / std.clamp(min=1e-12)).clamp(1 / LARGEST_RESCALE, LARGEST_RESCALE)
            factor = torch.where(alive, ratio, factor)
        return factor, target_mean - mean * factor

    def _corrected(self, op: Op, factor: Tensor, shift: Tensor) -> Op:
        """The layer with the correction folded in; int8 values stay, their scales change."""
        scale = factor.numpy()
        bias = shift.numpy() if op.bias is None else op.bias * scale + shift.numpy()
        if op.name in self.int8:
            values, old = self.int8[op.name]
            self.int8[op.name] = values, (old * scale).astype(np.float32)
            weight = dequantise(*self.int8[op.name])
        else:
            weight = op.weight * scale.reshape(-1, *[1] * (op.weight.ndim - 1))  # type: ignore[union-attr,operator]
            weight = round_to_bf16(weight) if self._decision(op).w_bits == 16 else weight
        return replace(op, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


class _Settling(_Repair):
    """A pass over a candidate whose weights and ranges are found already."""

    def __init__(self, space: Space, candidate: Candidate, calibration: Calibration) -> None:
        super().__init__(space, candidate.policy, calibration)
        self.candidate, self.network, self.int8 = candidate, candidate.network, dict(candidate.int8)

    def run(self) -> Candidate:
        settled = super().run()
        return replace(self.candidate, network=settled.network, int8=settled.int8)

    def _executed_as(self, op: Op) -> list[Op]:
        """The operator itself: factors stand in the network already."""
        return [op]

    def _measure(self, tensor: str, values: Tensor) -> None:
        """Nothing: the ranges stay."""

    def _layer(self, op: Op) -> tuple[Op, Tensor]:
        y = apply_op(op, [self.values[op.inputs[0]]])
        return (op, y) if self.untouched else self._settled(op, y, None)


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (O,) each."""
    # Sums over planes first, which PyTorch vectorises as it does not var_mean; from there on in float64.
    planes = y.flatten(2) if y.ndim == 4 else y[:, :, None]
    mean = planes.mean(2).double().mean(0)
    square = torch.linalg.vector_norm(planes, dim=2).double().square().mean(0) / planes.shape[2]
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))
