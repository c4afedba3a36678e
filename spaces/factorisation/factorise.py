"""Factorised layers in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trimtab.errors import BadInput
from trimtab.spaces.factorisation.geometry import Geometry
from trimtab.spaces.factorisation.registry import FACTORISATIONS, Factorisation, one_thread
from trimtab.spaces.network import Array, Network, Op

__all__ = ["factor_names", "factor_ops", "factorise", "factorises", "layer_of"]

#: What follows the layer's name in the names of all factors but the last one, which keeps the name.
SUFFIX = "/factor"


def factor_names(layer: str, count: int) -> list[str]:
    """Return the names of a layer's factors: `<layer>/factor`, `<layer>/factor2`, ..., `<layer>`."""
    return [f"{layer}{SUFFIX}{i if i > 1 else ''}" for i in range(1, count)] + [layer]


def layer_of(name: str) -> str:
    """Return the layer that a factor belongs to, or the name itself."""
    return name.partition(SUFFIX)[0]


def factorises(factorisation: Factorisation, op: Op) -> bool:
    """Whether a layer can be factorised so."""
    return op.is_layer and factorisation.applies(Geometry.of(op))


def factorise(network: Network, decided: Mapping[str, tuple[str, int]]) -> Network:
    """Replace each layer in `decided` by the factors of its (factorisation, rank).

    A layer that cannot be factorised so, or a rank beyond its full rank, is a `BadInput`.
    """
    ops: list[Op] = []
    with one_thread():
        for op in network:
            if op.name not in decided:
                ops.append(op)
                continue
            name, rank = decided[op.name]
            _check(op, name, rank)
            kernel = op.weight if op.kind == "conv2d" else op.weight[:, :, None, None]  # type: ignore[index]
            factors = FACTORISATIONS[name].factors(kernel.astype(np.float64), rank)  # type: ignore[union-attr]
            ops.extend(factor_ops(op, name, factors, network.shape_of(op.inputs[0])))
    return replace(network, ops=tuple(ops))


def factor_ops(op: Op, name: str, factors: Sequence[Array], in_shape: tuple[int, ...]) -> list[Op]:
    """Return the layers that hold the factors of `op`, which reads a tensor of `in_shape`; the last has its bias."""
    layers = FACTORISATIONS[name].layers(Geometry.of(op), factors[-1].shape[1])
    ops, inputs, shape = [], op.inputs, in_shape
    for part, layer, factor in zip(factor_names(op.name, len(layers)), layers, factors, strict=True):
        weight = np.ascontiguousarray(factor.reshape(layer.weight_shape), np.float32)
        shape = layer.out_shape(shape)
        ops.append(Op(layer.kind, part, inputs, shape, layer.attrs, weight))
        inputs = (part,)
    return [*ops[:-1], replace(ops[-1], bias=op.bias, norm=op.norm)]


def _check(op: Op, name: str, rank: int) -> None:
    factorisation = FACTORISATIONS[name]
    if not factorises(factorisation, op):
        raise BadInput(f"layer {op.name!r} cannot be factorised by {name!r}: {factorisation.needs}")
    limit = factorisation.full_rank(Geometry.of(op))
    if not 1 <= rank <= limit:
        raise BadInput(f"layer {op.name!r}: rank {rank} is not between 1 and {limit}")
