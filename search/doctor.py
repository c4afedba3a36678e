"""The machine's abilities, as `trimtab doctor` prints them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trimtab import kernels
from trimtab.evaluators.engines import ENGINES
from trimtab.evaluators.measure.timing import timing_cores, worker_cores
from trimtab.files import cache_dir

__all__ = ["examine", "package_version"]


def examine() -> dict[str, Any]:
    """Return facts about processor, kernels, threads, Ray, engines and folders, as plain values."""
    return {
        "trimtab": package_version("trimtab"),
        "python": platform.python_version(),
        "cpu": kernels.cpu(),
        "kernel_levels": kernels.levels(),
        "kernel_level": kernels.active_level(),
        "TRIMTAB_ISA": os.environ.get("TRIMTAB_ISA"),
        "cores": sorted(os.sched_getaffinity(0)),
        "timing_cores": sorted(timing_cores()),
        "worker_cores": sorted(worker_cores()),
        "real_time_priority": _may_raise_priority(),
        "ray": package_version("ray"),
        "torch": package_version("torch"),
        "optuna": package_version("optuna"),
        "engines": {name: package_version(engine.package) for name, engine in ENGINES.items()},
        "data_root": os.environ.get("TRIMTAB_DATA"),
        "cache": str(cache_dir()),
    }


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _may_raise_priority() -> bool:
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, policy, parameters)
    return True
