"""Right answers: on which images a network was right, and by how much two networks differ on the same ones."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Answers", "Difference", "paired"]


@dataclass(frozen=True)
class Answers:
    """The right answers among `images`: the first image's is the highest of as many bits of `bits`."""

    images: int
    bits: int

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_]) -> Answers:
        """Return the answers, (N,) with True for a right one."""
        return cls(len(right), int.from_bytes(np.packbits(right).tobytes(), "big") >> -len(right) % 8)

    @property
    def accuracy(self) -> float:
        """The share of right answers, in [0, 1]."""
        return self.bits.bit_count() / self.images

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the bits as base64, 168 characters for 1,000 images."""
        packed = self.bits.to_bytes(math.ceil(self.images / 8), "big")
        return {"images": self.images, "right": b64encode(packed).decode("ascii")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answers:
        """Read what `to_json` wrote."""
        return cls(data["images"], int.from_bytes(b64decode(data["right"]), "big"))


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies: `value` in [-1, 1], and its standard `error`."""

    value: float
    error: float


def paired(a: Answers, b: Answers) -> Difference:
    """Return a's accuracy less b's on the same images (McNemar 1947).

    Only images that one of the two answers rightly and the other wrongly tell them apart. What both find easy or hard
    is in neither accuracy by chance, as it would be for two samples of images.
    """
    if a.images != b.images:
        raise ValueError(f"answers to {a.images} and to {b.images} images are not answers to the same ones")
    discordant, surplus = (a.bits ^ b.bits).bit_count(), a.bits.bit_count() - b.bits.bit_count()
    return Difference(surplus / a.images, math.sqrt(discordant - surplus**2 / a.images) / a.images)
