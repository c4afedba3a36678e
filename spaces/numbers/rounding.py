"""Rounding: which of a grid's levels each weight becomes, given what errors cost together at the layer's output.

`gram` (I, I) is the positive definite covariance of the layer's inputs: weights that are off by e (I,) put the
output off by e gram e^T in the mean square.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from trimtab.graph import Array
from trimtab.kernels.compensated import descend, round_in_order
from trimtab.spaces.numbers.grids import nearest
from trimtab.threads import torch_threads

__all__ = ["ROUNDINGS", "adaround", "descent", "gptq"]

#: What a layer of fewer than 8 bits may be rounded by; "nearest" needs no covariance.
ROUNDINGS = ("nearest", "gptq", "descent", "adaround")

#: Errors are made up for among at most so many inputs: the decomposition takes the cube of their number.
GROUP = 2048

#: How often coordinate descent goes over a layer's inputs.
SWEEPS = 4

#: AdaRound: steps of Adam, its rate, the share of steps without the regulariser, the regulariser's weight and how its
#: exponent falls (section 4 and appendix of the paper, with full gradients in place of batches and fewer steps).
STEPS = 300
RATE = 0.05
WARM_UP = 0.2
REGULARISER = 4.0
EXPONENTS = (20.0, 2.0)
STRETCH = (-0.1, 1.1)


def gptq(rows: Array, scale: Array, levels: Array, gram: Array) -> Array:
    """Round weights (O, I) to levels input by input; those still to come make up for each error as well as they can.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1). Layers of more than GROUP inputs are rounded in equal
    groups that know nothing of each other.
    """
    bounds = np.linspace(0, rows.shape[1], -(-rows.shape[1] // GROUP) + 1).astype(int)
    groups = [slice(start, end) for start, end in pairwise(bounds)]
    parts = [round_in_order(np.ascontiguousarray(rows[:, g]), scale, levels, _factor(gram[g, g])) for g in groups]
    return np.concatenate(parts, axis=1)


def _factor(gram: Array) -> Array:
    """The upper triangular R with R R^T = gram, float32: a Cholesky decomposition in the opposite order."""
    opposite = torch.from_numpy(gram[::-1, ::-1].astype(np.float64))
    return np.ascontiguousarray(torch.linalg.cholesky(opposite).flip(0, 1).numpy(), np.float32)


def descent(rows: Array, scale: Array, levels: Array, gram: Array) -> Array:
    """Round weights (O, I) to levels by `gptq`, then, input by input, to the best level given all the others'.

    QuantEase (Behdin et al. 2023, arXiv:2309.01885, algorithm 1): the output's error only falls.
    """
    gram = np.ascontiguousarray(gram, np.float32)
    rounded = gptq(rows, scale, levels, gram)
    errors = torch.from_numpy(rows - rounded * scale[:, None])
    missing = (errors @ torch.from_numpy(gram)).numpy()
    descend(np.ascontiguousarray(rows), scale, levels, gram, rounded, missing, SWEEPS)
    return rounded


def adaround(rows: Array, scale: Array, levels: Array, gram: Array) -> Array:
    """Round each weight (O, I) up or down, as together is best for the output; returns levels (O, I).

    AdaRound (Nagel et al. 2020, arXiv:2004.10568, equations 21 to 24): gradient descent on
    ||(soft(V) - W) x||^2 + lambda sum(1 - |2 h(V) - 1|^beta), where h is the rectified sigmoid that places a weight
    between its two levels. The expectation over inputs is exact, by their covariance, so nothing is drawn. Channels
    that plain rounding serves better keep it.
    """
    ratios = rows / scale[:, None]
    plain = nearest(ratios, levels)
    centres = levels.astype(np.float32)
    below = np.clip(np.searchsorted(centres, ratios, side="right") - 1, 0, len(levels) - 2)
    down, up = centres[below], centres[below + 1]
    soft = np.clip((ratios - down) / (up - down), 0, 1)
    with torch_threads(1), torch.enable_grad():
        covariance = torch.from_numpy(np.ascontiguousarray(gram, np.float32))
        weight, low, high = (torch.from_numpy(part) for part in (rows, down * scale[:, None], up * scale[:, None]))
        rounds_up = _rounds_up(weight, low, high, torch.from_numpy(soft), covariance)
    found = np.where(rounds_up.numpy(), up, down)
    better = _output_error(rows, scale, found, gram) < _output_error(rows, scale, plain, gram)
    return np.where(better[:, None], found, plain)


def _rounds_up(weight: Tensor, down: Tensor, up: Tensor, soft: Tensor, gram: Tensor) -> Tensor:
    """Whether each weight is to be rounded up."""
    low, high = STRETCH
    start = ((soft - low) / (high - low)).clamp(1e-4, 1 - 1e-4)
    v = torch.logit(start).requires_grad_()
    # Layers differ in the size of their errors, and one lambda has to suit all of them.
    plain = torch.where(soft < 0.5, down, up) - weight
    unit = ((plain @ gram) * plain).sum().clamp(min=1e-30) / weight.numel()
    optimiser = torch.optim.Adam([v], RATE)
    for step in range(STEPS):
        h = (torch.sigmoid(v) * (high - low) + low).clamp(0, 1)
        error = down + h * (up - down) - weight
        loss = ((error @ gram) * error).sum() / unit
        progress = (step / STEPS - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = EXPONENTS[1] + 0.5 * (EXPONENTS[0] - EXPONENTS[1]) * (1 + np.cos(np.pi * progress))
            loss = loss + REGULARISER * (1 - (2 * h - 1).abs().pow(beta)).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return v.detach() > 0


def _output_error(rows: Array, scale: Array, rounded: Array, gram: Array) -> Array:
    """Each channel's mean square error at the output, (O,)."""
    error = (rounded * scale[:, None] - rows).astype(np.float64)
    return np.asarray(((error @ gram) * error).sum(axis=1))
