"""Plug-ins: what installed packages bring along by entry points, and what any module has, by "package.module:name"."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trimtab.errors import BadInput, unknown_name

__all__ = ["check_known", "load"]


def check_known(kind: str, name: str, group: str, own: Iterable[str]) -> None:
    """Raise `BadInput` for a name that is none of our `own`, of the entry points in `group`, or of a module; imports
    nothing."""
    known = {*own}
    if name not in known and ":" not in name and name not in _brought(group):
        raise unknown_name(kind, name, [*known, *_brought(group)])


def load(kind: str, name: str, group: str) -> Any:
    """Return the object that a name stands for that is none of our own; one that cannot be had is a `BadInput`."""
    module, colon, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute) if colon else _brought(group)[name].load()
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{kind} {name!r}: {error}") from error


def _brought(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
