"""Factorised layers in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trimtab.errors import BadInput
from trimtab.graph import Array, Graph, Node
from trimtab.spaces.factorisation.geometry import Geometry
from trimtab.spaces.factorisation.registry import FACTORISATIONS, Factorisation
from trimtab.threads import one_blas_thread

__all__ = ["factor_names", "factor_ops", "factorise", "factorises", "kernel_of", "layer_of", "plain_factors"]

#: What follows the layer's name in the names of all factors but the last one, which keeps the name.
SUFFIX = "/factor"


def factor_names(layer: str, count: int) -> list[str]:
    """Return the names of a layer's factors: `<layer>/factor`, `<layer>/factor2`, ..., `<layer>`."""
    return [f"{layer}{SUFFIX}{i if i > 1 else ''}" for i in range(1, count)] + [layer]


def layer_of(name: str) -> str:
    """Return the layer that a factor belongs to, or the name itself."""
    return name.partition(SUFFIX)[0]


def factorises(factorisation: Factorisation, op: Node) -> bool:
    """Whether a layer can be factorised so."""
    return op.is_layer and factorisation.applies(Geometry.of(op))


def factorise(network: Graph, decided: Mapping[str, tuple[str, int]]) -> Graph:
    """Replace each layer in `decided` by the factors of its (factorisation, rank).

    A layer that cannot be factorised so, or a rank beyond its full rank, is a `BadInput`.
    """
    ops: list[Node] = []
    for op in network:
        if op.name in decided:
            name, rank = decided[op.name]
            ops.extend(factor_ops(op, name, plain_factors(op, name, rank)))
        else:
            ops.append(op)
    return replace(network, nodes=tuple(ops))


def kernel_of(op: Node) -> Array:
    """Return a layer's weight as (O, I, kh, kw) in float64; a linear layer's kernel is 1 x 1."""
    if not op.is_layer:
        raise ValueError(f"{op.name} has no weight")
    return op.weight.reshape(*op.weight.shape[:2], *(op.weight.shape[2:] or (1, 1))).astype(np.float64)


def plain_factors(op: Node, name: str, rank: int) -> list[Array]:
    """Return the factors, in float64, that are nearest to a layer's weight.

    A layer that cannot be factorised so, or a rank beyond its full rank, is a `BadInput`.
    """
    factorisation = FACTORISATIONS[name]
    if not factorises(factorisation, op):
        raise BadInput(f"layer {op.name!r} cannot be factorised by {name!r}: {factorisation.needs}")
    limit = factorisation.full_rank(Geometry.of(op))
    if not 1 <= rank <= limit:
        raise BadInput(f"layer {op.name!r}: rank {rank} is not between 1 and {limit}")
    with one_blas_thread():
        return factorisation.factors(kernel_of(op), rank)


def factor_ops(op: Node, name: str, factors: Sequence[Array]) -> list[Node]:
    """Return the layers that hold the factors of `op`; the last has its bias."""
    layers = FACTORISATIONS[name].layers(Geometry.of(op), factors[-1].shape[1])
    ops: list[Node] = []
    inputs = op.inputs
    for part, layer, factor in zip(factor_names(op.name, len(layers)), layers, factors, strict=True):
        weight = np.ascontiguousarray(factor.reshape(layer.weight_shape), np.float32)
        ops.append(Node(layer.kind, part, inputs, layer.attrs, {"weight": weight}))
        inputs = (part,)
    return [*ops[:-1], replace(ops[-1], norm=op.norm).with_weights(bias=op.bias)]
