"""Block reconstruction: the layers of a residual block fitted together, so that its sum is what it used to be.

After BRECQ (Li et al. 2021, arXiv:2102.05426, section 3.2), on weights in float: on its own, each layer is fitted to
what it was; together they only owe what leaves the block. Gradients stay within the block and no label is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.graph import Array, Graph, Node
from trimtab.spaces.execute import apply_layer, apply_op

__all__ = ["block_of", "tune"]

#: Images per step, and the first step's rate, which falls to zero along a cosine. Four times the rate gains nothing on
#: ResNet-20 and costs ResNet-56 several points.
BATCH = 64
RATE = 5e-4


def block_of(network: Graph, layer: str) -> tuple[Node, ...]:
    """Return the operators that end with `layer`, back to the tensor that others read too, or that has two sources."""
    block = [network.node(layer)]
    while True:
        source = block[0].inputs[0]
        if source == network.input or len(network.readers(source)) > 1 or len(network.node(source).inputs) > 1:
            return tuple(block)
        block.insert(0, network.node(source))


def run_block(block: Sequence[Node], x: Tensor) -> list[Tensor]:
    """Return the output of every operator of a block for its input (N, ...)."""
    outputs = []
    for op in block:
        x = apply_op(op, [x])
        outputs.append(x)
    return outputs


def tune(
    block: Sequence[Node], x: Tensor, other: Tensor, wanted: Tensor, rectified: bool, steps: int, seed: int = 0
) -> tuple[Node, ...]:
    """Return the block with weights for which its output on `x` plus `other` is nearer to `wanted`, (N, O, ...) each.

    Adam on the squared error, behind a ReLU if `rectified`. The same arguments give the same weights, and a block with
    nothing to make up for stays as it is.
    """
    weights = {op.name: _leaf(op.weight) for op in block if op.is_layer}
    biases = {op.name: _leaf(op.bias) for op in block if op.bias is not None}
    optimiser = torch.optim.Adam([*weights.values(), *biases.values()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    with torch.enable_grad():
        for _ in range(steps):
            images = torch.from_numpy(np.sort(rng.choice(len(x), min(BATCH, len(x)), replace=False)))
            y = x[images]
            for op in block:
                layer = weights.get(op.name)
                y = apply_op(op, [y]) if layer is None else apply_layer(op, y, layer, biases.get(op.name))
            y, goal = y + other[images], wanted[images]
            error = (y.relu() - goal.relu() if rectified else y - goal).square().sum(1).mean()
            optimiser.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return tuple(
        op if not op.is_layer else op.with_weights(weight=_array(weights[op.name]), bias=_array(biases.get(op.name)))
        for op in block
    )


def _leaf(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32)).requires_grad_()


def _array(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.detach().numpy()
