"""Metrics: what a network is worth by its outputs and the targets, and in which direction it is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from trimtab import plugins
from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.answers import SHARES, Answers, Graded, Resampled, Scale, Values
from trimtab.evaluators.targets import Targets, as_tensors, class_count, taken
from trimtab.graph import Array

__all__ = ["METRICS", "TOP_1", "Better", "Metric", "graded", "usual_metric"]

Better: TypeAlias = Literal["higher", "lower"]

#: Sets of images that are drawn for the bootstrap, and the seed that draws them.
RESAMPLES, SEED = 200, 0


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric of a network's outputs (N, ...) and the targets of as many images.

    `function` returns a value for each image, (N,), whose mean is then the metric (or True for a right one); or a
    number for all of them together; or, where there is a `total`, sums (N, K), and `total` makes the metric, (...,), of
    what they come to over images, (..., K). It takes arrays. `better` is the direction. `classes` says whether outputs
    are logits of classes along their axis 1, and targets labels of them (None: whether the targets look like it);
    `share` whether the metric lies in [0, 1] (None: whether it does of the network as given, and higher is better).
    """

    name: str
    function: Callable[[Any, Any], Any]
    better: Better = "higher"
    classes: bool | None = None
    share: bool | None = None
    total: Callable[[Array], Array] | None = None

    @classmethod
    def of(cls, given: object, better: Better | None = None) -> Metric:
        """Return the metric of a name, or "package.module:function", or of any callable of (outputs, targets), which
        takes tensors; `better` is the direction of what is no name of ours, "higher" where nothing is said. Anything
        else is a `BadInput`. An import path runs the code that it names."""
        if isinstance(given, str) and given in METRICS:
            known = METRICS[given]
            if better not in (None, known.better):
                raise BadInput(f"of {given} {known.better} is better, not {better}")
            return known
        if isinstance(given, str) and ":" not in given:
            raise unknown_name("metric", given, METRICS)
        if better not in (None, "higher", "lower"):
            raise BadInput(f"of a metric 'higher' or 'lower' is better, not {better!r}")
        name, function = given, given
        if isinstance(given, str):
            with plugins.running(f"metric {given!r}"):
                function = plugins.imported(given)
        else:
            own = given if hasattr(given, "__qualname__") else type(given)
            name = f"{own.__module__}:{own.__qualname__}"
        if not callable(function):
            raise BadInput(f"a metric is a name, or a callable of (outputs, targets), not {type(function).__name__}")
        return cls(str(name), _OnTensors(function), better or "higher")

    def scale(self, given: float) -> Scale:
        """Return the scale, by what the metric is of the network as given."""
        higher = self.better == "higher"
        share = self.share if self.share is not None else higher and 0 <= given <= 1
        return Scale(higher) if share else Scale(higher, given)

    def value(self, outputs: Array, targets: Targets) -> float:
        """Return the metric of all images."""
        return self._value(self._found(outputs, targets))

    def graded(self, outputs: Array, targets: Targets, scale: Scale) -> Graded:
        """Return the metric, so that it can be compared with other networks' on the same images.

        That of all images together is bootstrapped: a function without sums is called RESAMPLES times.
        """
        found, images = self._found(outputs, targets), len(outputs)
        value = self._value(found)
        if self.total is not None:
            drawn = np.stack([np.bincount(draw, minlength=images) for draw in _draws(images)])
            return Resampled.of(images, value, self.total(drawn @ found.astype(np.float64)), scale)
        if found.ndim:
            return Answers.of(found) if found.dtype == bool and self.better == "higher" else Values.of(found, scale)
        resampled = [self._value(self._found(outputs[draw], taken(targets, draw))) for draw in _draws(images)]
        return Resampled.of(images, value, resampled, scale)

    def _found(self, outputs: Array, targets: Targets) -> Array:
        with plugins.running(f"metric {self.name!r}"):
            # An output that is not finite says nothing.
            finite = outputs if np.isfinite(outputs).all() else np.nan_to_num(outputs, posinf=0.0, neginf=0.0)
            found = np.asarray(self.function(finite, targets))
        if found.dtype.kind not in "biuf":
            raise BadInput(f"metric {self.name!r}: a number is wanted, or one for each image, not {found.dtype} values")
        if self.total is None and found.shape not in ((), (len(outputs),)):
            raise BadInput(
                f"metric {self.name!r}: a number is wanted, or one for each of {len(outputs)} images, not values of "
                f"shape {found.shape}"
            )
        return found

    def _value(self, found: Array) -> float:
        value = float(found.mean() if self.total is None else self.total(found.astype(np.float64).sum(axis=0)))
        if not np.isfinite(value):
            raise BadInput(f"metric {self.name!r} is {value}: it has to be finite")
        return value

    def fitting(self, outputs: tuple[int, ...], targets: Targets) -> Metric:
        """Return the metric, for outputs of a shape (without N): `classes` are known from now on. Targets that do not
        fit them are a `BadInput`."""
        labels = isinstance(targets, np.ndarray) and np.issubdtype(targets.dtype, np.integer)
        fits = targets is None or (labels and targets.shape[1:] == outputs[1:])
        classes = (fits and outputs[0] > 1) if self.classes is None else self.classes
        if classes and not fits:
            found = f"labels of shape {targets.shape[1:]}" if labels else "targets that are no labels"
            raise BadInput(
                f"the network has outputs of shape {outputs}, which {self.name} holds to labels of shape "
                f"{outputs[1:]}, and the data {found} for an image: name another metric, one of {', '.join(METRICS)}, "
                "or a callable"
            )
        if classes and class_count(targets) > outputs[0]:
            raise BadInput(f"the network has outputs of shape {outputs}, the data {class_count(targets)} classes")
        return replace(self, classes=bool(classes))


