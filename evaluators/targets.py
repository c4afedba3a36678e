"""Targets: what a network's outputs are held to, one for each image, in whatever form a loader yields them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trimtab.errors import BadInput
from trimtab.graph import Array

__all__ = ["IGNORED", "Targets", "as_labels", "as_tensors", "class_count", "joined", "read_targets", "taken"]

#: Arrays (N, ...) of one dtype each; tuples and dicts of targets; or a list of N things, one for each image.
Targets = Any

#: The label of a pixel that says nothing, as PyTorch's losses have it; and what masks in files write instead.
IGNORED, IGNORED_IN_FILES = -100, 255


def read_targets(given: Any, images: int) -> Targets:
    """Return what a loader yields beside so many images as targets; what does not fit them is a `ValueError`.

    PyTorch's loaders make a list of a tuple: one of arrays (N, ...) is taken for such, any other list has one thing for
    each image.
    """
    if isinstance(given, dict):
        return {key: read_targets(each, images) for key, each in given.items()}
    if isinstance(given, tuple) or (isinstance(given, list) and given and all(_is_of(images, x) for x in given)):
        return tuple(read_targets(each, images) for each in given)
    if isinstance(given, list) and not all(isinstance(each, int | float) for each in given):
        if len(given) != images:
            raise ValueError(f"{len(given)} targets beside {images} images")
        return given
    found = np.asarray(torch.as_tensor(given).detach().cpu())
    if found.shape[:1] != (images,):
        raise ValueError(f"targets of shape {found.shape} beside {images} images")
    return found


def _is_of(images: int, found: Any) -> bool:
    return tuple(getattr(found, "shape", ()))[:1] == (images,)


def joined(parts: Sequence[Targets]) -> Targets:
    """Return the targets of several batches as those of one."""
    first = parts[0]
    if {type(part) for part in parts} != {type(first)}:
        raise ValueError(f"{' and '.join(sorted({type(part).__name__ for part in parts}))} are not of one form")
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(joined(each) for each in zip(*parts, strict=True))
    if isinstance(first, list):
        return [each for part in parts for each in part]
    return np.concatenate(parts)


def taken(targets: Targets, indices: Any) -> Targets:
    """Return the targets of some images, by their indices (M,) or a slice."""
    if isinstance(targets, dict):
        return {key: taken(each, indices) for key, each in targets.items()}
    if isinstance(targets, tuple):
        return tuple(taken(each, indices) for each in targets)
    if isinstance(targets, list):
        return targets[indices] if isinstance(indices, slice) else [targets[i] for i in indices]
    return targets[indices]


def as_tensors(targets: Targets) -> Any:
    """Return targets with tensors in place of arrays."""
    if isinstance(targets, dict):
        return {key: as_tensors(each) for key, each in targets.items()}
    if isinstance(targets, tuple):
        return tuple(as_tensors(each) for each in targets)
    return torch.from_numpy(np.ascontiguousarray(targets)) if isinstance(targets, np.ndarray) else targets


def as_labels(targets: Targets, name: str) -> Array:
    """Return targets as classes, int64 (N, ...): whole numbers from 0. In masks (N, H, W, ...) what is less than 0, or
    255, says nothing, and becomes IGNORED. Anything else is a `BadInput` that names them."""
    if not isinstance(targets, np.ndarray):
        raise BadInput(f"{name}: its metric takes labels, an array, and not {type(targets).__name__}s of targets")
    labels = targets.astype(np.int64)
    if (labels != targets).any():
        raise BadInput(f"{name}: labels are whole numbers, found {targets[labels != targets][0]:g}")
    if labels.ndim > 1:
        return np.where((labels < 0) | (labels == IGNORED_IN_FILES), IGNORED, labels)
    if labels.min(initial=0) < 0:
        raise BadInput(f"{name}: labels from 0 are needed, found {labels.min()}")
    return labels


def class_count(targets: Targets) -> int:
    """Return the number of classes that labels are of: one more than the highest; 0 of anything else."""
    if isinstance(targets, np.ndarray) and np.issubdtype(targets.dtype, np.integer):
        return max(0, int(targets.max(initial=-1)) + 1)
    return 0
