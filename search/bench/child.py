"""Benchmarks in a process of their own: kernel levels, caps and thread pools are settings of a whole process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from trimtab.errors import BadInput, TrimtabError, unknown_name
from trimtab.evaluators.measure.timing import timing_cores
from trimtab.files import write_text
from trimtab.kernels.isa import levels

__all__ = ["answer_parent", "caps", "run_in_child"]

Rows = list[dict[str, Any]]

#: Kernel level -> what holds oneDNN, which PyTorch and OpenVINO run on, to the same instructions, and PyTorch's own
#: loops to the same registers.
RIVAL_CAPS: Mapping[str, tuple[str, str]] = {
    "portable": ("SSE41", "default"),
    "avx2": ("AVX2", "avx2"),
    "avx_vnni": ("AVX2_VNNI", "avx2"),
    "avx512_vnni": ("AVX512_CORE_VNNI", "avx512"),
    "amx": ("AVX512_CORE_AMX", "avx512"),
}


def caps(level: str | None) -> dict[str, str]:
    """Return the environment that holds the native engine, PyTorch and OpenVINO to a kernel level."""
    if level is None:
        return {}
    if level not in levels() or level not in RIVAL_CAPS:
        raise unknown_name("kernel level of this machine", level, [name for name in levels() if name in RIVAL_CAPS])
    onednn, aten = RIVAL_CAPS[level]
    return {"TRIMTAB_ISA": level, "ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}


def run_in_child(function: Callable[..., Rows], threads: int, level: str | None, options: Mapping[str, Any]) -> Rows:
    """Call a function of a module in a new process, on the timing cores and held to a level, and return its rows.

    It gets `threads`, `level` and the `options`; these and the rows go through JSON. A BadInput there is raised here;
    any other end of the child is a TrimtabError that quotes its last words.
    """
    task: dict[str, Any] = {"module": function.__module__, "name": function.__qualname__}
    task |= {"arguments": {"threads": threads, "level": level, **options}}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, "-m", "trimtab.search.bench", json.dumps(task), str(answer)],
            # Without the safe path a file of the working directory could stand in for a library.
            env={**os.environ, "PYTHONSAFEPATH": "1", **caps(level)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not answer.is_file():
            raise TrimtabError(f"the benchmark's process {_ending(done.returncode)}: {done.stderr.strip()[-2000:]}")
        found = json.loads(answer.read_text())
    if done.returncode == BadInput.exit_code:
        raise BadInput(found)
    rows: Rows = found
    return rows


def _ending(code: int) -> str:
    return f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def answer_parent(task: str, answer: str) -> int:
    """Do in the child what `run_in_child` asks for, write the rows or the error's text to `answer`, and return the
    exit code."""
    asked = json.loads(task)
    arguments = asked["arguments"]
    # Before anything starts a thread: pools inherit the cores of the thread that makes them.
    os.sched_setaffinity(0, timing_cores(arguments["threads"]))
    function = getattr(import_module(asked["module"]), asked["name"])
    try:
        found: Any = function(**arguments)
        code = 0
    except BadInput as error:
        found, code = str(error), error.exit_code
    write_text(answer, json.dumps(found))
    return code
