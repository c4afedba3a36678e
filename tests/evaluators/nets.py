"""Networks and policies that the evaluators are tested on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from tests.spaces.conftest import TOYS, images, randomise_norms
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.spaces import (
    FORMATS,
    Calibration,
    Candidate,
    LayerFormat,
    Options,
    Policy,
    Space,
    WeightFormat,
    build_space,
    compress,
)
from trimtab.spaces.factorisation import FACTORISATIONS
from trimtab.spaces.numbers.grids import GRIDS
from trimtab.spaces.zoo import build

#: Every grid of weights at every number of bits that a space can offer.
GRID_FORMATS = tuple(
    WeightFormat(bits, grid.name)
    for grid in GRIDS.values()
    for bits in grid.offered
    if LayerFormat.of(bits, 8) in FORMATS
)


class ResidualLinear(nn.Module):
    """Linear layers only, one with a residual, and a tensor that three layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 16 * 16, 24)
        self.second, self.left, self.right = nn.Linear(24, 24), nn.Linear(24, 12), nn.Linear(24, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.flatten(1)))
        x = F.relu(x + self.second(x))
        result: Tensor = self.last(F.relu(self.left(x) + self.right(x)))
        return result


class ByValues(nn.Module):
    """Layers of each kind, with normal weights, all of a size at which their values have a say in the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.winograd = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.strided, self.depthwise = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise, self.linear = nn.Conv2d(32, 32, 1), nn.Linear(32 * 8 * 8, 128)
        for layer in self.children():
            nn.init.normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.winograd, self.strided, self.depthwise, self.pointwise):
            x = F.relu(layer(x))
        result: Tensor = self.linear(x.flatten(1))
        return result


TINY = {**TOYS, "linear": ResidualLinear}
MADE = {**TINY, "values": ByValues}
NETS = tuple(TINY)

#: What the space of each of them offers.
OFFERED = (
    *FORMATS,
    LayerFormat.of(2, 8, "codebook"),
    LayerFormat.of(3, 8, "power2"),
    LayerFormat.of(4, 4, "bases"),
)


@cache
def model_of(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MADE[name]() if name in MADE else build(name)
    return randomise_norms(model)


@cache
def space_of(name: str) -> Space:
    return build_space(
        model_of(name), images(1), Options(channels=5, bits=OFFERED, factorisations=tuple(FACTORISATIONS))
    )


@cache
def calibration_of(name: str) -> Calibration:
    return Calibration.of(space_of(name), images(32, seed=1).numpy())


@cache
def candidate_of(name: str, policy: Policy) -> Candidate:
    return compress(space_of(name), policy, calibration_of(name))


def random_policies(space: Space, count: int, seed: int = 0) -> list[Policy]:
    """Every kind of decision at random, untouched and uniform int8 first."""
    rng = np.random.default_rng(seed)
    drawn = [space.decode([int(rng.integers(len(knob.choices))) for knob in space.knobs]) for _ in range(count)]
    return [space.base(), space.int8(), *drawn]


def pictures(count: int, seed: int = 5) -> np.ndarray:
    return images(count, seed).numpy()
