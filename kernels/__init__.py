"""The native engine: graphs of operators, compiled for this machine's kernels."""

from trimtab.errors import UnsupportedOperator
from trimtab.graph import Graph, Node, Quant
from trimtab.graph.passes import fuse
from trimtab.kernels.artefact import load, read_graph, save, stored_bytes
from trimtab.kernels.errors import ArtefactError
from trimtab.kernels.isa import active_level, build, cpu, emulated_levels, has_bf16, levels, methods
from trimtab.kernels.session import Session, TimeSlice

__all__ = [
    "ArtefactError",
    "Graph",
    "Node",
    "Quant",
    "Session",
    "TimeSlice",
    "UnsupportedOperator",
    "active_level",
    "build",
    "cpu",
    "emulated_levels",
    "fuse",
    "has_bf16",
    "levels",
    "load",
    "methods",
    "read_graph",
    "save",
    "stored_bytes",
]
