"""Factors that are nearest to what a layer does on calibration images, rather than to its weight.

A layer's sampled inputs are rows x of `inputs` (S, n), n = I * kh * kw; `gram` (n, n) is their covariance, positive
definite. The weight W (O, I, kh, kw) is the one that least squares ask for, so that what W misses cannot be had by any
factors either, and the error that is left to them is tr((W - V) G (W - V)^T) for the weight V that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimtab.graph import Array
from trimtab.spaces.factorisation.decompose import leading_vectors
from trimtab.spaces.factorisation.registry import FACTORISATIONS, compose

__all__ = ["Rectified", "fit_outputs", "fit_rectified"]

#: Rounds over the factors, and steps of conjugate gradients for each.
ROUNDS = 3
STEPS = 6

#: How strongly the auxiliary values are held to the ReLU's input, and for how many rounds. Zhang et al. take 25 rounds
#: of 0.01 and 25 of 1: on ResNet-20, singular values at half the MACs, six rounds of 1 left 83.1 % of 2,000 images,
#: three of 0.01 and three of 1 82.0 %, and fifteen rising from 0.01 to 1 81.7 %.
HOLD = 1.0
RECTIFIED_ROUNDS = 6


def fit_outputs(name: str, factors: Sequence[Array], weight: Array, gram: Array) -> list[Array]:
    """Return factors, in float64, with a smaller error of the outputs than those given.

    For the singular value decomposition the optimum: U U^T W with the leading eigenvectors U of W G W^T (reduced-rank
    regression; Zhang et al. 2015, arXiv:1411.4229, section 2.1). The others take turns, each improved by conjugate
    gradients on its least squares, which never make the error larger.
    """
    if name == "svd":
        matrix = weight.reshape(len(weight), -1)
        left = leading_vectors(matrix @ gram @ matrix.T, factors[-1].shape[1])
        return [(left.T @ matrix).reshape(-1, *weight.shape[1:]), left]
    found = [factor.astype(np.float64) for factor in factors]
    for _ in range(ROUNDS):
        for k in range(len(found)):
            found[k] = _improved(name, found, k, weight, gram)
    return found


def _improved(name: str, factors: Sequence[Array], k: int, weight: Array, gram: Array) -> Array:
    """Factor `k` after some steps towards the smallest error, the others held."""
    terms = FACTORISATIONS[name].equation.split("->")[0].split(",")
    others = [factor for i, factor in enumerate(factors) if i != k]
    back = ",".join(["oiyx", *(term for i, term in enumerate(terms) if i != k)]) + f"->{terms[k]}"

    def dense(factor: Array) -> Array:
        return compose(name, [*factors[:k], factor, *factors[k + 1 :]])

    def gradient(missing: Array) -> Array:
        weighted = (missing.reshape(len(missing), -1) @ gram).reshape(missing.shape)
        return np.asarray(np.einsum(back, weighted, *others, optimize="optimal"))

    factor = factors[k]
    return factor + _conjugate_gradients(lambda f: gradient(dense(f)), gradient(weight - dense(factor)))


def _conjugate_gradients(system: Callable[[Array], Array], right: Array) -> Array:
    """Approach the solution of system(x) = right from zero, for a symmetric, positive semi-definite `system`."""
    solution, residual, direction = np.zeros_like(right), right, right
    square = float((residual**2).sum())
    smallest = 1e-20 * square
    for _ in range(STEPS):
        if square <= smallest:
            break
        image = system(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * image
        before, square = square, float((residual**2).sum())
        direction = residual + square / before * direction
    return solution


@dataclass(frozen=True, eq=False)
class Rectified:
    """A layer in front of a ReLU.

    Sampled `inputs` (S, n), what the ReLU should get, `wanted` (S, O), and what is added to the layer's output before
    it, `beside` (S, O), in float32; the inputs' covariance `gram` (n, n) in float64.
    """

    inputs: Array
    gram: Array
    wanted: Array
    beside: Array

    def sums(self, dense: Array, bias: Array) -> Array:
        """Return what the ReLU gets (S, O) of a weight (O, I, kh, kw) and a bias (O,)."""
        matrix = dense.reshape(len(dense), -1).astype(np.float32)
        return np.asarray(self.beside + self.inputs @ matrix.T + bias.astype(np.float32))

    def error(self, sums: Array) -> float:
        """Return the squared error behind the ReLU."""
        return float(((np.maximum(self.wanted, 0) - np.maximum(sums, 0)) ** 2).sum())

    def nearest(self, sums: Array, weight: Array) -> Array:
        """Return the weight that comes nearest to `sums`, with the penalty that `gram` has on changes of a weight."""
        missing = sums - self.sums(weight, np.zeros(len(weight)))
        correlation = (missing - missing.mean(0)).T @ self.inputs / len(self.inputs)
        change: Array = correlation.astype(np.float64) @ self._inverse
        return np.asarray(weight + change.reshape(weight.shape))

    @cached_property
    def _inverse(self) -> Array:
        return np.linalg.inv(self.gram)


def fit_rectified(
    name: str, factors: Sequence[Array], weight: Array, bias: Array, layer: Rectified
) -> tuple[list[Array], Array, Array]:
    """Return factors, in float64, and a bias (O,) that are nearest to what is wanted behind a ReLU, and its input then.

    They start from the factors that `fit_outputs` makes of `weight` and from `bias`. After Zhang et al. 2016
    (arXiv:1505.06798, section 3.2): auxiliary values z, held to the ReLU's input, take its place; z and the factors
    that come nearest to z are solved for in turn. The best factors on the way are returned, so they are never worse
    than the first ones.
    """
    sums = layer.sums(compose(name, factors), bias)
    best, least = (list(factors), bias, sums), layer.error(sums)
    for _ in range(RECTIFIED_ROUNDS):
        z = _auxiliary(np.maximum(layer.wanted, 0), sums, HOLD)
        factors = fit_outputs(name, factors, layer.nearest(z, weight), layer.gram)
        bias = (z - layer.sums(compose(name, factors), np.zeros_like(bias))).mean(0)
        sums = layer.sums(compose(name, factors), bias)
        error = layer.error(sums)
        if error < least:
            best, least = (list(factors), bias, sums), error
    return best


def _auxiliary(rectified: Array, outputs: Array, hold: float) -> Array:
    """The z of the smallest (rectified - relu(z))^2 + hold (z - outputs)^2, element by element."""
    below = np.minimum(outputs, 0)
    above = np.maximum((hold * outputs + rectified) / (hold + 1), 0)
    cost_below = rectified**2 + hold * (below - outputs) ** 2
    cost_above = (rectified - above) ** 2 + hold * (above - outputs) ** 2
    return np.where(cost_below < cost_above, below, above)
