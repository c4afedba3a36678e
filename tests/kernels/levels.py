"""The kernel levels that the tests run."""

from __future__ import annotations

from trimtab.kernels import emulated_levels, levels

EVERY_LEVEL = [*levels(), *emulated_levels()]

#: Without the emulations of levels that this machine has: those are the same templates, on instructions of their own.
LEVELS = [*levels(), *(level for level in emulated_levels() if level.removeprefix("emulated-") not in levels())]
