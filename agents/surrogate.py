"""The surrogate that learns from told accuracies: how much each layer's error and each group's width matter."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.agents.additive import AdditiveModel, Floats
from trimtab.threads import one_blas_thread

__all__ = ["LearnedErrors"]

#: Accuracies below are counted as this, so that the logarithm stays finite.
LOWEST = 0.02

#: Prior standard deviation of the intercept.
INTERCEPT = 3.0

#: Prior mean and standard deviation of what the weights of each kind of feature have in common: before anything is
#: told, losses are as the estimates say.
SHARED = ((1.0, 1.0), (0.0, 0.3), (0.0, 0.3), (0.0, 0.3), (0.0, 0.3))

#: Prior standard deviations of the deviations of single layers and groups, of which the likeliest is taken.
OWN = (0.1, 0.3, 1.0, 3.0)

#: Standard deviations of what the model leaves, of which the likeliest is taken.
NOISE = (0.01, 0.02, 0.04, 0.08, 0.16)

#: A loss this far above the least one counts as if its noise had twice the variance: the best policies matter.
NEAR = 0.5


class LearnedErrors:
    """A Bayesian linear model of -log(accuracy) that is additive over the factors of an `AdditiveModel`.

    Estimated errors rank the choices of one layer well, but neither pruning against quantisation nor one layer against
    another: what a layer loses is amplified or forgiven by those behind it (SPDY: Frantar and Alistarh 2022,
    arXiv:2201.13096, section 3). So a weight is learned for every layer and kind of error, and for every group's
    width. There are five kinds of features: per layer its error, the root of its least error at its widths, and the
    root of what its own choices add to that; per group minus the logarithm of its keep ratio, and that one's square. A
    weight is what its kind has in common plus a deviation.
    """

    def __init__(self, model: AdditiveModel) -> None:
        self.model = model
        self._features, self._kinds = _features(model)
        self._rows: list[Floats] = []
        self._losses: list[float] = []
        self._posterior: tuple[Floats, Floats] | None = None

    def tell(self, vector: npt.ArrayLike, accuracy: float) -> None:
        """Learn the accuracy of a vector, (knobs,)."""
        self._rows.append(self._inputs(vector))
        self._losses.append(-math.log(max(accuracy, LOWEST)))
        self._posterior = None

    def draw(self, rng: np.random.Generator, spread: float = 1.0) -> Floats:
        """Return errors (rows,) as the solver takes them: the model drawn from its posterior, weights at least 0.

        `spread` multiplies the deviation from the posterior's mean.
        """
        if self._posterior is None:
            with one_blas_thread():
                self._posterior = self._learn()
        mean, root = self._posterior
        found = mean + spread * root @ rng.standard_normal(len(mean))
        kinds = 1 + int(self._kinds.max())
        weights = found[1 : 1 + kinds][self._kinds] + found[1 + kinds :]
        return np.asarray(self._features @ np.maximum(weights, 0.0))

    def _inputs(self, vector: npt.ArrayLike) -> Floats:
        """Return 1, the sum of the features of each kind, and the features."""
        own = np.asarray(self._features[self.model.rows(np.asarray(vector)[None])[0]].sum(axis=0)).ravel()
        return np.concatenate([[1.0], np.bincount(self._kinds, own), own])

    def _learn(self) -> tuple[Floats, Floats]:
        """Return the posterior's mean and a root of its covariance, under the likeliest hyperparameters."""
        from scipy.linalg import solve_triangular  # here, so that importing the agents stays cheap

        kinds = 1 + int(self._kinds.max())
        mean = np.concatenate([[0.0], [SHARED[k][0] for k in range(kinds)], np.zeros(len(self._kinds))])
        inputs, losses = np.array(self._rows).reshape(-1, len(mean)), np.array(self._losses)
        weights = 1 / (1 + ((losses - losses.min(initial=math.inf)) / NEAR) ** 2)
        left = losses - inputs @ mean
        gram, moment = (inputs.T * weights) @ inputs, inputs.T @ (weights * left)
        squares = weights @ left**2
        common = np.array([INTERCEPT, *(SHARED[k][1] for k in range(kinds))])
        best, chosen = -math.inf, (np.eye(len(mean)), mean)
        for own, noise in product(OWN, NOISE):
            deviations = np.concatenate([common, np.full(len(self._kinds), own)])
            root = np.linalg.cholesky(gram / noise**2 + np.diag(deviations**-2.0))
            half = solve_triangular(root, moment / noise**2, lower=True, check_finite=False)
            evidence = half @ half - squares / noise**2 - 2 * len(losses) * math.log(noise)
            evidence -= 2 * np.log(np.diag(root)).sum() + 2 * np.log(deviations).sum()
            if evidence > best:
                best, chosen = evidence, (root, half)
        root, half = chosen
        inverse = solve_triangular(root, np.eye(len(mean)), lower=True, check_finite=False).T
        return mean + inverse @ half, inverse


def _features(model: AdditiveModel) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the features of every row of the model's values, sparse (rows, features), and each feature's kind.

    Each kind is scaled so that its features add up to 1 in a policy drawn at random.
    """
    from scipy.sparse import csr_array  # here, so that importing the agents stays cheap

    names: dict[tuple[int, object], int] = {}
    entries: list[tuple[npt.NDArray[np.int64], int, Floats]] = []
    sums = np.zeros(5)

    def add(kind: int, about: object, start: int, values: Floats) -> None:
        sums[kind] += values.mean()
        rows = start + np.arange(len(values))
        entries.append((rows, names.setdefault((kind, about), len(names)), values))

    groups: set[int] = set()
    for factor in model.factors:
        errors = model.values[factor.start : factor.start + factor.size, 0]
        table = errors.reshape(math.prod(factor.shape[: len(factor.shared)]), -1)
        least = np.repeat(table.min(axis=1), table.shape[1])
        add(0, factor.layer, factor.start, errors)
        add(1, factor.layer, factor.start, np.sqrt(np.maximum(least, 0.0)))
        add(2, factor.layer, factor.start, np.sqrt(errors - least))
        for axis, knob in enumerate(factor.shared):
            if knob not in groups:
                groups.add(knob)
                counts = np.array(model.space.knobs[knob].choices, float)
                narrow = -np.log(counts / counts.max())[np.unravel_index(np.arange(factor.size), factor.shape)[axis]]
                add(3, knob, factor.start, narrow)
                add(4, knob, factor.start, narrow**2)
    kinds = np.array([kind for kind, _ in names])
    scales = 1 / np.where(sums > 0, sums, 1.0)
    rows = np.concatenate([rows for rows, _, _ in entries])
    columns = np.concatenate([np.full(len(rows), column) for rows, column, _ in entries])
    values = np.concatenate([values for _, _, values in entries]) * scales[kinds[columns]]
    return csr_array((values, (rows, columns)), shape=(len(model.values), len(kinds))), kinds
