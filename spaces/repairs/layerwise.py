"""One layer compressed on its own, from statistics of the untouched network: exact least squares, no image needed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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

__all__ = ["CompressedLayer", "LayerCompressor", "LayerFit", "is_row_wise"]

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

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        weights = [array for node in self.nodes for array in node.weights.values()]
        return sum(array.nbytes for array in (self.error, *weights, *itertools.chain(*self.int8.values())))


def is_row_wise(decision: LayerDecision) -> bool:
    """Whether each output channel is compressed without a look at the others."""
    coupled = decision.rank is not None or decision.pattern is not None or decision.sharing is not None
    return not coupled and decision.format.weight.is_row_wise


class LayerFit:
    """The weights of a layer on what is left of its inputs, by least squares: what all decisions about it share.

    Of the untouched layer `whole` the input channels `inputs` and the output channels `outputs`, ascending, are left;
    of the tensor that it reads `bits` hold the range `stored`, or all of it where they are None. The weights that are
    left make up for the input channels that are gone and for the rounding of narrow activations.
    """

    def __init__(
        self, whole: Node, inputs: Array, outputs: Array, statistics: LayerStatistics, stored: Range, bits: int | None
    ) -> None:
        self.pruned = pruned = OPERATORS[whole.kind].sliced(whole, inputs, outputs)
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
        self.cross = statistics.cross[outputs]
        noise = _rounding_noise(statistics.fields, stored, bits).reshape(whole.groups, -1)
        self.noise = noise[self.group][:, self.kept]
        self.fields = statistics.fields[:, self.kept] if whole.groups == 1 else None
        self._plain: dict[tuple[str, int], Sequence[Node]] = {}

    @property
    def is_whole(self) -> bool:
        """Whether all inputs are left."""
        return len(self.kept) == self.target.shape[1]

    @cached_property
    def seen(self) -> _Seen:
        """What the fitted layer sees."""
        gram = self.covariance[0][np.ix_(self.kept, self.kept)]
        gram[np.diag_indices_from(gram)] += self.noise[0]
        return _Seen(gram, self.cross[:, self.kept], self.mean[0, self.kept])

    @cached_property
    def ridged(self) -> Array:
        """The covariance of what the fitted layer sees, made positive definite."""
        return _ridged(self.seen.gram)

    @cached_property
    def fitted(self) -> Node:
        """The layer with its weights fitted."""
        own = self.pruned.weight.reshape(len(self.target), -1).astype(np.float64)
        nothing_missing = self.is_whole and not self.noise.any()
        return _with_weight(self.pruned, own if nothing_missing else _fit(own, self.seen, self.ridged))

    def factors(self, name: str, rank: int) -> Sequence[Node]:
        """Return the fitted layer's factors, in float32, that are nearest to its outputs."""
        if (name, rank) not in self._plain:
            op = self.fitted
            plain = plain_factors(op, name, rank)
            self._plain[name, rank] = factor_ops(op, name, fit_outputs(name, plain, kernel_of(op), self.ridged))
        return self._plain[name, rank]

    def outcome(self, weight: Array, seen: _Seen) -> tuple[Array, Array]:
        """Return the mean of the outputs (O,) that a weight (O, J) misses, and its error (O,), of inputs as seen."""
        squares = _rowwise(weight @ seen.gram - 2 * seen.cross, weight) + _rowwise(self.cross, self.target)
        return self._missing(weight @ seen.mean), self.sensitivity * np.maximum(squares, 0.0)

    def outcome_of_groups(self, weight: Array) -> tuple[Array, Array]:
        """Return the same for the weight (O, I / G) of a grouped layer, all of whose groups are left as they were."""
        change = -self.target
        change[:, self.kept] += weight
        squares = np.einsum("oi,oij,oj->o", change, self.covariance[self.group], change)
        missing = self._missing(_rowwise(weight, self.mean[:, self.kept]))
        return missing, self.sensitivity * (squares + _rowwise(weight**2, self.noise))

    def _missing(self, mean: Array) -> Array:
        return _rowwise(self.target, self.mean) - mean


@dataclass(frozen=True, eq=False)
class _Seen:
    """The view of an operator: the covariance `gram` (J, J) of its inputs, that of the untouched layer's outputs with
    them, `cross` (O, J), and their `mean` (J,); float64."""

    gram: Array
    cross: Array
    mean: Array

    def through(self, matrix: Array) -> _Seen:
        """Return what is seen behind a matrix (its outputs, J)."""
        return _Seen(matrix @ self.gram @ matrix.T, self.cross @ matrix.T, matrix @ self.mean)


