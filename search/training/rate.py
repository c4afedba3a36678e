"""The rate of a network in training: its weights are rounded so that what is stored of them fits into some bytes.

Entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989, IEEE TASSP 37(1); of networks: Wiedemann et al. 2018,
arXiv:1812.07520): a weight becomes the level of the least squared error plus a price for each of the bits that the
level takes. One price, in squared steps per bit, holds for all layers. The bits are those of the nearest levels, by how
often the layer has each, and not found anew from what the price makes of them, as in these papers: that rewards what
is frequent for being so, and layers of few levels fall to a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import floor

import torch
from torch import Tensor

from trimtab.search.training.quantisers import WeightQuantiser, cells

__all__ = ["Rate", "hold"]

#: The logarithms to base 2 of the lowest and the highest price, and how often what is between them is halved.
LOWEST, HIGHEST, HALVINGS = -12.0, 12.0, 14


class Rate:
    """The bits of one layer's weights (O, ...), as its quantiser rounds them."""

    def __init__(self, quantiser: WeightQuantiser, weight: Tensor) -> None:
        self.quantiser = quantiser
        self.levels = quantiser.whole_levels
        self.ratios = quantiser.ratio(weight).flatten().sort().values
        counts = self._counts(torch.zeros_like(self.levels))
        #: Of each level (L,); one weight more at each, so that none is out of reach.
        self.bits = torch.log2((len(self.ratios) + len(counts)) / (counts + 1))
        # No price moves the zeros of a pattern.
        self.bits[self.levels == 0] = self.bits.min()

    def charge(self, price: float) -> float:
        """Charge the quantiser's levels a price for each of their bits; return the bits of all weights then."""
        self.quantiser.costs.copy_(price * self.bits)
        counts = self._counts(self.quantiser.costs)
        shares = counts[counts > 0] / len(self.ratios)
        return -float((shares * shares.log2()).sum()) * len(self.ratios)

    def _counts(self, costs: Tensor) -> Tensor:
        """How many weights are at each level."""
        chosen, borders = cells(self.levels, costs)
        ends = torch.tensor([0, len(self.ratios)])
        places = torch.searchsorted(self.ratios, borders, right=True)
        counts = torch.zeros_like(costs)
        counts[chosen] = torch.cat([ends[:1], places, ends[1:]]).diff().to(costs.dtype)
        return counts


def hold(layers: Sequence[Rate], most: float, stored: Callable[[], int]) -> None:
    """Charge what layers store as little as keeps the bytes that are `stored` of them, and of all else, within `most`.

    Where no price does, nothing is charged.
    """
    goal = bits = _charge(layers, 0.0)
    for attempt in count(1):
        over = stored() - floor(most)
        if over <= 0:
            return
        # What is coded is a little more than its entropy, so that one step may not be enough.
        goal = min(goal, bits) - 8 * over * attempt
        price = _lowest_price(layers, goal)
        bits = _charge(layers, price)
        if not price:
            return


def _lowest_price(layers: Sequence[Rate], goal: float) -> float:
    """The lowest price at which all weights have no more than so many bits; 0 where there is none."""
    low, high = LOWEST, HIGHEST
    if _charge(layers, 2**high) > goal:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _charge(layers, 2**middle) <= goal else (middle, high)
    return float(2**high)


def _charge(layers: Sequence[Rate], price: float) -> float:
    return sum(layer.charge(price) for layer in layers)
