"""Decompositions of a weight, plain: nearest to the weight itself. All in float64."""

from __future__ import annotations

import numpy as np

from trimtab.graph import Array

__all__ = ["cp", "leading_vectors", "truncated_svd", "tucker2"]

#: Rounds of alternation, and the change of the squared error, relative to the weight's, that ends them early.
TUCKER_ROUNDS, TUCKER_TOLERANCE = 10, 1e-5
CP_ROUNDS, CP_TOLERANCE = 60, 1e-8

#: How strongly least squares are drawn to the last round's factors, relative to the normal equations' diagonal. On
#: ResNet-20's weights 0.03 instead of 0.001 takes a quarter off the terms' squared sizes, for an error 1 % larger.
PROXIMITY = 0.03


def truncated_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return (left (M, rank), right (rank, N)) whose product is the nearest matrix of that rank to `matrix` (M, N).

    From the eigenvectors of the smaller of A A^T and A^T A; the factor on that side is orthonormal.
    """
    if matrix.shape[0] <= matrix.shape[1]:
        left = leading_vectors(matrix @ matrix.T, rank)
        return left, left.T @ matrix
    right = leading_vectors(matrix.T @ matrix, rank).T
    return matrix @ right.T, right


def tucker2(weight: Array, out_rank: int, in_rank: int) -> tuple[Array, Array, Array]:
    """Return (inputs (P, I), core (Q, P, kh, kw), outputs (O, Q)) with orthonormal rows and columns.

    The truncated higher-order singular value decomposition, whose squared error is at most twice the optimum's, refined
    by higher-order orthogonal iteration (De Lathauwer et al. 2000), which never makes it worse.
    """
    narrow = weight.transpose(1, 0, 2, 3)
    captured = 0.0
    for _ in range(TUCKER_ROUNDS):
        inputs = _leading_rows(narrow, in_rank)
        projected = np.einsum("oiyx,ip->opyx", weight, inputs, optimize="optimal")
        outputs = _leading_rows(projected, out_rank)
        core = np.einsum("opyx,oq->qpyx", projected, outputs, optimize="optimal")
        before, captured = captured, float((core**2).sum())
        if captured - before <= TUCKER_TOLERANCE * captured:
            break
        narrow = np.einsum("oiyx,oq->iqyx", weight, outputs, optimize="optimal")
    return np.ascontiguousarray(inputs.T), core, outputs


def cp(weight: Array, rank: int) -> tuple[Array, Array, Array, Array]:
    """Return (inputs (R, I), rows (R, kh), columns (R, kw), outputs (O, R)), each term of equal norm in all four.

    Alternating least squares that are drawn to the last round's factors (Li, Kindermann and Navasca 2013,
    arXiv:1109.3831): plain ones let terms grow that cancel each other, which integers do not stand. They start at the
    largest terms of a singular value decomposition, which found networks' weights and exact tensors sooner, and more
    often, than random starts.
    """
    factors = _cp_start(weight, rank)
    norm = float((weight**2).sum())
    error = norm
    for _ in range(CP_ROUNDS):
        fit = _cp_round(weight, factors)
        before, error = error, norm - fit
        if before - error <= CP_TOLERANCE * norm:
            break
    outputs, inputs, rows, columns = factors
    return inputs.T, rows.T, columns.T, outputs


def _cp_round(weight: Array, factors: list[Array]) -> float:
    """Solve for each of the factors (o, i, y, x), in place; return by how much the squared error is below the norm."""
    outputs, inputs, rows, columns = factors
    pulled = np.einsum("iyxr,yr,xr->ir", np.tensordot(weight, outputs, (0, 0)), rows, columns)
    factors[1] = inputs = _drawn_solution(factors, 1, pulled)
    seen = np.tensordot(weight.transpose(0, 2, 3, 1), inputs, 1)  # (O, kh, kw, R), for all that follows
    factors[0] = outputs = _drawn_solution(factors, 0, np.einsum("oyxr,yr,xr->or", seen, rows, columns))
    small = np.einsum("oyxr,or->yxr", seen, outputs)
    factors[2] = rows = _drawn_solution(factors, 2, np.einsum("yxr,xr->yr", small, columns))
    factors[3] = columns = _drawn_solution(factors, 3, np.einsum("yxr,yr->xr", small, rows))
    inner = float(np.einsum("yxr,yr,xr->", small, rows, columns))
    fit = 2 * inner - float(np.prod([factor.T @ factor for factor in factors], axis=0).sum())
    factors[:] = _balanced(factors)
    return fit


def _drawn_solution(factors: list[Array], mode: int, product: Array) -> Array:
    others = [factor for i, factor in enumerate(factors) if i != mode]
    normal = np.prod([other.T @ other for other in others], axis=0)
    drawn = max(PROXIMITY * float(np.trace(normal)) / len(normal), np.finfo(float).tiny)
    system = normal + drawn * np.eye(len(normal))
    return np.asarray(np.linalg.solve(system, (product + drawn * factors[mode]).T).T)


def _cp_start(weight: Array, rank: int) -> list[Array]:
    """The largest terms when each singular vector of (I * kh, O * kw), a matrix itself, is decomposed too."""
    outputs, inputs, height, width = weight.shape
    matrix = weight.transpose(1, 2, 0, 3).reshape(inputs * height, outputs * width)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    i, si, y = np.linalg.svd(left.T.reshape(-1, inputs, height), full_matrices=False)
    o, so, x = np.linalg.svd(right.reshape(-1, outputs, width), full_matrices=False)
    sizes = values[:, None, None] * si[:, :, None] * so[:, None, :]
    largest = np.argsort(-sizes.ravel(), kind="stable")[:rank]
    term, a, b = np.unravel_index(largest, sizes.shape)
    factors = [o[term, :, b].T * sizes.ravel()[largest], i[term, :, a].T, y[term, a].T, x[term, b].T]
    return _balanced(factors)


def _balanced(factors: list[Array]) -> list[Array]:
    norms = [np.maximum(np.linalg.norm(factor, axis=0), np.finfo(float).tiny) for factor in factors]
    shared = np.exp(np.mean([np.log(norm) for norm in norms], axis=0))
    return [factor * (shared / norm) for factor, norm in zip(factors, norms, strict=True)]


def _leading_rows(tensor: Array, count: int) -> Array:
    """The leading left singular vectors (n, count) of a tensor's first unfolding (n, ...)."""
    unfolded = tensor.reshape(len(tensor), -1)
    return leading_vectors(unfolded @ unfolded.T, count)


def leading_vectors(gram: Array, count: int) -> Array:
    """Return the eigenvectors (n, count) of the largest eigenvalues of a symmetric matrix (n, n)."""
    return np.asarray(np.linalg.eigh(gram)[1][:, ::-1][:, :count])