class LayerCompressor:
    """Compresses one layer: factors, weights and the bias make up, one after the other, for what came before them."""

    def __init__(self, fit: LayerFit, decision: LayerDecision, rounding: str) -> None:
        self.fit, self.decision, self.rounding = fit, decision, rounding
        self.int8: dict[str, tuple[Array, Array]] = {}
        self.ranges: dict[str, Range] = {}

    @one_blas_thread()
    def compress(self) -> CompressedLayer:
        """Return what stands for the layer."""
        pruned = self.fit.pruned
        if self.decision == LayerDecision() and self.fit.is_whole:
            return CompressedLayer((pruned,), {}, {}, np.zeros(len(self.fit.target)))
        if pruned.groups != 1:
            ops = [narrowed(pruned, self.decision, self.int8)]
            missing, error = self.fit.outcome_of_groups(_matrix(ops[-1]))
        else:
            ops, seen = self._dense() if self.decision.rank is None else self._factorised(self.decision.rank)
            missing, error = self.fit.outcome(_matrix(ops[-1]), seen)
        bias = 0.0 if pruned.bias is None else pruned.bias
        ops[-1] = ops[-1].with_weights(bias=np.asarray(bias + missing, np.float32))
        return CompressedLayer(tuple(ops), self.int8, self.ranges, error)

    def _dense(self) -> tuple[list[Node], _Seen]:
        op = narrowed(self.fit.fitted, self.decision, self.int8, self.fit.ridged, self.rounding)
        return [op], self.fit.seen

    def _factorised(self, rank: int) -> tuple[list[Node], _Seen]:
        """Return the factors, and what the last one sees."""
        *first, last = self.fit.factors(self.decision.factorisation, rank)
        first = [narrowed(factor, self.decision, self.int8) for factor in first]
        op = self.fit.fitted
        seen = self.fit.seen.through(_what_the_last_sees(first, op))
        self._note_ranges(first, op)
        ridged = _ridged(seen.gram)
        last = _with_weight(last, _fit(_matrix(last), seen, ridged))
        return [*first, narrowed(last, self.decision, self.int8, ridged, self.rounding)], seen

    def _note_ranges(self, first: Sequence[Node], op: Node) -> None:
        """Note the ranges of tensors between factors: those on some of the layer's inputs."""
        x = _as_images(torch.from_numpy(self.fit.fields), op)
        for factor in first:
            x = apply_op(_unpadded(factor), [x])
            self.ranges[factor.name] = float(x.min()), float(x.max())


def _rounding_noise(fields: Array, stored: Range, bits: int | None) -> Array:
    """The mean squared error (I,) of inputs that are stored in so many bits; zero for None, floats."""
    if bits is None:
        return np.zeros(fields.shape[1])
    scale, zero = activation_quant(*stored, bits)
    rounded = np.clip(np.rint(fields / scale), -zero, 2**bits - 1 - zero) * scale
    return np.asarray(np.square(rounded - fields, dtype=np.float64).mean(0))


def _fit(own: Array, seen: _Seen, ridged: Array) -> Array:
    """The weights (O, J) nearest to the untouched layer's outputs; `ridged` is the covariance of what is seen.

    The change of the weights is penalised, so that what has nothing to make up for stays as it is.
    """
    factor = cho_factor(ridged, check_finite=False)
    return np.asarray(own + cho_solve(factor, (seen.cross - own @ seen.gram).T, check_finite=False).T)


def _ridged(gram: Array) -> Array:
    ridged: Array = gram.copy()
    ridged[np.diag_indices_from(ridged)] += RIDGE * max(float(np.diagonal(gram).mean()), 1e-12)
    return ridged


def _rowwise(a: Array, b: Array) -> Array:
    """The product of every row of one (O, I) with the same row of the other."""
    return np.asarray(np.einsum("oi,oi->o", a, b))


def _matrix(op: Node) -> Array:
    """An operator's weight as a matrix (O, I), float64."""
    matrix: Array = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    return matrix


def _with_weight(op: Node, weight: Array) -> Node:
    return op.with_weights(weight=weight.reshape(op.weight.shape).astype(np.float32))


def _what_the_last_sees(first: Sequence[Node], op: Node) -> Array:
    """Each input of the last factor as a combination of the layer's inputs, (its I, I): what unit inputs become."""
    if len(first) == 1 and first[0].weight[0].size == op.weight[0].size:
        return _matrix(first[0])
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
