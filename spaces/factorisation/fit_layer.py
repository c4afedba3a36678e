"""Factors of a layer inside a candidate: made for the inputs that it has there, and for what reads its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trimtab.graph import Array, Node
from trimtab.spaces.factorisation import (
    Rectified,
    factor_ops,
    fit_outputs,
    fit_rectified,
    kernel_of,
    plain_factors,
)
from trimtab.spaces.policy import LayerDecision
from trimtab.spaces.repairs.reconstruct import Sample, receptive_fields, solve
from trimtab.threads import one_blas_thread

__all__ = ["fitted_factors"]


def fitted_factors(
    op: Node,
    decision: LayerDecision,
    x: Tensor,
    sample: Sample,
    channels: Array,
    values: Mapping[str, Tensor],
    rectified: bool,
) -> tuple[list[Node], Sample]:
    """Return the layers of a factorised layer's factors, and the sample that its last one is to be fitted to.

    `op` is the dense layer, its other arguments those of `solve`. First the dense layer is fitted to the untouched
    network on the candidate's own inputs, then the factors to that: together the least-squares optimum on those inputs
    where the factors have one (the asymmetric reconstruction of Zhang et al. 2016, arXiv:1505.06798, section 3.3). What
    a ReLU lets through counts when the last factor is fitted. Where the layer is `rectified`, it counts for all of
    them, and the sample returned holds what they reach there: a later fit of one factor would undo it otherwise.
    """
    name, rank = decision.factorisation, decision.rank
    if rank is None:
        raise ValueError(f"{op.name} has no rank")
    dense_sample = sample if rectified else replace(sample, rectified=False)
    weight, bias, statistics = solve(op, x, dense_sample, channels, values)
    op = op.with_weights(weight=weight, bias=bias)
    dense, covariance = kernel_of(op), statistics.gram.double().numpy()
    plain = plain_factors(op, name, rank)
    with one_blas_thread():
        factors = fit_outputs(name, plain, dense, covariance)
        if not rectified:
            return factor_ops(op, name, factors), sample
        kept = torch.from_numpy(channels)
        wanted = sample.values[:, kept]
        beside = torch.zeros_like(wanted) if sample.other is None else sample.at(values[sample.other])
        inputs = receptive_fields(op, x, sample)
        layer = Rectified(inputs.numpy(), covariance, wanted.numpy(), beside.numpy())
        factors, bias, sums = fit_rectified(name, factors, dense, bias, layer)
    reached = sample.values.clone()
    reached[:, kept] = torch.from_numpy(sums.astype(np.float32))
    op = op.with_weights(bias=bias.astype(np.float32))
    return factor_ops(op, name, factors), replace(sample, values=reached, rectified=False)
