"""Plug-ins: what installed packages bring along by entry points, and what any module has, by "package.module:name"."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any

from trimtab.errors import BadInput, in_one_line, unknown_name

__all__ = ["check_known", "imported", "load", "running"]


def check_known(kind: str, name: str, group: str, own: Iterable[str]) -> None:
    """Raise `BadInput` for a name that is none of our `own`, of the entry points in `group`, or of a module; imports
    nothing."""
    known = {*own}
    if name not in known and ":" not in name and name not in _brought(group):
        raise unknown_name(kind, name, [*known, *_brought(group)])


def load(kind: str, name: str, group: str) -> Any:
    """Return the object that a name stands for that is none of our own; one that cannot be had is a `BadInput`."""
    with running(f"{kind} {name!r}"):
        return imported(name) if ":" in name else _brought(group)[name].load()


def imported(place: str) -> Any:
    """Return what "package.module:name" names, looking in the current folder too; this runs the module's code."""
    module, _, name = place.partition(":")
    _look_here()
    return attrgetter(name)(import_module(module))


@contextmanager
def running(plugin: str) -> Iterator[None]:
    """Run the code of others: whatever it raises is a `BadInput` of one line that names the plug-in."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise BadInput(f"{plugin}: {in_one_line(error)}") from error


def _look_here() -> None:
    """Put the current folder on the path, as Python itself does for `python -m`, but not for installed scripts."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _brought(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
