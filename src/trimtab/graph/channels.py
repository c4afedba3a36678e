"""Channels along a program: what a value per channel of the producers is for every tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trimtab.graph.node import Array
from trimtab.graph.operators import OPERATORS
from trimtab.graph.program import Graph

__all__ = ["propagate"]


def propagate(graph: Graph, produced: Mapping[str, Array], fixed: int | bool = -1) -> dict[str, Array]:
    """Carry one value per channel from the producers along every tensor.

    `produced` holds an array (O,) for each node that makes channels; input channels are `fixed`. Returns an array (C,)
    or (F,) for every tensor; additions and products take their first operand's, attention its values'.
    """
    carried = {graph.input: np.full(graph.input_shape[0], fixed)}
    for node in graph:
        if node.makes_channels:
            carried[node.name] = produced[node.name]
        else:
            inputs = [carried[name] for name in node.inputs]
            channels = graph.shapes[node.name][0]
            carried[node.name] = OPERATORS[node.kind].carry(node, inputs, channels)
    return carried
