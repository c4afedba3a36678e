"""An engine and sessions whose times are made up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trimtab.evaluators.engines.base import EngineSession, Images, TimeSlice
from trimtab.evaluators.price.plan import STEP, Step, step_graph
from trimtab.graph import Graph


def _text(graph: Graph) -> str:
    nodes = [
        (n.kind, sorted(n.attrs.items()), [(k, w.dtype, w.shape) for k, w in n.weights.items()]) for n in graph.nodes
    ]
    return repr((graph.input_shape, nodes, sorted(graph.quant)))


class FakeEngine:
    """Every program has a time of its own; `measured` lists what was timed; `speed` slows the whole machine."""

    name = "fake"
    has_bf16 = False

    def __init__(self, signature: str = "fake 1", threads: int = 1) -> None:
        self.threads = threads
        self.signature = signature
        self.measured: list[Graph] = []
        self.speed = 1.0

    def truth(self, step: Step) -> float:
        return self._seconds(step_graph(step))

    def _seconds(self, graph: Graph) -> float:
        digest = hashlib.sha256(_text(graph).encode()).digest()
        return (1 + int.from_bytes(digest[:2], "big")) * 1e-9

    def layer_kernel(self, graph: Graph, layer: str) -> str:
        return f"kernel {self._seconds(graph)}"

    def layer_seconds(self, graph: Graph, layer: str, seconds: float) -> Sequence[float]:
        assert layer == STEP
        self.measured.append(graph)
        seconds = self._seconds(graph) * self.speed
        return [seconds * 1.5, seconds, seconds * 3]

    def compile(
        self, graph: Graph, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> EngineSession:
        raise NotImplementedError


class FakeSession:
    """Takes `seconds` a run, times noise and `drift` (a function of the slices so far), never really waiting.

    Every `interrupted`-th slice is taken for a whole time slice by another process.
    """

    def __init__(self, seconds: float, noise: float = 0.0, seed: int = 0, interrupted: int = 0) -> None:
        self.seconds, self.noise, self.interrupted = seconds, noise, interrupted
        self.rng = np.random.default_rng(seed)
        self.slices = 0

    def run(self, x: Images) -> Images:
        return x

    def time(self, inputs: Images, seconds: float) -> TimeSlice:
        self.slices += 1
        each = self.seconds * float(np.exp(self.noise * self.rng.normal()))
        runs = max(1, int(seconds / each))
        if self.interrupted and self.slices % self.interrupted == 0:
            return TimeSlice(runs, runs * each + 0.02, 1)
        return TimeSlice(runs, runs * each, 0)


class Machine:
    """A simulated machine, whose clock moves only while sessions run.

    Two speeds, exponentially long, spikes, and a slow drift; networks of one kind are slowed by the same factors."""

    def __init__(
        self, seed: int = 0, slow: float = 1.4, dwell: float = 0.25, spikes: float = 0.01, slow_share: float = 0.5
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.now, self.until, self.fast = 0.0, 0.0, False
        self.slow, self.spikes = slow, spikes
        self.dwell = {True: 2 * dwell * (1 - slow_share), False: 2 * dwell * slow_share}
        self.compiled = 0

    def perf_counter(self) -> float:
        return self.now

    def factor(self, exposure: float) -> float:
        while self.now >= self.until:
            self.fast = not self.fast
            self.until += float(self.rng.exponential(self.dwell[self.fast]))
        return 1.0 if self.fast else 1 + exposure * (self.slow - 1)

    def network(self, seconds: float, exposure: float = 1.0, placement: float = 0.01) -> Callable[[], SlowedSession]:
        def compiled() -> SlowedSession:
            self.compiled += 1
            self.now += 0.003
            return SlowedSession(self, seconds * math.exp(placement * self.rng.normal()), exposure)

        return compiled


class SlowedSession(FakeSession):
    def __init__(self, machine: Machine, seconds: float, exposure: float) -> None:
        super().__init__(seconds)
        self.machine, self.exposure = machine, exposure

    def time(self, inputs: np.ndarray, seconds: float) -> TimeSlice:
        machine, runs = self.machine, max(1, math.ceil(seconds / self.seconds))
        each = self.seconds * machine.factor(self.exposure) * math.exp(0.01 * machine.rng.normal())
        if machine.rng.random() < machine.spikes:
            each *= float(machine.rng.uniform(1, 20))
        machine.now += runs * each
        return TimeSlice(runs, runs * each, 0)
