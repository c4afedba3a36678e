"""A network as trimtab sees it: operators with their weights, in execution order, in NumPy.

The operators carry the names and attributes of `trimtab.kernels.OPERATORS`; a layer keeps its batch norm beside it,
because pruning re-estimates the statistics before they are folded into the weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Network", "Norm", "Op"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Norm:
    """Batch norm in inference form: y = (x - mean) / sqrt(var + eps) * weight + bias, each array (C,)."""

    weight: Array
    bias: Array
    mean: Array
    var: Array
    eps: float

    @property
    def scale(self) -> Array:
        """The factor that folding multiplies onto each output channel, (C,)."""
        return np.asarray(self.weight / np.sqrt(self.var + self.eps), dtype=np.float32)

    def select(self, channels: Array) -> Norm:
        """Return the norm of these channels only."""
        return Norm(self.weight[channels], self.bias[channels], self.mean[channels], self.var[channels], self.eps)


@dataclass(frozen=True, eq=False)
class Op:
    """One operator; `name` is also its output tensor's name, `shape` that tensor's (C, H, W) or (F,).

    `weight` is (O, I/groups, kh, kw) for `conv2d` and (O, I) for `linear`; `bias` and `norm` are (O,). `constants` are
    the arrays of operators that have nothing to decide, by the names of `trimtab.kernels.Node.weights`.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: Array | None = None
    bias: Array | None = None
    norm: Norm | None = None
    constants: Mapping[str, Array] = field(default_factory=dict)

    @property
    def is_layer(self) -> bool:
        """Whether the operator has a weight to decide on."""
        return self.weight is not None

    @property
    def groups(self) -> int:
        """The number of convolution groups; 1 for everything else."""
        return int(self.attrs.get("groups", 1))

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.weight is not None and self.groups > 1 and self.groups == self.weight.shape[0]

    @property
    def is_selection(self) -> bool:
        """Whether the operator takes channels of its input, in any order, and adds none."""
        return self.kind == "channel_map" and min(self.attrs["index"]) >= 0

    @property
    def makes_channels(self) -> bool:
        """Whether the output's channels are not its inputs' channels: dense layers and channel maps that pad."""
        return (self.is_layer and not self.is_depthwise) or (self.kind == "channel_map" and not self.is_selection)

    def folded(self) -> Op:
        """Return the operator with its batch norm folded into weight and bias."""
        if self.norm is None or self.weight is None:
            return self
        scale = self.norm.scale
        weight = self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        bias = self.norm.bias - self.norm.mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        return replace(self, weight=weight.astype(np.float32), bias=bias.astype(np.float32), norm=None)


@dataclass(frozen=True, eq=False)
class Network:
    """Operators in an order in which every input is produced before it is read."""

    input: str
    input_shape: tuple[int, ...]
    ops: tuple[Op, ...]
    output: str

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    @cached_property
    def layers(self) -> tuple[Op, ...]:
        """The operators with weights, in order."""
        return tuple(op for op in self.ops if op.is_layer)

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's shape without the batch; the input's included."""
        return self.input_shape if tensor == self.input else self.op(tensor).shape

    def op(self, name: str) -> Op:
        """Return the operator of this name."""
        return self._index[name]

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        """Return the operators that read a tensor."""
        return self._consumers.get(tensor, ())

    @cached_property
    def _index(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Op, ...]]:
        readers: dict[str, tuple[Op, ...]] = {}
        for op in self.ops:
            for tensor in dict.fromkeys(op.inputs):
                readers[tensor] = (*readers.get(tensor, ()), op)
        return readers

    def folded(self) -> Network:
        """Return the network with every batch norm folded into its layer."""
        return replace(self, ops=tuple(op.folded() for op in self.ops))

    def fingerprint(self) -> str:
        """Return a hash of the structure (operators, names, shapes), not of the weights: 16 hex digits."""
        digest = hashlib.sha256()
        for op in self.ops:
            weight_shape = None if op.weight is None else op.weight.shape
            digest.update(
                repr((op.kind, op.name, op.inputs, op.shape, sorted(op.attrs.items()), weight_shape)).encode()
            )
        return digest.hexdigest()[:16]

    def weights_hash(self) -> str:
        """Return a hash of every weight, bias and norm: 16 hex digits."""
        digest = hashlib.sha256()
        for op in self.ops:
            arrays = [op.weight, op.bias, *(op.constants[name] for name in sorted(op.constants))]
            if op.norm is not None:
                arrays += [op.norm.weight, op.norm.bias, op.norm.mean, op.norm.var]
            for array in arrays:
                if array is not None:
                    digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]
