"""Attributes of nodes: their defaults, and what each may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.errors import BadInput, unknown_name
from trimtab.graph.node import ACTIVATIONS, MODES, PRECISIONS, Node

__all__ = ["MAX_ELEMENTS", "attribute", "is_int"]

MAX_ELEMENTS = 2**30  # of one tensor or weight, so that every index fits 32 bits

#: Spatial pairs are (height, width); padding is (top, left, bottom, right).
_DEFAULTS: dict[str, Any] = {
    "stride": (1, 1),
    "padding": (0, 0, 0, 0),
    "dilation": (1, 1),
    "groups": 1,
    "activation": "none",
    "precision": "fp32",
    "count_include_pad": True,
    "epsilon": 1e-5,
    "scale": 1.0,
    "mode": "nearest",
    "align_corners": False,
    "crop": (0, 0),
}

_CHOICES = {"activation": ACTIVATIONS, "precision": PRECISIONS, "mode": MODES}


def attribute(node: Node, name: str) -> Any:
    """Return a node's attribute, or its default, in the one form that it has; raises BadInput where it is wrong."""
    default = node.attrs.get("kernel") if name == "stride" and "kernel" in node.attrs else _DEFAULTS.get(name)
    value = node.attrs.get(name, default)
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise unknown_name(f"{name} of layer {node.name!r}:", str(value), _CHOICES[name])
        return value
    if name in ("count_include_pad", "align_corners"):
        return bool(value)
    if name == "size" and value is None and node.kind == "depth_to_space":
        return None
    if name in ("groups", "heads"):
        return _ints(node, name, [value], 1, 1)[0]
    if name in ("epsilon", "scale"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise BadInput(f"layer {node.name!r}: {name} must be a number above 0, got {value!r}")
        return float(value)
    if name == "index":
        return _ints(node, name, value, None, -1)
    if name == "padding":
        return _ints(node, name, value, 4, 0)
    return _ints(node, name, value, 2, 0 if name == "crop" else 1)


def is_int(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _ints(node: Node, name: str, value: Any, count: int | None, least: int) -> tuple[int, ...]:
    items = value.tolist() if isinstance(value, np.ndarray) else value
    fits = isinstance(items, list | tuple) and len(items) == (len(items) if count is None else count)
    if not fits or not items or not all(is_int(i) and least <= i < MAX_ELEMENTS for i in items):
        raise BadInput(
            f"layer {node.name!r}: {name} must be {count or 'some'} integers of at least {least}, got {value!r}"
        )
    return tuple(int(i) for i in items)
