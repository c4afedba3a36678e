"""The size that entropy coding is expected to leave of a layer, before any candidate exists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.evaluators.lowering import weight_arrays
from trimtab.graph import Node
from trimtab.kernels.packing import bytes_of, estimate
from trimtab.spaces.numbers.formats import LayerFormat, WeightFormat
from trimtab.spaces.policy import LayerDecision

__all__ = ["Coded"]

#: Weights that the estimate looks at, in whole output channels: their distribution is that of all the others.
SAMPLE = 2**15

#: What is added to the estimate: repairs and rounding that makes up for its errors change the weights a little.
CAUTION = 0.01


@dataclass(frozen=True)
class Coded:
    """Bytes of a layer's weights in a format: `fixed` for their table, and `rate` for every weight."""

    format: WeightFormat
    fixed: float
    rate: float

    @classmethod
    def of(cls, op: Node, to: WeightFormat, pattern: str | None = None) -> Coded:
        """Estimate them from the untouched layer in a format, its smallest weights zero where there is a pattern."""
        op = op.folded()
        if not op.is_layer:
            return cls(to, 0.0, to.stored_bits / 8)
        some = op.weight[:: -(-op.weight.size // SAMPLE)]
        decision = LayerDecision(LayerFormat(to), pattern=pattern)
        weight = weight_arrays(op.with_weights(weight=some), decision)["weight"]
        once, twice = estimate(weight), estimate(np.concatenate([weight, weight]))
        return cls(to, 2 * once - twice, (twice - once) / weight.size)

    def bytes(self, weights: int) -> float:
        """Return the bytes expected for so many of the layer's weights, or for its factors with so many."""
        return min(bytes_of(weights, self.format.stored_bits), (1 + CAUTION) * (self.fixed + self.rate * weights))
