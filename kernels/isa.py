"""Kernel levels: the instruction sets that the engine has kernels for."""

from __future__ import annotations

import os
from typing import Any

from trimtab.errors import BadInput
from trimtab.kernels import _native

__all__ = ["active_level", "build", "cpu", "emulated_levels", "has_bf16", "levels", "methods", "resolve_level"]


def methods() -> tuple[str, ...]:
    """Return the names of the ways to run a layer that a session can be held to (`Session`, `method`)."""
    return tuple(_native.METHODS)


def build() -> str:
    """Return a hash of the sources and the compiler that the kernels were made with."""
    return _native.BUILD


def levels() -> list[str]:
    """Return the levels that this machine has, best first."""
    return list(_native.levels())


def emulated_levels() -> list[str]:
    """Return the levels that exist to test the logic of others anywhere; slow, and used only when named."""
    return list(_native.emulated_levels())


def has_bf16(level: str | None = None) -> bool:
    """Return whether a level (None: `active_level()`) multiplies bf16 numbers, as AMX and AVX-512 BF16 do.

    The others run such layers too, in float32.
    """
    return bool(_native.has_bf16(active_level() if level is None else resolve_level(level)))


def cpu() -> dict[str, Any]:
    """Return `vendor`, `model`, `features` (those that levels need) and `logical_cpus` of this machine."""
    return dict(_native.cpu())


def active_level() -> str:
    """Return the level that sessions use: the best, or what the environment variable TRIMTAB_ISA names.

    Raises BadInput where TRIMTAB_ISA names a level that is unknown or that this machine lacks.
    """
    return resolve_level(os.environ.get("TRIMTAB_ISA") or None)


def resolve_level(level: str | None) -> str:
    """Return `level` if this machine can run it, or the best level for None; raises BadInput otherwise."""
    if level is None:
        return levels()[0]
    if level in levels() or level in emulated_levels():
        return level
    known = ", ".join([*levels(), *emulated_levels()])
    raise BadInput(f"kernel level {level!r} is unknown, or this machine lacks it (here: {known})")
