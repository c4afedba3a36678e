"""The latency table: the time of every single step, measured once per machine and engine, filled as it is asked."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from trimtab.evaluators.engines.base import Engine, cpu_name
from trimtab.evaluators.steps import STEP, Step, step_graph
from trimtab.evaluators.timing import cache_dir, timing_slot

__all__ = ["LatencyTable"]

#: Seconds per slice of a step's measurement.
STEP_SECONDS = 0.001

#: Seconds after which the reference step is measured again.
REFERENCE_LASTS = 0.03

#: The step that every entry is measured beside: entries are stored as multiples of it, so that the table stays
#: consistent while the machine's speed drifts.
REFERENCE = Step(
    "conv2d",
    (16, 16, 16),
    (16, 16, 16),
    (
        ("activation", "relu"),
        ("dilation", (1, 1)),
        ("groups", 1),
        ("kernel", (3, 3)),
        ("padding", (1, 1, 1, 1)),
        ("stride", (1, 1)),
    ),
)


class LatencyTable:
    """Seconds per step, cached on disk by (engine, kernel level, processor, threads, operator signature).

    `path` is the file (JSON lines, appended; a broken line is measured again); `filled` is called after every new
    entry with the number of entries measured so far, for a progress bar.
    """

    def __init__(self, engine: Engine, folder: Path | None = None, filled: Callable[[int], None] | None = None) -> None:
        self.engine = engine
        self.filled = filled
        self.measured = 0
        where = {"engine": engine.signature, "cpu": cpu_name(), "format": 3}
        digest = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:12]
        self.path = (folder or cache_dir() / "latency") / f"{engine.name}-{digest}.jsonl"
        self._entries: dict[str, float] = {}
        self._kernels: dict[str, str] = {}
        self._seconds: dict[Step, float] = {}
        self._reference_now = 0.0
        self._reference_at = -math.inf
        self._known_bytes = 0  # how much of the file has been read
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(where)
        elif not self.path.read_bytes().endswith(b"\n"):
            self._write("\n")  # a crash tore the last line: the next entry must not become part of it
        self._read()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> dict[str, float]:
        """Every entry by its key, for another process or machine of the same kind."""
        return dict(self._entries)

    def adopt(self, entries: Mapping[str, float]) -> None:
        """Take over another table's entries where there are none; they are not written to the file."""
        for key, value in entries.items():
            self._entries.setdefault(key, value)

    def seconds(self, step: Step) -> float:
        """Return the step's seconds per run, measured now if it is not in the table."""
        known = self._seconds.get(step)
        if known is None:
            known = self._seconds[step] = self._relative(step) * self.reference_seconds
        return known

    def kernel(self, step: Step) -> str:
        """Return the name of the kernel that ran the step when it was measured; empty where the engine does not tell.

        Steps of different bits may well have the same one: then they cost the same.
        """
        self.seconds(step)
        return self._kernels.get(step.key, "")

    def total(self, steps: Iterable[Step]) -> float:
        """Return the sum over steps, in seconds."""
        return sum(self.seconds(step) for step in steps)

    @property
    def reference_seconds(self) -> float:
        """Seconds of the reference step, as first measured on this machine."""
        if "reference" not in self._entries:
            with timing_slot(self.engine.threads):
                self._read()
                if "reference" not in self._entries:
                    self._add("reference", self._measure(REFERENCE), "")
        return self._entries["reference"]

    def _relative(self, step: Step) -> float:
        if step.key not in self._entries:
            with timing_slot(self.engine.threads):
                # Searches that run beside this one price alike only if each step is measured by one of them.
                self._read()
                if step.key not in self._entries:
                    self._add_step(step)
        return self._entries[step.key]

    def _add_step(self, step: Step) -> None:
        if time.monotonic() - self._reference_at > REFERENCE_LASTS:
            self._reference_now = self._measure(REFERENCE)
            self._reference_at = time.monotonic()
        kernel = self.engine.layer_kernel(step_graph(step), STEP)
        self._add(step.key, self._measure(step) / self._reference_now, kernel)
        self.measured += 1
        if self.filled is not None:
            self.filled(self.measured)

    def _measure(self, step: Step) -> float:
        # The minimum of slices repeats best on a shared machine: interference only ever adds.
        return min(self.engine.layer_seconds(step_graph(step), STEP, STEP_SECONDS))

    def _add(self, key: str, value: float, kernel: str) -> None:
        self._entries[key], self._kernels[key] = value, kernel
        self._append({"key": key, "value": value, "kernel": kernel})

    def _append(self, entry: object) -> None:
        self._write(json.dumps(entry) + "\n")

    def _write(self, text: str) -> None:
        with open(self.path, "a") as file:
            file.write(text)

    def _read(self) -> None:
        """Take in what has been written since the last time; of several values of a step the first one counts."""
        with open(self.path, "rb") as file:
            file.seek(self._known_bytes)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._known_bytes += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a line torn by a crash: its step is measured again
            value = entry.get("value") if isinstance(entry, dict) else None
            if isinstance(value, float) and 0 < value < math.inf:
                key = str(entry.get("key"))
                self._entries.setdefault(key, value)
                self._kernels.setdefault(key, str(entry.get("kernel", "")))
