"""The number of parameters of a network under a policy, from shapes alone."""

from __future__ import annotations

from trimtab.spaces.factorisation import Geometry, parts_of
from trimtab.spaces.forms import sharing
from trimtab.spaces.forms.sparsity import parse_pattern
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import LayerShape, Space

__all__ = ["count_parameters"]


def count_parameters(space: Space, policy: Policy) -> int:
    """Return how many numbers the network under a policy holds: weights, biases, and parameters per channel.

    Batch norms count as the biases that they fold into. Of a sparse layer those weights count that its pattern leaves,
    of one that shares weights the shared values, of a factorised one its factors; scales of integers do not count.
    """
    widths = space.widths(policy.channels)
    # Bias correction gives every layer of a network that is not as given a bias.
    biased = {op.name for op in space.network.layers if op.bias is not None or policy != space.base()}
    per_channel = sum(
        array.size // space.network.shapes[op.name][0] * widths[op.name]
        for op in space.network
        if not op.is_layer
        for array in op.weights.values()
    )
    return per_channel + sum(
        _weights(shape) + shape.outputs * (shape.op.name in biased) for shape in space.layer_shapes(policy)
    )


def _weights(shape: LayerShape) -> int:
    decision, layer = shape.decision, Geometry.of(shape.op, shape.inputs, shape.outputs)
    if decision.sharing is not None:
        return sharing.parameters(layer.weight_shape, decision.sharing)[0]
    weights = sum(part.weights for part in parts_of(layer, decision.factorisation, decision.rank))
    return weights if decision.pattern is None else round(weights * (1 - parse_pattern(decision.pattern).zeros))
