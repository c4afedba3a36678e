"""Decisions about a network: tracing, channel groups, choices, policies, and applying them."""

from trimtab.spaces.candidate import Candidate, apply
from trimtab.spaces.formats import DEFAULT_FORMATS, FORMATS, LayerFormat, WeightFormat
from trimtab.spaces.network import Network, Norm, Op
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.quantise import Quantisation
from trimtab.spaces.repair import Calibration, Repairs, compress
from trimtab.spaces.space import Knob, Options, Removal, Space, build_space
from trimtab.spaces.trace import UnsupportedNetwork, trace

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "Calibration",
    "Candidate",
    "Knob",
    "LayerDecision",
    "LayerFormat",
    "Network",
    "Norm",
    "Op",
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
