"""Right answers: on which images a network was right, and by how much two networks differ on the same ones."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Answers", "Difference", "Lost", "lost", "paired"]

#: Halvings of an interval of length 1 that a bound is found by: to 1e-9.
HALVINGS = 30


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


@dataclass(frozen=True)
class Lost:
    """The accuracy that a network lost: `value`, a share of the images in [-1, 1], less than 0 where it gained; and the
    `bound` in [0, 1] that what it loses on all such images is not above, with the confidence that was asked for."""

    value: float
    bound: float


def lost(given: Answers, answers: Answers, confidence: float) -> Lost:
    """Return what `answers` lose of the network as `given`, on the same images; `confidence` in (0.5, 1) is one-sided.

    The bound is that of the score test of a paired difference (Tango 1998, Statistics in Medicine 17, 891-908), with a
    continuity correction, so that it holds where hardly an image tells the two apart, too: of n images on which they
    agree, it is about 3.6 / n at 95 %.
    """
    if given.images != answers.images:
        raise ValueError(f"answers to {given.images} and to {answers.images} images are not answers to the same ones")
    images = given.images
    worse, better = (given.bits & ~answers.bits).bit_count(), (answers.bits & ~given.bits).bit_count()
    value = (worse - better) / images
    quantile = NormalDist().inv_cdf(confidence)
    low, high = max(value, 0.0), 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _is_refuted(middle, worse, better, images, quantile):
            high = middle
        else:
            low = middle
    return Lost(value, high)


def _is_refuted(loss: float, worse: int, better: int, images: int, quantile: float) -> bool:
    """Whether so few images are lost that a true loss, in (0, 1), is ruled out: Tango's equations 7 and 8.

    The variance is that under the loss in question, with the likeliest chance to gain an image.
    """
    linear = (2 * images - worse + better) * loss - worse - better
    root = math.sqrt(linear**2 + 8 * images * better * loss * (1 - loss))
    gained = (root - linear) / (4 * images)
    surplus = images * loss - (worse - better + 0.5)
    return surplus > quantile * math.sqrt(max(images * (2 * gained + loss - loss**2), 0.0))
