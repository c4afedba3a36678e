"""Quantisers of training: weights and tensors become in the forward pass what is stored of them, and their steps are
learned.

Learned step size quantisation (Esser et al. 2020, LSQ, arXiv:1902.08153), for any grid: what is rounded hands its
gradient on within the grid's ends (equation 5), a step gets the rounding's error, or the end that a value was cut off
at (equation 3). The factor of section 2.2, by which steps and weights move alike under plain gradient descent, has no
place here: how far AdamW moves a parameter does not depend on how large its gradients are.

What a level costs (`trimtab.search.training.rate`) moves the borders between levels, and nothing else of this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.graph import Array, Quant
from trimtab.kernels.rounding import round_to_steps, round_to_steps_back
from trimtab.spaces.execute import per_output
from trimtab.spaces.numbers.formats import WeightFormat

__all__ = ["TensorQuantiser", "WeightQuantiser", "cells"]

#: Steps stay above this share of what they were at first.
SMALLEST = 1e-3


class TensorQuantiser(nn.Module):
    """The storage of a tensor with a step that is learned, `growth` times what it was first; the zero point stays."""

    def __init__(self, quant: Quant) -> None:
        super().__init__()
        self.first = quant
        self.growth = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest values that are stored."""
        step = self.growth.clamp(min=SMALLEST) * self.first.scale
        return _ToSteps.apply(x, step, -self.first.zero_point, self.first.top - self.first.zero_point)  # type: ignore[no-any-return]

    @property
    def cuts_below_zero(self) -> bool:
        """Whether it does what a ReLU would do before it."""
        return self.first.zero_point == 0

    def quant(self) -> Quant:
        """Return the storage as it was learned."""
        growth = float(self.growth.detach().clamp(min=SMALLEST))
        return replace(self.first, scale=float(np.float32(growth * self.first.scale)))


class WeightQuantiser(nn.Module):
    """The integers of a layer's weights, first `values` (O, ...), with each output channel's step, first `step` (O,),
    which is learned: `growth` (O,) times what it was.

    Levels that are the layer's own are learned too: each gets the gradients of all weights that are at it (Han et al.
    2016, Deep Compression, arXiv:1510.00149, section 3.3), and stays the integer nearest to what was learned.
    """

    first: Tensor
    #: What a weight pays to be at each of the levels (L,), in squared steps, beside its squared distance.
    costs: Tensor

    def __init__(self, numbers: WeightFormat, values: Array, step: Array) -> None:
        super().__init__()
        own = numbers.levels is None
        levels = np.unique(values) if numbers.levels is None else numbers.levels
        self.register_buffer("first", torch.from_numpy(step.copy()))
        self.growth = nn.Parameter(torch.ones(len(step)))
        #: A level times this is about a weight, and is learned as one.
        self.unit = float(step.mean())
        self.levels = nn.Parameter(torch.from_numpy(levels.astype(np.float32)) * self.unit)
        self.levels.requires_grad_(own and not numbers.is_symmetric)
        self.largest = float(max(1, np.abs(levels.astype(int)).max()))
        self.register_buffer("costs", torch.zeros(len(levels)))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights (O, ...) as they are stored."""
        return _ToLevels.apply(weight, self._step, self._levels, self.costs)  # type: ignore[no-any-return]

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Array, Array]:
        """Return the int8 values of a weight, and their scales (O,)."""
        levels = self.whole_levels
        values = levels[_cheapest(self.ratio(weight), levels, self.costs)]
        return values.to(torch.int8).numpy(), self._step.numpy().astype(np.float32)

    @torch.no_grad()
    def ratio(self, weight: Tensor) -> Tensor:
        """Return a weight (O, ...) in steps."""
        return weight / per_output(self._step, weight)

    @property
    @torch.no_grad()
    def whole_levels(self) -> Tensor:
        """The integers (L,) that are stored, sorted."""
        return self._levels.round()

    @property
    def _step(self) -> Tensor:
        return self.growth.clamp(min=SMALLEST) * self.first

    @property
    def _levels(self) -> Tensor:
        """The levels, sorted, no larger than at first: kernels count on that."""
        free = self.levels / self.unit
        # With the gradients of the free ones, so that what has reached the end comes back.
        return (free + (free.clamp(-self.largest, self.largest) - free).detach()).sort().values


class _ToSteps(torch.autograd.Function):
    """Rounding to whole multiples, low to high, of a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        x = _dense(x)
        y = torch.empty_like(x)
        ctx.numbers = float(step), low, high
        ctx.save_for_backward(x)
        round_to_steps(_flat(x, x), _flat(y, x), *ctx.numbers)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (dy,) = ctx.saved_tensors, gradients
        dx = torch.empty_like(x)
        owed = round_to_steps_back(_flat(x, x), _flat(dy, x), _flat(dx, x), *ctx.numbers)
        return dx, torch.tensor(owed), None, None


def _dense(x: Tensor) -> Tensor:
    """The values without gaps, in one of the two orders that `_flat` knows."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def _flat(tensor: Tensor, like: Tensor) -> Any:
    """The values of a tensor in the order of those of `like` in memory, (n,), without a copy where they lie so."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1).contiguous().detach().numpy()


class _ToLevels(torch.autograd.Function):
    """Rounding to the cheapest of some integers, times a step per output channel."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, levels: Tensor, costs: Tensor) -> Tensor:
        column, whole = per_output(step, weight), levels.round()
        ratio = weight / column
        at = _cheapest(ratio, whole, costs)
        ctx.save_for_backward(ratio, at, step, whole)
        return whole[at] * column

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (ratio, at, step, levels), (dy,) = ctx.saved_tensors, gradients
        inside = (ratio >= levels[0]) & (ratio <= levels[-1])
        dweight = dy * inside
        owed = (dy * levels[at] - dweight * ratio).flatten(1).sum(1)
        dlevels = None
        if ctx.needs_input_grad[2]:
            dlevels = torch.zeros_like(levels).index_add_(0, at.flatten(), (dy * per_output(step, dy)).flatten())
        return dweight, owed, dlevels, None


def cells(levels: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places (K,) of the levels that are cheapest for any ratio, and the borders (K - 1,) between them.

    Of sorted levels (L,), level l with cost c takes (r - l)^2 + c of a ratio r: less r^2, a line in r. Lines cross
    once, and the cheapest ones are their lower envelope.
    """
    crossing = (levels[:, None] + levels) / 2 + (costs[:, None] - costs) / (2 * (levels[:, None] - levels))
    # Of equal levels the cheaper one is taken, and of equally cheap ones the first.
    crossing = crossing.where(~crossing.isnan(), torch.inf)
    later = torch.ones_like(crossing, dtype=torch.bool).tril(-1)
    begins = crossing.where(later, -torch.inf).amax(1)
    ends = crossing.where(later, torch.inf).amin(0)
    chosen = torch.nonzero(begins < ends).flatten()
    return chosen, begins[chosen[1:]]


def _cheapest(ratio: Tensor, levels: Tensor, costs: Tensor) -> Tensor:
    """The place of the cheapest level for each ratio."""
    if not costs.any():
        return torch.bucketize(ratio.contiguous(), (levels[1:] + levels[:-1]) / 2)
    chosen, borders = cells(levels, costs)
    return chosen[torch.bucketize(ratio.contiguous(), borders)]
