"""Feeds the artefact loader with hostile files for a while; a file that breaks it is left for a test.

usage: python -m tests.fuzz.fuzz_artefact [SECONDS]

Where the package atheris is installed, coverage of trimtab.kernels guides which files come next (libFuzzer); otherwise
they are drawn at random. What drives both is the hypothesis strategy of tests/kernels/hostile.py.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

try:
    import atheris
except ImportError:
    atheris = None

from hypothesis import HealthCheck, given, settings
from tests.kernels import hostile

from trimtab.kernels import artefact, entropy, memory, packing, passes, session, validate

Case = tuple[bytes, str, int, int]
_SECONDS = 300
_BYTES = 4096  # of random choices behind one file


def target(folder: Path) -> Callable[[bytes], object]:
    """Return the function that makes a file of the bytes that a fuzzer gives, and loads it."""

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=hostile.CASES)
    def attempt(case: Case) -> None:
        data, level, batch, threads = case
        try:
            hostile.loads_or_is_refused(data, folder / "net", level, batch, threads)
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"hostile-{time.time_ns()}.safetensors"
            kept.write_bytes(data)
            print(f"{kept}: level {level}, batch {batch}, {threads} threads", file=sys.stderr)
            raise

    return attempt.hypothesis.fuzz_one_input  # type: ignore[no-any-return, attr-defined]


def instrument() -> None:
    """Have atheris watch which lines of the loader and the compiler a file reaches."""
    for module in (artefact, entropy, memory, packing, passes, session, validate):
        for function in vars(module).values():
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                atheris.instrument_func(function)


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else _SECONDS
    with tempfile.TemporaryDirectory() as folder:
        fuzz = target(Path(folder))
        if atheris is not None:
            instrument()
            corpus = Path(folder) / "corpus"
            corpus.mkdir()
            for i in range(100):  # a short input makes no file at all: start from long ones
                (corpus / str(i)).write_bytes(os.urandom(_BYTES))
            options = [f"-max_total_time={seconds}", f"-max_len={_BYTES}", "-len_control=0"]
            atheris.Setup([sys.argv[0], *options, str(corpus)], fuzz)
            atheris.Fuzz()
            return
        print("atheris is not installed: files are drawn at random")
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            fuzz(os.urandom(_BYTES))
            count += 1
        print(f"{count} files")


if __name__ == "__main__":
    main()
