"""Training images: how they are varied, and in which batches an epoch takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from trimtab.evaluators.data import Augmentation, Images

__all__ = ["Batch", "Epoch"]

#: Images whose least values are black.
EDGE = 256


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of varied images `x` (N, C, H, W), or vectors (N, F); `indices` (N,) say which of the data set's they
    are."""

    x: Tensor
    indices: np.ndarray


class Epoch:
    """The batches of one epoch, or those of one of several processes: a function of the seed and the epoch's number.

    Every image comes once. Half of the images are mirrored, and in the next epoch the other half (Jordan 2024,
    arXiv:2404.00498, section 3.6), where the data allows it.
    """

    def __init__(self, images: Images, augmentation: Augmentation, seed: int, number: int) -> None:
        self.images, self.augmentation = images, augmentation
        rng = np.random.default_rng([seed, number])
        self.order = rng.permutation(len(images))
        self.shifts = rng.integers(2 * augmentation.shift + 1, size=(len(images), 2))
        coin = np.random.default_rng(seed).integers(2, size=len(images))
        self.mirrored = (coin + number) % 2 == 1 if augmentation.mirror else np.zeros(len(images), bool)

    def steps(self, batch: int) -> int:
        """Return the number of whole batches."""
        return max(1, len(self.images) // batch)

    def batches(self, batch: int, part: int = 0, parts: int = 1, first: int = 0) -> Iterator[Batch]:
        """Yield this part of every batch from the `first` one on; a last one that is not whole is left out."""
        for step in range(first, self.steps(batch)):
            chosen = self.order[step * batch : (step + 1) * batch][part::parts]
            yield Batch(self._varied(chosen), chosen)

    def _varied(self, chosen: np.ndarray) -> Tensor:
        """The images, shifted and mirrored; what comes in at the edges is black, as networks are trained to see it."""
        x, shift = torch.from_numpy(self.images[chosen]), self.augmentation.shift
        if x.ndim != 4:
            return x
        if not shift and not self.augmentation.mirror:
            return x.contiguous(memory_format=torch.channels_last)
        height, width = x.shape[2:]
        padded = torch.from_numpy(self._edge).expand(*x.shape[:2], height + 2 * shift, width + 2 * shift).clone()
        padded[:, :, shift : shift + height, shift : shift + width] = x
        rows = np.arange(height) + self.shifts[chosen, :1]
        columns = np.where(self.mirrored[chosen, None], np.arange(width)[::-1], np.arange(width))
        columns = columns + self.shifts[chosen, 1:]
        each = torch.arange(len(x))[:, None, None]
        down, across = torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]
        # Channels last, as convolutions take them.
        return padded.permute(0, 2, 3, 1)[each, down, across].permute(0, 3, 1, 2)

    @cached_property
    def _edge(self) -> Images:
        return np.asarray(self.images[:EDGE].min((0, 2, 3), keepdims=True))
