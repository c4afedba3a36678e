"""The start of an exported network: from a fresh process and a file to the first result, on every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.base import FileEngine, Images
from trimtab.evaluators.lowering import lower
from trimtab.search.bench.networks import calibrated, check_forms, load_network, policy_of
from trimtab.spaces.candidate import Candidate

__all__ = ["bench_start"]

_SCRIPT = """
import json, sys, time
began = time.perf_counter()
{reader}
import numpy
imported = time.perf_counter()
image = numpy.load(sys.argv[2])
asked = time.perf_counter()
run = open_file(sys.argv[1])
opened = time.perf_counter()
run(image)
ended = time.perf_counter()
# Not `resource`: what a process took before it became this one counts there.
memory = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
print(json.dumps([1e3 * (imported - began), 1e3 * (opened - asked), 1e3 * (ended - opened), memory]))
"""


def bench_start(
    networks: Sequence[str], engines: Sequence[str], forms: Sequence[str], repetitions: int
) -> list[dict[str, Any]]:
    """Open the file of every network in every form on every engine, each time in a process of its own, in turn.

    A row has `network`, `form`, `engine`, `file_mb`, the medians over `repetitions` of `import_ms` (the engine's
    package and NumPy), `open_ms` (from the file to what runs), `first_ms` (the first image) and `start_ms` (the two
    together), `resident_mb` at most, and `start_ratio`: its start over the first engine's.
    """
    if not Path("/proc/self/status").exists():
        raise BadInput("the memory of a process is read from /proc, which this system does not have")
    check_forms(forms)
    made = {name: _file_engine(name) for name in engines}
    rows = []
    for network in networks:
        space, images = load_network(network)
        for form in forms:
            candidate = calibrated(space, policy_of(space, form), images)
            rows += [
                {"network": network, "form": form, **row} for row in _rows(made, candidate, images[:1], repetitions)
            ]
    return rows


def _rows(
    made: Mapping[str, FileEngine], candidate: Candidate, image: Images, repetitions: int
) -> list[dict[str, Any]]:
    """The rows of one candidate, without its names."""
    graph = lower(candidate)
    with TemporaryDirectory() as folder:
        given = Path(folder) / "image.npy"
        np.save(given, image)
        files = {name: Path(folder) / f"{name}{engine.suffix}" for name, engine in made.items()}
        for name, engine in made.items():
            engine.save(graph, files[name], candidate.ranges)
        sizes = [file.stat().st_size / 1e6 for file in files.values()]
        rounds = [
            [_start(_reader(engine), files[name], given) for name, engine in made.items()] for _ in range(repetitions)
        ]
    each = list(zip(*rounds, strict=True))  # of every engine
    starts = [median(opened + first for _, opened, first, _ in own) for own in each]
    return [
        {
            "engine": name,
            "file_mb": size,
            **dict(zip(("import_ms", "open_ms", "first_ms", "resident_mb"), _medians(own), strict=True)),
            "start_ms": start,
            "start_ratio": start / starts[0],
        }
        for name, size, own, start in zip(made, sizes, each, starts, strict=True)
    ]


def _file_engine(name: str) -> FileEngine:
    engine = make_engine(name)
    if not isinstance(engine, FileEngine) or not _reader(engine):
        raise BadInput(f"the engine {name} does not say how its files are read without trimtab (`reader`)")
    return engine


def _reader(engine: FileEngine) -> str:
    return str(getattr(engine, "reader", ""))


def _start(reader: str, file: Path, image: Path) -> list[float]:
    command = [sys.executable, "-c", _SCRIPT.format(reader=reader), str(file), str(image)]
    found: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _medians(each: Sequence[Sequence[float]]) -> list[float]:
    return [median(values) for values in zip(*each, strict=True)]
