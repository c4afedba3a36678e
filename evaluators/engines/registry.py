"""Engines by name."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.errors import unknown_name
from trimtab.evaluators.engines.base import Engine

__all__ = ["ENGINES", "make_engine"]


def _native(threads: int) -> Engine:
    from trimtab.evaluators.engines.native import NativeEngine

    return NativeEngine(threads)


def _onnxruntime(threads: int) -> Engine:
    from trimtab.evaluators.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads)


def _saturating_onnxruntime(threads: int) -> Engine:
    from trimtab.evaluators.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads, exact=False)


def _openvino(threads: int) -> Engine:
    from trimtab.evaluators.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(threads)


def _torch(threads: int) -> Engine:
    from trimtab.evaluators.engines.torch import TorchEngine

    return TorchEngine(threads)


#: Name -> constructor from the number of threads; each imports its library only when it is chosen.
ENGINES: dict[str, Callable[[int], Engine]] = {
    "native": _native,
    "onnxruntime": _onnxruntime,
    "onnxruntime-saturating": _saturating_onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
}


def make_engine(name: str, threads: int = 1) -> Engine:
    """Return the engine of this name; an unknown one is a `BadInput`."""
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    return ENGINES[name](threads)
