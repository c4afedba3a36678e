"""Proxy accuracy: what a candidate is worth before any fine-tuning, on the engine that will run it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trimtab.evaluators.answers import Answers
from trimtab.evaluators.engines.base import EngineSession, Images
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.engines.registry import SIMULATED, make_engine
from trimtab.evaluators.engines.torch_operators import to_bf16
from trimtab.evaluators.lowering import copied_bits, is_bf16, lower, quant_of, storage
from trimtab.graph import Array, Graph, Node, Quant
from trimtab.kernels import stored_bytes
from trimtab.spaces.candidate import Candidate, apply
from trimtab.spaces.execute import run
from trimtab.spaces.policy import Policy
from trimtab.spaces.repairs.database import LayerDatabase
from trimtab.spaces.repairs.repair import Calibration, compress, settle
from trimtab.spaces.space import Space
from trimtab.threads import torch_threads

__all__ = [
    "Judge",
    "Judgement",
    "accuracy_of",
    "divergence",
    "graded",
    "judging_session",
    "simulated",
    "timing_candidate",
    "torch_logits",
]

BATCH = 16


@dataclass(frozen=True)
class Judgement:
    """`answers` are to the judge's images, `loss` is the mean `divergence` on them from the untouched network's
    outputs, in nats, at least 0; `size` the bytes of the weights as they are stored, entropy code included; `seconds`
    says where the evaluation's time went: repair (or stitch and settle), store, compile, run."""

    answers: Answers
    loss: float
    size: int
    seconds: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return self.answers.accuracy


@dataclass(frozen=True, eq=False)
class Judge:
    """All that judging a policy needs; it is shipped to a worker once.

    `by` is what runs the candidate for its answers and its loss: an engine by its name, or SIMULATED, PyTorch on real
    numbers that are rounded as integers would be (`torch_logits`); the candidate and its size are the same by all.
    PyTorch computes on one thread, whoever calls: the number of threads shows in the last bits.

    `images` (N, C, H, W) and `labels` (N,) are those that policies are chosen on. With a `database`, what is judged is
    stitched from its entries and settled on the `few` images of a calibration of its own: many times as fast, and less
    accurate than the finished candidate that `candidate` makes.
    """

    space: Space
    calibration: Calibration
    images: Array
    labels: Array
    by: str = "native"
    database: LayerDatabase | None = None
    few: Calibration | None = None

    @torch_threads(1)
    def candidate(self, policy: Policy) -> Candidate:
        """Apply and repair a policy."""
        return compress(self.space, policy, self.calibration)

    @torch_threads(1)
    def proxy(self, policy: Policy) -> Candidate:
        """Return the candidate whose accuracy stands for the policy's."""
        return self._proxy(policy, _Laps())

    def loss(self, logits: Array) -> float:
        """Return the mean divergence of a network's outputs (N, classes) on the images from the untouched one's."""
        return divergence(self._untouched, logits)

    @torch_threads(1)
    def __call__(self, policy: Policy) -> Judgement:
        """Return what a policy is worth by its proxy; same policy, same result, on any worker."""
        laps = _Laps()
        candidate = self._proxy(policy, laps)
        graph = lower(candidate)
        size = stored_bytes(graph)
        laps.note("store")
        session = self._session(candidate, graph)
        laps.note("compile")
        logits = session.run(self.images)
        answers, loss = graded(logits, self.labels), self.loss(logits)
        laps.note("run")
        return Judgement(answers, loss, size, laps.seconds)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is shipped: the untouched outputs too, so that they are computed once and the same everywhere."""
        return {**self.__dict__, "_untouched": self._untouched}

    @cached_property
    @torch_threads(1)
    def _untouched(self) -> Array:
        """The untouched network's outputs on the images, (N, classes), by the same judge."""
        return self.logits(self.candidate(self.space.base()), self.images)

    @torch_threads(1)
    def logits(self, candidate: Candidate, images: Array) -> Array:
        """Return a candidate's outputs (N, classes) for images (N, C, H, W)."""
        return self._session(candidate, lower(candidate)).run(images)

    def _session(self, candidate: Candidate, graph: Graph) -> _Runs:
        if self.by == SIMULATED:
            return _Simulation(candidate)
        return make_engine(self.by).compile(graph, BATCH, candidate.ranges)

    def _proxy(self, policy: Policy, laps: _Laps) -> Candidate:
        if self.database is None or self.few is None:
            candidate = self.candidate(policy)
            laps.note("repair")
            return candidate
        stitched = self.database.stitch(policy)
        laps.note("stitch")
        candidate = settle(self.space, stitched, self.few)
        laps.note("settle")
        return candidate


