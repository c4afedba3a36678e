"""Grades: findings of a metric on a network, so kept that two networks can be compared on the same images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SHARES", "Answers", "Difference", "Graded", "Lost", "Resampled", "Scale", "Values", "lost", "paired"]

#: Halvings of an interval of length 1 that a bound is found by: to 1e-9.
HALVINGS = 30

#: Agents are told 1 / (1 + exp(-SLOPE * gain)): near the network as given, a hundredth of its metric is one of theirs.
SLOPE = 4.0


@dataclass(frozen=True)
class Scale:
    """The scale of a metric: whether more of it is better, and what differences are measured in: shares, where it lies
    in [0, 1] (`given` None), otherwise multiples of the metric of the network as `given`."""

    higher: bool = True
    given: float | None = None

    @property
    def unit(self) -> float:
        """What a difference is divided by."""
        return abs(self.given or 0.0) or 1.0

    def gain(self, value: float, other: float) -> float:
        """Return by how much a value is better than another one."""
        return (value - other if self.higher else other - value) / self.unit

    def accuracy(self, value: float) -> float:
        """Return a value as agents take it, in [0, 1], higher is better: of a share itself; otherwise it is 0.5 of the
        network as given."""
        if self.given is None:
            return min(1.0, max(0.0, value if self.higher else 1 - value))
        # Beyond these ends nothing is told apart, and nothing overflows.
        return 1 / (1 + math.exp(-min(max(SLOPE * self.gain(value, self.given), -500.0), 500.0)))

    def said(self, value: float) -> str:
        """Return a value in words: "91.20%" of a share, else "0.1234"."""
        return f"{value:.2%}" if self.given is None else f"{value:.4g}"


#: The scale of what lies in [0, 1], higher is better.
SHARES = Scale()


@dataclass(frozen=True)
class Graded(ABC):
    """A finding of a metric on a network and so many `images`: its `value`, and what comparing it takes."""

    images: int

    @property
    @abstractmethod
    def value(self) -> float:
        """The metric, in its own units."""

    @property
    def scale(self) -> Scale:
        """The metric's scale."""
        return SHARES

    @property
    def accuracy(self) -> float:
        """The value as agents take it: in [0, 1], higher is better."""
        return self.scale.accuracy(self.value)

    @property
    @abstractmethod
    def key(self) -> Any:
        """What orders those of one kind, the same in every process."""

    def said(self) -> str:
        """Return the value in words."""
        return self.scale.said(self.value)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graded:
        """Read what `to_json` wrote."""
        if "right" in data:
            return Answers(data["images"], int.from_bytes(b64decode(data["right"]), "big"))
        scale = Scale(**data["scale"])
        if "values" in data:
            return Values(data["images"], tuple(_unpacked(data["values"])), scale)
        return Resampled(data["images"], data["value"], tuple(_unpacked(data["resampled"])), scale)


@dataclass(frozen=True)
class Answers(Graded):
    """The right answers among `images`: the first image's is the highest of as many bits of `bits`."""

    bits: int

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_]) -> Answers:
        """Return the answers, (N,) with True for a right one."""
        return cls(len(right), int.from_bytes(np.packbits(right).tobytes(), "big") >> -len(right) % 8)

    @property
    def value(self) -> float:
        """The share of right answers, in [0, 1]."""
        return self.bits.bit_count() / self.images

    @property
    def key(self) -> int:
        """What orders those of one kind: the bits."""
        return self.bits

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the bits as base64, 168 characters for 1,000 images."""
        packed = self.bits.to_bytes(math.ceil(self.images / 8), "big")
        return {"images": self.images, "right": b64encode(packed).decode("ascii")}


@dataclass(frozen=True)
class Values(Graded):
    """A metric's values on single images, whose mean it is: `each` (N,), in float32's precision."""

    each: tuple[float, ...]
    measured_in: Scale = SHARES

    @classmethod
    def of(cls, each: npt.ArrayLike, scale: Scale = SHARES) -> Values:
        """Return the values (N,)."""
        rounded = np.asarray(each, np.float32)
        return cls(len(rounded), tuple(rounded.tolist()), scale)

    @property
    def value(self) -> float:
        """The mean."""
        return math.fsum(self.each) / self.images

    @property
    def scale(self) -> Scale:
        """The metric's scale."""
        return self.measured_in

    @property
    def key(self) -> tuple[float, ...]:
        """What orders those of one kind: the values."""
        return self.each

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: float32 as base64, 5,336 characters for 1,000 images."""
        return {"images": self.images, "values": _packed(self.each), "scale": asdict(self.scale)}


@dataclass(frozen=True)
class Resampled(Graded):
    """A metric of all images together that is no mean of single ones': its `of_all`, and what it is on `resampled` sets
    of as many images, drawn with replacement, the same for every network (the paired bootstrap: Efron and Tibshirani
    1993, chapter 6)."""

    of_all: float
    resampled: tuple[float, ...]
    measured_in: Scale = SHARES

    @classmethod
    def of(cls, images: int, value: float, resampled: npt.ArrayLike, scale: Scale = SHARES) -> Resampled:
        """Return a metric's value, and those on the resampled sets (B,)."""
        return cls(images, float(value), tuple(np.asarray(resampled, np.float32).tolist()), scale)

    @property
    def value(self) -> float:
        """The metric of all images."""
        return self.of_all

    @property
    def scale(self) -> Scale:
        """The metric's scale."""
        return self.measured_in

    @property
    def key(self) -> tuple[float, ...]:
        """What orders those of one kind: the values on resampled sets."""
        return self.resampled

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        packed = _packed(self.resampled)
        return {"images": self.images, "value": self.of_all, "resampled": packed, "scale": asdict(self.scale)}


