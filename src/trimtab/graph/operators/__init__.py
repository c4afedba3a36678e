"""The operators, one class each."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.graph.operators.base import Operator
from trimtab.graph.operators.elementwise import Activation, Add, ChannelAffine, Mul, PReLU, Quantize
from trimtab.graph.operators.layers import Conv2d, Linear
from trimtab.graph.operators.moving import ChannelMap, Concat, DepthToSpace, Flatten, Subsample
from trimtab.graph.operators.pooling import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    GlobalAvgPool2d,
    GroupNorm,
    MaxPool2d,
    Upsample,
)
from trimtab.graph.operators.tokens import Attention, LayerNorm, Tokens

__all__ = ["OPERATORS", "Operator"]

OPERATORS: Mapping[str, Operator] = {
    "quantize": Quantize(),
    "conv2d": Conv2d(),
    "linear": Linear(),
    "activation": Activation(),
    "add": Add(),
    "mul": Mul(),
    "concat": Concat(),
    "max_pool2d": MaxPool2d(),
    "avg_pool2d": AvgPool2d(),
    "global_avg_pool2d": GlobalAvgPool2d(),
    "adaptive_avg_pool2d": AdaptiveAvgPool2d(),
    "flatten": Flatten(),
    "channel_map": ChannelMap(),
    "subsample": Subsample(),
    "layer_norm": LayerNorm(),
    "tokens": Tokens(),
    "attention": Attention(),
    "prelu": PReLU(),
    "channel_affine": ChannelAffine(),
    "group_norm": GroupNorm(),
    "upsample": Upsample(),
    "depth_to_space": DepthToSpace(),
}
