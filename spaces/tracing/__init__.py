"""Tracing of PyTorch modules to programs: a walk over what torch.fx sees, with one handler for each operator."""

from trimtab.spaces.tracing import arithmetic, channels, layers, pooling, shapes, tokens
from trimtab.spaces.tracing.converter import UnsupportedNetwork
from trimtab.spaces.tracing.front_door import plain_module
from trimtab.spaces.tracing.trace import trace

__all__ = [
    "UnsupportedNetwork",
    "arithmetic",
    "channels",
    "layers",
    "plain_module",
    "pooling",
    "shapes",
    "tokens",
    "trace",
]