@dataclass(frozen=True)
class Difference:
    """A difference of two networks' metrics, more than 0 where the first is better: `value`, a share or in the scale's
    units, and its standard `error`."""

    value: float
    error: float


def paired(a: Graded, b: Graded) -> Difference:
    """Return by how much a is better than b on the same images.

    What both find easy or hard is in neither metric by chance, as it would be for two samples of images. Of right
    answers, only images that one of the two answers rightly and the other wrongly tell them apart (McNemar 1947); the
    values of single images are compared image by image, those of resampled sets set by set.
    """
    _check_same(a, b)
    if isinstance(a, Answers) and isinstance(b, Answers):
        discordant, surplus = (a.bits ^ b.bits).bit_count(), a.bits.bit_count() - b.bits.bit_count()
        return Difference(surplus / a.images, math.sqrt(discordant - surplus**2 / a.images) / a.images)
    value = a.scale.gain(a.value, b.value)
    if isinstance(a, Values) and isinstance(b, Values):
        apart = np.subtract(a.each, b.each).std() / math.sqrt(a.images)
    elif isinstance(a, Resampled) and isinstance(b, Resampled):
        apart = np.subtract(a.resampled, b.resampled).std(ddof=1)
    else:
        raise ValueError(f"{type(a).__name__} and {type(b).__name__} are not of one metric")
    return Difference(value, float(apart) / a.scale.unit)


@dataclass(frozen=True)
class Lost:
    """The part of the metric that a network lost: `value`, a share (or in the scale's units), less than 0 where it
    gained; and the `bound` that what it loses on all such images is not above, with the confidence asked for."""

    value: float
    bound: float


def lost(given: Graded, answers: Graded, confidence: float) -> Lost:
    """Return what `answers` lose of the network as `given`, on the same images; `confidence` in (0.5, 1) is one-sided.

    For right answers, the bound is that of the score test of a paired difference (Tango 1998, Statistics in Medicine
    17, 891-908), with a continuity correction, so that it holds where hardly an image tells the two apart, too: of n
    images on which they agree, it is about 3.6 / n at 95 %. For other metrics it has the form of Wilson's bound of a
    share (1927, JASA 22, 209-212), corrected alike, with the paired standard error in the place of the share's: that of
    the normal distribution where many images tell the two apart, and 3.2 / n, of what is counted in, where none does.
    """
    _check_same(given, answers)
    quantile = NormalDist().inv_cdf(confidence)
    if not isinstance(given, Answers) or not isinstance(answers, Answers):
        difference, images = paired(given, answers), given.images
        centre = difference.value + quantile**2 / (2 * images) + 1 / (2 * images)
        return Lost(difference.value, centre + quantile * math.hypot(difference.error, quantile / (2 * images)))
    images = given.images
    worse, better = (given.bits & ~answers.bits).bit_count(), (answers.bits & ~given.bits).bit_count()
    value = (worse - better) / images
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


def _check_same(a: Graded, b: Graded) -> None:
    if a.images != b.images:
        raise ValueError(f"answers to {a.images} and to {b.images} images are not answers to the same ones")


def _packed(values: tuple[float, ...]) -> str:
    return b64encode(np.asarray(values, "<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> list[float]:
    found: list[float] = np.frombuffer(b64decode(text), "<f4").tolist()
    return found
