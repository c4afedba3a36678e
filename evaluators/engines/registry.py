"""The engines by the names that configurations use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from trimtab import plugins
from trimtab.errors import BadInput
from trimtab.evaluators.engines.base import Engine

__all__ = ["ENGINES", "EXPORTED", "SIMULATED", "Registered", "check_engine", "make_engine"]

#: The group of entry points by which packages bring engines along.
ENTRY_POINTS = "trimtab.engines"


@dataclass(frozen=True)
class Registered:
    """An engine's entry: its class, in `module` and imported when it is chosen; the `package` whose version counts;
    whether the environment can hold it to a kernel level, as benchmarks do; and whether every export has its form."""

    module: str
    attribute: str
    package: str
    obeys_level: bool = True
    exported: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, threads: int) -> Engine:
        """Return the engine."""
        made: Engine = getattr(import_module(self.module), self.attribute)(threads, **self.options)
        return made


_HERE = "trimtab.evaluators.engines"

ENGINES: dict[str, Registered] = {
    "native": Registered(f"{_HERE}.native", "NativeEngine", "trimtab", exported=True),
    "onnxruntime": Registered(
        f"{_HERE}.onnxruntime", "OnnxRuntimeEngine", "onnxruntime", obeys_level=False, exported=True
    ),
    "onnxruntime-saturating": Registered(
        f"{_HERE}.onnxruntime", "OnnxRuntimeEngine", "onnxruntime", obeys_level=False, options={"exact": False}
    ),
    "openvino": Registered(f"{_HERE}.openvino", "OpenVinoEngine", "openvino"),
    "torch": Registered(f"{_HERE}.torch", "TorchEngine", "torch"),
}


#: Stands for an engine where accuracy is judged by PyTorch, on real numbers that are rounded as integers would be.
SIMULATED = "simulated"

#: The engines whose forms every export has.
EXPORTED = tuple(name for name, engine in ENGINES.items() if engine.exported)


def check_engine(name: str) -> None:
    """Raise `BadInput` for a name that `make_engine` does not know; imports nothing."""
    plugins.check_known("engine", name, ENTRY_POINTS, ENGINES)


def make_engine(name: str, threads: int = 1) -> Engine:
    """Return an engine: one of ENGINES, one that an installed package brings along (entry points `trimtab.engines`), or
    "package.module:Class", called with the number of threads. An unknown one is a `BadInput`."""
    check_engine(name)
    if name in ENGINES:
        return ENGINES[name].make(threads)
    brought = plugins.load("engine", name, ENTRY_POINTS)
    with plugins.running(f"engine {name!r}"):
        made = brought(threads)
    return _checked(name, made)


def _checked(name: str, made: Any) -> Engine:
    for part in ("name", "threads", "signature", "has_bf16", "compile", "layer_kernel", "layer_seconds"):
        if not hasattr(made, part):
            raise BadInput(f"engine {name!r} is no trimtab.evaluators.engines.Engine: it has no {part!r}")
    engine: Engine = made
    return engine
