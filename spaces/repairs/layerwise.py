"""One layer compressed on its own, from statistics of the untouched network: exact least squares, no image needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve

from trimtab.graph import OPERATORS, Array, Node
from trimtab.spaces.candidate import narrowed
from trimtab.spaces.execute import apply_op
from trimtab.spaces.factorisation import factor_ops, fit_outputs, kernel_of, plain_factors
from trimtab.spaces.numbers.ranges import activation_quant
from trimtab.spaces.policy import LayerDecision
from trimtab.spaces.repairs.reconstruct import RIDGE
from trimtab.spaces.repairs.statistics import LayerStatistics
from trimtab.threads import one_blas_thread

__all__ = ["CompressedLayer", "LayerCompressor", "is_row_wise"]

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class CompressedLayer:
    """The operators that stand for a layer: itself, or its factors.

    `int8` holds (weight int8, scale) of those with integer weights, `ranges` the (low, high) of the tensors
    between factors. `error` (O,) is the increase of the loss, in nats per image, that is expected from each output
    channel's error; errors of channels and of layers add up as far as the loss is quadratic.
    """

    nodes: tuple[Node, ...]
    int8: Mapping[str, tuple[Array, Array]]
    ranges: Mapping[str, Range]
    error: Array


def is_row_wise(decision: LayerDecision) -> bool:
    """Whether each output channel is compressed without a look at the others."""
    coupled = decision.rank is not None or decision.pattern is not None or decision.sharing is not None
    return not coupled and decision.format.weight.is_row_wise


class LayerCompressor:
    """Compresses one layer.

    Of the untouched layer `whole` the input channels `inputs` and the output channels `outputs`, ascending, are left;
    of the tensor that it reads the decision's bits hold the range `stored`. The weights that are left make up, by least
    squares, for the input channels that are gone and for the rounding of narrow activations; factors, weights and the
    bias then make up for what came before them.
    """

    def __init__(
        self,
        whole: Node,
        inputs: Array,
        outputs: Array,
        decision: LayerDecision,
        statistics: LayerStatistics,
        stored: Range,
        rounding: str,
    ) -> None:
        pruned = OPERATORS[whole.kind].sliced(whole, inputs, outputs)
        self.pruned, self.decision, self.rounding = pruned, decision, rounding
        self.int8: dict[str, tuple[Array, Array]] = {}
        self.ranges: dict[str, Range] = {}
        weight: Array = whole.weight[outputs].astype(np.float64)
        self.target = weight.reshape(len(weight), -1)
        self.sensitivity = statistics.sensitivity[outputs]
        taps = self.target.shape[1] // weight.shape[1]
        # Grouped convolutions keep the same positions in each of their groups, depthwise ones their only one.
        kept = inputs[: len(inputs) // pruned.groups] if not pruned.is_depthwise else np.zeros(1, int)
        self.kept = (kept[:, None] * taps + np.arange(taps)).ravel()
        self.group = outputs // (len(whole.weight) // whole.groups)
        mean = statistics.mean.reshape(whole.groups, -1)
        self.covariance, self.mean = statistics.covariance, mean[self.group]
        noise = _rounding_noise(statistics.fields, stored, decision).reshape(whole.groups, -1)
        self.noise = noise[self.group][:, self.kept]
        self.fields = statistics.fields[:, self.kept] if whole.groups == 1 else None

    @one_blas_thread()
    def compress(self) -> CompressedLayer:
        """Return what stands for the layer."""
        if self._untouched:
            return CompressedLayer((self.pruned,), {}, {}, np.zeros(len(self.target)))
        if self.pruned.groups != 1:
            op = narrowed(self.pruned, self.decision, self.int8)
            ops, seen = [op], np.eye(len(self.kept))
        else:
            ops, seen = self._dense()
        weight = ops[-1].weight
        effective = weight.reshape(len(self.target), -1).astype(np.float64) @ seen
        bias = 0.0 if self.pruned.bias is None else self.pruned.bias
        missing = (self.target * self.mean).sum(1) - (effective * self.mean[:, self.kept]).sum(1)
        ops[-1] = ops[-1].with_weights(bias=np.asarray(bias + missing, np.float32))
        return CompressedLayer(tuple(ops), self.int8, self.ranges, self._error(effective))

    @property
    def _untouched(self) -> bool:
        return self.decision == LayerDecision() and len(self.kept) == self.target.shape[1]

    def _dense(self) -> tuple[list[Node], Array]:
        """Return the operators, and what the last one sees as a matrix (its inputs, the layer's inputs)."""
        covariance = self.covariance[0]
        gram = covariance[np.ix_(self.kept, self.kept)] + np.diag(self.noise[0])
        cross = self.target @ covariance[:, self.kept]
        own = self.pruned.weight.reshape(len(self.target), -1).astype(np.float64)
        nothing_missing = len(self.kept) == self.target.shape[1] and not self.noise.any()
        weight = own if nothing_missing else _fit(own, cross, gram)
        op = _with_weight(self.pruned, weight)
        if self.decision.rank is None:
            ridged = gram + _ridge(gram)
            return [narrowed(op, self.decision, self.int8, ridged, self.rounding)], np.eye(len(self.kept))
        *first, last = self._factors(op, gram + _ridge(gram))
        first = [narrowed(factor, self.decision, self.int8) for factor in first]
        seen = _what_the_last_sees(first, op, last)
        self._note_ranges(first, op)
        inner = seen @ gram @ seen.T
        left = last.weight.reshape(len(self.target), -1).astype(np.float64)
        last = _with_weight(last, _fit(left, cross @ seen.T, inner))
        return [*first, narrowed(last, self.decision, self.int8, inner + _ridge(inner), self.rounding)], seen

    def _factors(self, op: Node, gram: Array) -> Sequence[Node]:
        name = self.decision.factorisation
        plain = plain_factors(op, name, self.decision.rank or 0)
        return factor_ops(op, name, fit_outputs(name, plain, kernel_of(op), gram))

    def _note_ranges(self, first: Sequence[Node], op: Node) -> None:
        """Note the ranges of tensors between factors: those on some of the layer's inputs."""
        x = _as_images(torch.from_numpy(self.fields), op)
        for factor in first:
            x = apply_op(_unpadded(factor), [x])
            self.ranges[factor.name] = float(x.min()), float(x.max())

    def _error(self, effective: Array) -> Array:
        change = -self.target
        change[:, self.kept] += effective
        if len(self.covariance) == 1:
            squares = np.einsum("oi,ij,oj->o", change, self.covariance[0], change, optimize=True)
        else:
            squares = np.einsum("oi,oij,oj->o", change, self.covariance[self.group], change)
        return np.asarray(self.sensitivity * (squares + (effective**2 * self.noise).sum(1)))


def _rounding_noise(fields: Array, stored: Range, decision: LayerDecision) -> Array:
    """The mean squared error (I,) of inputs that are stored in the decision's bits; zero for float inputs."""
    if not decision.format.is_integer:
        return np.zeros(fields.shape[1])
    bits = decision.format.activation_bits
    scale, zero = activation_quant(*stored, bits)
    rounded = np.clip(np.rint(fields / scale), -zero, 2**bits - 1 - zero) * scale
    return np.asarray(np.square(rounded - fields, dtype=np.float64).mean(0))


def _fit(own: Array, cross: Array, gram: Array) -> Array:
    """The weights (O, K) nearest to the target's outputs, given cross = E[target x^T] and gram = E[x x^T].

    The change of the weights is penalised, so that what has nothing to make up for stays as it is.
    """
    factor = cho_factor(gram + _ridge(gram))
    return np.asarray(own + cho_solve(factor, (cross - own @ gram).T).T)


def _ridge(gram: Array) -> Array:
    return np.eye(len(gram)) * (RIDGE * max(float(np.diagonal(gram).mean()), 1e-12))


def _with_weight(op: Node, weight: Array) -> Node:
    return op.with_weights(weight=weight.reshape(op.weight.shape).astype(np.float32))


def _what_the_last_sees(first: Sequence[Node], op: Node, last: Node) -> Array:
    """Each input of the last factor as a combination of the layer's inputs, (its I, I): what unit inputs become."""
    x = _as_images(torch.eye(op.weight[0].size), op)
    for factor in first:
        x = apply_op(_unpadded(factor), [x])
    return np.asarray(x.reshape(len(x), -1).T.double().numpy())


def _as_images(fields: torch.Tensor, op: Node) -> torch.Tensor:
    return fields if op.kind == "linear" else fields.reshape(len(fields), *op.weight.shape[1:])


def _unpadded(op: Node) -> Node:
    """The operator as one output position of the layer sees it."""
    if op.kind == "linear":
        return op
    return op.with_attrs(stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1))