def graded(outputs: Array, targets: Targets, metric: Metric | None = None, scale: Scale = SHARES) -> Graded:
    """Return what a metric finds of outputs; right answers where none is given: the largest value is at the label."""
    return (metric or TOP_1).graded(outputs, targets, scale)


def usual_metric(outputs: tuple[int, ...]) -> Metric:
    """Return by which metric outputs of a shape (without N) are held to those of another network, where nothing else is
    asked: whether they name the same class, or, of one value alone, which share of the variance they explain."""
    return TOP_1 if outputs[0] > 1 else METRICS["explained-variance"]


class _OnTensors:
    """A function of tensors that takes arrays."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    @torch.no_grad()
    def __call__(self, outputs: Array, targets: Targets) -> Array:
        found = self.function(torch.from_numpy(np.ascontiguousarray(outputs)), as_tensors(targets))
        return np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found)


def _draws(images: int) -> Array:
    """The resampled sets: RESAMPLES times so many indices, the same for every network."""
    return np.random.default_rng(SEED).integers(images, size=(RESAMPLES, images))


def _first(outputs: Array, labels: Array, count: int) -> Array:
    """Whether each label, (N, ...), is among the `count` largest of outputs (N, classes, ...)."""
    at_label = np.take_along_axis(outputs, np.maximum(labels, 0)[:, None], axis=1)
    larger = (outputs > at_label).sum(axis=1)
    # Of equal values the first class comes first, as argmax has it.
    before = np.arange(outputs.shape[1]).reshape(1, -1, *[1] * (outputs.ndim - 2)) < labels[:, None]
    return np.asarray(larger + ((outputs == at_label) & before).sum(axis=1) < count)


def _top(count: int, outputs: Array, labels: Array) -> Array:
    """Whether the labels (N,) are among the `count` largest outputs; of labels (N, H, W, ...) the share of those places
    that are not IGNORED."""
    right = outputs.argmax(axis=1) == labels if count == 1 else _first(outputs, labels, count)
    if labels.ndim == 1:
        return np.asarray(right)
    known, places = labels >= 0, tuple(range(1, labels.ndim))
    return np.asarray((right & known).sum(axis=places) / np.maximum(known.sum(axis=places), 1))


def _confusion(outputs: Array, labels: Array) -> Array:
    """Of every class, in each image: the places where it is rightly predicted, is predicted, and is the label: (N,
    3 * classes). IGNORED places count nowhere."""
    images, classes = outputs.shape[:2]
    known = labels >= 0
    predicted = np.where(known, outputs.argmax(axis=1), -1)
    parts = (np.where(predicted == labels, labels, -1), predicted, np.where(known, labels, -1))
    counts = [
        np.stack([np.bincount(each[each >= 0].ravel(), minlength=classes) for each in part.reshape(images, -1)])
        for part in parts
    ]
    return np.concatenate(counts, axis=1)


def _mean_iou(counts: Array) -> Array:
    """The mean over classes that there are of intersection over union."""
    right, predicted, there = np.split(counts, 3, axis=-1)
    union = predicted + there - right
    found = union > 0
    return np.asarray(np.where(found, right / np.maximum(union, 1), 0).sum(-1) / np.maximum(found.sum(-1), 1))


def _recalls(counts: Array) -> tuple[Array, Array]:
    """Of every class the share of its places that are rightly predicted, and whether there are any."""
    right, _, there = np.split(counts, 3, axis=-1)
    return right / np.maximum(there, 1), there > 0


def _mean_recall(counts: Array) -> Array:
    recalls, there = _recalls(counts)
    return np.asarray(np.where(there, recalls, 0).sum(-1) / np.maximum(there.sum(-1), 1))


def _worst_recall(counts: Array) -> Array:
    recalls, there = _recalls(counts)
    return np.asarray(np.where(there, recalls, 1).min(-1))


def _mean_average_precision(outputs: Array, targets: Array) -> float:
    """The mean over classes of the average precision, the sum of precisions at the ranks of what is relevant over
    their number (Voorhees and Harman 2005, chapter 3): images are ranked by an output (N, classes), and relevant where
    the target (N, classes) is more than 0, or the label (N,) is the class. Equal outputs are ranked as they come."""
    relevant = targets > 0 if targets.ndim == 2 else np.arange(outputs.shape[1]) == targets[:, None]
    order = np.argsort(-outputs, axis=0, kind="stable")
    ranked = np.take_along_axis(relevant, order, axis=0)
    precision = ranked.cumsum(axis=0) / np.arange(1, len(ranked) + 1)[:, None]
    counts = ranked.sum(axis=0)
    found = counts > 0
    each = (precision * ranked).sum(axis=0) / np.maximum(counts, 1)
    return float(each[found].mean()) if found.any() else 0.0


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1).astype(np.float64)


def _squares(outputs: Array, targets: Array) -> Array:
    """The sum of squared errors of each image, and the number of values: (N, 2)."""
    errors = (_flat(outputs) - _flat(targets)) ** 2
    return np.stack([errors.sum(axis=1), np.full(len(errors), errors.shape[1])], axis=1)


def _rmse(sums: Array) -> Array:
    return np.asarray(np.sqrt(sums[..., 0] / sums[..., 1]))


def _moments(outputs: Array, targets: Array) -> Array:
    """Of each image: the sums of squared errors and of the targets' squares, and of each of C outputs the number of
    targets and their sum: (N, 2 + 2 * C)."""
    errors, wanted = _squares(outputs, targets), targets.reshape(*outputs.shape[:2], -1).astype(np.float64)
    squares, counts = (wanted**2).sum(axis=(1, 2)), np.full(wanted.shape[:2], wanted.shape[2], np.float64)
    return np.concatenate([errors[:, :1], squares[:, None], counts, wanted.sum(axis=2)], axis=1)


def _explained(sums: Array) -> Array:
    """One less the share of the targets' variance, each output's about its own mean, that the errors have, at least
    0."""
    errors, squares = sums[..., 0], sums[..., 1]
    counts, totals = np.split(sums[..., 2:], 2, axis=-1)
    variance = squares - (totals**2 / counts).sum(axis=-1)
    return np.asarray(np.clip(1 - errors / np.maximum(variance, np.finfo(np.float64).tiny), 0, 1))


TOP_1 = Metric("top-1", partial(_top, 1), classes=True, share=True)
_CONFUSION = Metric("mean-iou", _confusion, classes=True, share=True, total=_mean_iou)

#: Name -> metric.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        TOP_1,
        replace(TOP_1, name="top-5", function=partial(_top, 5)),
        _CONFUSION,
        replace(_CONFUSION, name="mean-recall", total=_mean_recall),
        replace(_CONFUSION, name="worst-class-recall", total=_worst_recall),
        Metric("mean-average-precision", _mean_average_precision, classes=False, share=True),
        Metric("rmse", _squares, "lower", classes=False, share=False, total=_rmse),
        Metric("explained-variance", _moments, classes=False, share=True, total=_explained),
    )
}
