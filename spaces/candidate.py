"""A candidate: the network under a policy, ready for an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from trimtab.graph import Array, Graph, Node
from trimtab.sharing import expand
from trimtab.spaces.channels.prune import kept_channels, prune, selected_channels
from trimtab.spaces.factorisation import factorise, layer_of
from trimtab.spaces.forms.sharing import share, share_integers
from trimtab.spaces.forms.sparsity import sparsify
from trimtab.spaces.numbers.quantise import dequantise, quantise_weight
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.space import Space

__all__ = ["Candidate", "apply", "kept_by", "layer_decisions", "narrowed", "prune_network", "reshape_network"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """The network under a policy.

    `network` is folded, pruned and factorised, its weights in float32; `decisions` has one entry per layer of it
    (all factors of a factorised layer share theirs); `int8` holds (weight int8, scale (O,)) of every layer whose
    weights are integers, and whose float32 weight in `network` is exactly what they stand for; `ranges` holds
    (low, high) of every tensor on the calibration images, and `stored`, by bits, what of it so many bits hold.
    """

    policy: Policy
    network: Graph
    decisions: Mapping[str, LayerDecision]
    int8: Mapping[str, tuple[Array, Array]]
    ranges: Mapping[str, tuple[float, float]]
    stored: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def stored_range(self, tensor: str, bits: int) -> tuple[float, float]:
        """Return the (low, high) that a tensor is stored in with so many bits."""
        return self.stored.get(bits, self.ranges).get(tensor, self.ranges[tensor])


def prune_network(space: Space, policy: Policy) -> tuple[Graph, dict[str, Array]]:
    """Return the pruned network, and which of the space's channels each tensor keeps."""
    return prune(space.network, _kept(space, policy.channels))


def kept_by(space: Space, channels: Mapping[str, int]) -> dict[str, Array]:
    """Return which of the space's channels each tensor keeps where each group keeps this many."""
    return selected_channels(space.network, _kept(space, channels))


def _kept(space: Space, channels: Mapping[str, int]) -> dict[str, Array]:
    kept = {group.name: space.order[group.name][: channels[group.name]] for group in space.groups}
    return kept_channels(space.groups, kept)


def reshape_network(space: Space, policy: Policy) -> tuple[Graph, dict[str, Array]]:
    """Return the pruned and factorised network, and which of the space's channels each tensor keeps."""
    pruned, channels = prune_network(space, policy)
    layers = policy.layers.items()
    ranks = {name: (layer.factorisation, layer.rank) for name, layer in layers if layer.rank is not None}
    return factorise(pruned, ranks), channels


def apply(space: Space, policy: Policy) -> Candidate:
    """Apply a policy without looking at any image: no repair, and no activation ranges."""
    space.check(policy)
    network, _ = reshape_network(space, policy)
    decisions = layer_decisions(network, policy)
    int8: dict[str, tuple[Array, Array]] = {}
    ops = tuple(narrowed(op, decisions[op.name], int8) if op.is_layer else op for op in network)
    return Candidate(policy, replace(network, nodes=ops), decisions, int8, {})


def narrowed(
    op: Node,
    decision: LayerDecision,
    int8: dict[str, tuple[Array, Array]],
    gram: Array | None = None,
    rounding: str = "descent",
) -> Node:
    """Return a layer with the decision's zeros, and weights that are numbers of its format.

    Integers are added to `int8`; `gram` (I, I) is the covariance of the layer's inputs, for
    rounding that makes up for its own errors.
    """
    weight = op.weight
    if decision.sharing is not None:
        return _shared(op, decision, decision.sharing, int8)
    if decision.pattern is not None:
        # Rounding that makes up for its errors would give weights to places that are to have none.
        weight, gram = sparsify(weight, decision.pattern, gram), None
    numbers = decision.format.weight
    if not numbers.is_integer:
        return op.with_weights(weight=numbers.round_floats(weight))
    int8[op.name] = quantise_weight(weight, numbers, gram, rounding)
    return op.with_weights(weight=dequantise(*int8[op.name]))


def _shared(op: Node, decision: LayerDecision, how: str, int8: dict[str, tuple[Array, Array]]) -> Node:
    """A layer whose weights share values; rounding cannot make up for its errors there.

    Only integers are stored shared: repairs rescale the channels of float weights, and so make them differ.
    """
    weight = op.weight
    numbers = decision.format.weight
    if numbers.is_integer:
        int8[op.name] = share_integers(weight, how, numbers)
        return op.with_weights(weight=dequantise(*int8[op.name]))
    dense = expand(how.split()[0], share(weight, how), weight.shape)
    return op.with_weights(weight=numbers.round_floats(dense))


def layer_decisions(network: Graph, policy: Policy) -> dict[str, LayerDecision]:
    """Return each layer's decision; all factors of a factorised layer share theirs."""
    return {op.name: policy.layers[layer_of(op.name)] for op in network.layers}
