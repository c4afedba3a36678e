"""Tracing of PyTorch modules to programs: a walk over what torch.fx sees, with one handler for each operator."""

from trimtab.spaces.tracing import arithmetic, channels, layers, pooling, shapes, tokens
from trimtab.spaces.tracing.converter import UnsupportedNetwork
from trimtab.spaces.tracing.trace import trace

__all__ = [
    "UnsupportedNetwork",
    "arithmetic",
    "channels",
    "layers",
    "pooling",
    "shapes",
    "tokens",
    "trace",
]
