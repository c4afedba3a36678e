"""Low rank: a layer as two factors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from trimtab.errors import BadInput
from trimtab.spaces.network import Array, Network, Op

__all__ = ["factorise", "full_rank", "pays", "svd_factors"]


def full_rank(out_channels: int, in_features: int) -> int:
    """Return the largest rank of a layer; `in_features` counts the inputs of one output: I * kh * kw."""
    return min(out_channels, in_features)


def pays(out_channels: int, in_features: int, rank: int) -> bool:
    """Whether two factors have fewer weights (and, at stride 1, fewer MACs) than the dense layer."""
    return rank * (in_features + out_channels) < out_channels * in_features


def svd_factors(weight: Array, rank: int) -> tuple[Array, Array]:
    """Return (left (O, rank), right (rank, ...)) whose product is the nearest matrix of that rank to `weight` (O, ...).

    The optimum of Eckart and Young, from the eigenvectors of the smaller of W W^T and W^T W; the factor on that side
    is orthonormal. float32, computed in float64.
    """
    matrix = weight.reshape(weight.shape[0], -1).astype(np.float64)
    if matrix.shape[0] <= matrix.shape[1]:
        left = _leading(matrix @ matrix.T, rank)
        right = left.T @ matrix
    else:
        right = _leading(matrix.T @ matrix, rank).T
        left = matrix @ right.T
    return left.astype(np.float32, order="C"), right.astype(np.float32, order="C").reshape(rank, *weight.shape[1:])


def _leading(gram: Array, count: int) -> Array:
    """The eigenvectors (n, count) of the largest eigenvalues of a symmetric matrix (n, n)."""
    return np.asarray(np.linalg.eigh(gram)[1][:, ::-1][:, :count])


def factorise(network: Network, ranks: dict[str, int]) -> Network:
    """Replace each layer in `ranks` by two: `<name>/factor`, with the kernel and the stride, and `<name>`, 1x1.

    A rank beyond the layer's full rank, or a grouped convolution, is a `BadInput`.
    """
    ops: list[Op] = []
    # One thread: the matrices are small, threads that wait for a busy core take ten times as long, and their number
    # would show in the last bits.
    with _blas().limit(limits=1, user_api="blas"):
        for op in network:
            rank = ranks.get(op.name)
            ops.extend([op] if rank is None else _two(op, rank))
    return replace(network, ops=tuple(ops))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # looks through the process's libraries: milliseconds


def _two(op: Op, rank: int) -> list[Op]:
    if op.weight is None or op.groups != 1:
        raise BadInput(f"layer {op.name!r} cannot be factorised: only dense convolutions and linear layers can")
    limit = full_rank(op.weight.shape[0], op.weight[0].size)
    if not 1 <= rank <= limit:
        raise BadInput(f"layer {op.name!r}: rank {rank} is not between 1 and {limit}")
    left, right = svd_factors(op.weight, rank)
    name = f"{op.name}/factor"
    first = replace(op, name=name, shape=(rank, *op.shape[1:]), weight=right, bias=None, norm=None)
    if op.kind == "linear":
        return [first, replace(op, inputs=(name,), weight=left)]
    pointwise = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    return [first, replace(op, inputs=(name,), weight=left[:, :, None, None], attrs=pointwise)]