class _Runs(Protocol):
    """A runner of networks: outputs (N, classes) for images (N, C, H, W)."""

    def run(self, x: Images) -> Images: ...


class _Simulation:
    """A candidate that PyTorch runs."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    def run(self, x: Images) -> Images:
        return torch_logits(self.candidate, x)


class _Laps:
    """Seconds from one note to the next, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def judging_session(candidate: Candidate) -> EngineSession:
    """Compile a candidate on the native engine, which computes what the program says bit for bit, for batches."""
    return NativeEngine().compile(lower(candidate), BATCH)


def accuracy_of(session: EngineSession, images: Array, labels: Array) -> float:
    """Return a session's top-1 accuracy in [0, 1]."""
    return graded(session.run(images), labels).accuracy


def graded(logits: Array, labels: Array) -> Answers:
    """Return the answers of outputs (N, classes): right where the largest value is at the label (N,)."""
    return Answers.of(logits.argmax(axis=1) == labels)


def divergence(reference: Array, logits: Array) -> float:
    """Return the mean over N images of KL(p || q) in nats, at least 0, of the softmaxes p of `reference` and q of
    `logits`, both (N, classes).

    That is by how much the cross-entropy exceeds the least possible one where the reference's predictions are the
    labels (the loss of Hinton et al. 2015, at temperature 1). An output that is not finite says nothing: it counts as
    a uniform guess.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    each = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return float(np.maximum(each, 0.0).mean())  # rounding takes equal predictions a little below 0


def _log_softmax(logits: Array) -> Array:
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    shifted = np.where(finite, logits, 0.0).astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def timing_candidate(space: Space, policy: Policy) -> Candidate:
    """Return a candidate to be timed: unrepaired, with made-up activation ranges.

    Only their signs are real: onnxruntime fuses a ReLU into the rounding where the zero point is 0.
    """
    candidate = apply(space, policy)
    ranges = {candidate.network.input: (-4.0, 4.0)}
    for op in candidate.network:
        bounded = op.attrs.get("activation") in ("relu", "relu6", "sigmoid", "hard_sigmoid")
        moved = op.kind != "activation" and not op.is_layer and all(ranges[name][0] == 0 for name in op.inputs)
        positive = bounded or moved
        ranges[op.name] = (0.0 if positive else -4.0, 4.0)
    return replace(candidate, ranges=ranges)


def torch_logits(candidate: Candidate, images: Array, batch: int = 64) -> Array:
    """Run a candidate in PyTorch with simulated quantisation: (N, C, H, W) -> (N, classes)."""
    network, quant = simulated(candidate)
    halved = {op.inputs[0] for op in network.layers if is_bf16(op, candidate.decisions.get(op.name))}

    def observe(op: Node, y: Tensor) -> Tensor | None:
        if op.name in halved:
            return to_bf16(y)
        return _rounded(y, quant[op.name]) if op.name in quant else None

    outputs = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.array(images[start : start + batch]))
        if network.input in quant:
            x = _rounded(x, quant[network.input])
        outputs.append(run(network, x, observe).numpy())
    return np.concatenate(outputs)


def simulated(candidate: Candidate) -> tuple[Graph, dict[str, Quant]]:
    """Return the network to run in PyTorch for a candidate, and the tensors of it that have to be rounded.

    Integer layers read a copy of what is stored otherwise.
    """
    network, quant = candidate.network, storage(candidate)
    stored = {tensor: q.bits for tensor, q in quant.items()}
    ops: list[Node] = []
    for op in network:
        source = op.inputs[0]
        bits = copied_bits(candidate.decisions.get(op.name), stored.get(source))
        if bits is not None:
            copy = f"{source}/int{bits}"
            if copy not in quant:
                quant[copy] = quant_of(candidate, source, bits)
                ops.append(Node("quantize", copy, (source,)))
            op = replace(op, inputs=(copy, *op.inputs[1:]))
        elif is_bf16(op, candidate.decisions.get(op.name)):
            copy = f"{source}/bf16"
            if all(other.name != copy for other in ops):
                ops.append(Node("quantize", copy, (source,)))
            op = replace(op, inputs=(copy, *op.inputs[1:]))
        ops.append(op)
    return replace(network, nodes=tuple(ops)), quant


def _rounded(y: Tensor, quant: Quant) -> Tensor:
    scale, zero = quant.scale, quant.zero_point
    return (torch.clamp(torch.round(y / scale) + zero, 0, quant.top) - zero) * scale
