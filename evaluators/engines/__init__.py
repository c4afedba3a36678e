"""The engines that run and time candidates."""

from trimtab.evaluators.engines.base import Engine, EngineSession, FileEngine, TimeSlice, cpu_name, own_cache_bytes
from trimtab.evaluators.engines.registry import ENGINES, EXPORTED, SIMULATED, check_engine, make_engine

__all__ = [
    "ENGINES",
    "EXPORTED",
    "SIMULATED",
    "Engine",
    "EngineSession",
    "FileEngine",
    "TimeSlice",
    "check_engine",
    "cpu_name",
    "make_engine",
    "own_cache_bytes",
]
