"""Decisions about a network: tracing, channel groups, choices, policies, and applying them."""

from trimtab.graph import Graph, Node, Norm
from trimtab.spaces.candidate import Candidate, apply
from trimtab.spaces.numbers.formats import DEFAULT_FORMATS, FORMATS, LayerFormat, WeightFormat
from trimtab.spaces.numbers.quantise import Quantisation
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.repairs.repair import Calibration, Repairs, compress
from trimtab.spaces.space import Knob, Options, Removal, Space, build_space
from trimtab.spaces.tracing import UnsupportedNetwork, trace

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "Calibration",
    "Candidate",
    "Graph",
    "Knob",
    "LayerDecision",
    "LayerFormat",
    "Node",
    "Norm",
    "Options",
    "Policy",
    "Quantisation",
    "Removal",
    "Repairs",
    "Space",
    "UnsupportedNetwork",
    "WeightFormat",
    "apply",
    "build_space",
    "compress",
    "trace",
]
