"""The latency table of a network: every step's time, measured once per machine and engine, filled as it is asked."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trimtab.evaluators.engines.base import Engine, cpu_name
from trimtab.evaluators.measure.step_timer import step_timer
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.evaluators.price.plan import Call, Step
from trimtab.files import cache_dir
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["LatencyTable"]


class LatencyTable:
    """Seconds per step of one network's policies, cached on disk by engine, kernels, processor, threads, network.

    `path` is the file (JSON lines, appended; a broken line is measured again); `filled` is called after every policy
    that had to be measured with the number of entries measured so far, for a progress bar; `took` is the seconds that
    measuring took.

    Only one thread of a process may use a table. Processes may share the file without a lock of their own: lines are
    only ever appended, and entries are measured in the machine's timing slot (an exclusive file lock), where what
    others have written meanwhile is read first, so that every step is measured by one of them. `fill` waits for the
    slot where something has to be measured; nothing else waits.
    """

    def __init__(
        self, engine: Engine, space: Space, folder: Path | None = None, filled: Callable[[int], None] | None = None
    ) -> None:
        self.engine = engine
        self.filled = filled
        self.measured = 0
        self.took = 0.0
        self._timer = step_timer(engine, space)
        where = {
            "engine": engine.signature,
            "build": getattr(engine, "build", None),
            "cpu": cpu_name(),
            "network": space.network.fingerprint(),
            "format": 4,
        }
        digest = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:12]
        self.path = (folder or cache_dir() / "latency") / f"{engine.name}-{digest}.jsonl"
        self._entries: dict[str, float] = {}
        self._kernels: dict[str, str] = {}
        self._seconds: dict[Step, float] = {}
        self._known_bytes = 0  # how much of the file has been read
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(where)
        elif not self.path.read_bytes().endswith(b"\n"):
            self._write("\n")  # a crash tore the last line: the next entry must not become part of it
        self._read()

    def __len__(self) -> int:
        return len(self._entries.keys() - {"reference"})

    @property
    def entries(self) -> dict[str, float]:
        """Every entry by its key, for another process or machine of the same kind."""
        return dict(self._entries)

    def adopt(self, entries: Mapping[str, float]) -> None:
        """Take over another table's entries where there are none; they are not written to the file."""
        for key, value in entries.items():
            self._entries.setdefault(key, value)

    def fill(self, policy: Policy, calls: Sequence[Call]) -> None:
        """See to it that all steps of a policy, its `calls`, are in the table: measure what is lacking."""
        if all(call.step in self._seconds for call in calls):
            return
        if any(call.step.key not in self._entries for call in calls) or "reference" not in self._entries:
            self._measure(policy, calls)
        reference = self._entries["reference"]
        for call in calls:
            self._seconds[call.step] = self._entries[call.step.key] * reference

    def seconds(self, step: Step) -> float:
        """Return the seconds per run of a step that is in the table."""
        return self._seconds[step]

    def kernel(self, step: Step) -> str:
        """Return the name of the kernel that ran a step of the table; empty where the engine does not tell.

        Steps of different bits may well have the same one: then they cost the same.
        """
        return self._kernels.get(step.key, "")

    def _measure(self, policy: Policy, calls: Sequence[Call]) -> None:
        with timing_slot(self.engine.threads):
            start = time.perf_counter()
            # Searches that run beside this one price alike only if each step is measured by one of them.
            self._read()
            if "reference" not in self._entries:
                self._add("reference", self._timer.reference_seconds(), "")
            lacking = [call for call in calls if call.step.key not in self._entries]
            for timed in self._timer.time(policy, lacking) if lacking else ():
                if timed.step.key not in self._entries:
                    self._add(timed.step.key, timed.value, timed.kernel)
                    self.measured += 1
            self.took += time.perf_counter() - start
        if self.filled is not None:
            self.filled(self.measured)

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
