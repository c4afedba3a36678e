"""trimtab: searches for the best network that fits a latency and size budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.search.api import Result, Task, compress

__all__ = ["Result", "Task", "__version__", "compress"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `trimtab.kernels` runs an exported network where torch is not installed.
    if name in {"Result", "Task", "compress"}:
        return getattr(import_module("trimtab.search.api"), name)
    raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
