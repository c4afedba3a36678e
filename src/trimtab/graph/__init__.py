"""The one form of a network: a program of operators, in NumPy, with what is known of every operator and tensor."""

from trimtab.graph.node import ACTIVATIONS, LARGEST_BF16, LAYERS, MODES, PRECISIONS, Array, Node, Norm, Quant, Shape
from trimtab.graph.operators import OPERATORS, Operator
from trimtab.graph.program import Graph, check_graph, is_integer

__all__ = [
    "ACTIVATIONS",
    "LARGEST_BF16",
    "LAYERS",
    "MODES",
    "OPERATORS",
    "PRECISIONS",
    "Array",
    "Graph",
    "Node",
    "Norm",
    "Operator",
    "Quant",
    "Shape",
    "check_graph",
    "is_integer",
]
