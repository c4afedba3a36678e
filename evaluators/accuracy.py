"""Proxy accuracy: what a candidate is worth by the metric before any fine-tuning, on the engine that will run it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trimtab.evaluators.answers import Graded, Scale
from trimtab.evaluators.engines.base import EngineSession, Images
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.evaluators.engines.registry import SIMULATED, make_engine
from trimtab.evaluators.engines.torch_operators import to_bf16
from trimtab.evaluators.lowering import copied_bits, is_bf16, lower, quant_of, storage
from trimtab.evaluators.metrics import TOP_1, Metric, graded
from trimtab.evaluators.targets import Targets
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
    "squared_distance",
    "timing_candidate",
    "torch_logits",
]

BATCH = 16

#: Images whose predictions are compared at once.
AT_ONCE = 64


@dataclass(frozen=True)
class Judgement:
    """`answers` are what the metric finds on the judge's images, `loss` is the mean `divergence` on them from the
    untouched network's outputs, at least 0; `size` the bytes of the weights as they are stored, entropy code
    included; `seconds` says where the evaluation's time went: repair (or stitch and settle), store, compile, run."""

    answers: Graded
    loss: float
    size: int
    seconds: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """The metric as agents take it, in [0, 1], higher is better."""
        return self.answers.accuracy


@dataclass(frozen=True, eq=False)
class Judge:
    """All that judging a policy needs; it is shipped to a worker once.

    `by` is what runs the candidate for its answers and its loss: an engine by its name, or SIMULATED, PyTorch on real
    numbers that are rounded as integers would be (`torch_logits`); the candidate and its size are the same by all.
    PyTorch computes on one thread, whoever calls: the number of threads shows in the last bits.

    `images` (N, C, H, W) and their `targets` are those that policies are chosen on, by the `metric`. Without targets
    (None), they are held to what the untouched network says. With a `database`, what is judged is
    stitched from its entries and settled on the `few` images of a calibration of its own: many times as fast, and less
    accurate than the finished candidate that `candidate` makes.
    """

    space: Space
    calibration: Calibration
    images: Array
    targets: Targets
    by: str = "native"
    database: LayerDatabase | None = None
    few: Calibration | None = None
    metric: Metric = TOP_1

    @torch_threads(1)
    def candidate(self, policy: Policy) -> Candidate:
        """Apply and repair a policy."""
        return compress(self.space, policy, self.calibration)

    @torch_threads(1)
    def proxy(self, policy: Policy) -> Candidate:
        """Return the candidate whose accuracy stands for the policy's."""
        return self._proxy(policy, _Laps())

    def loss(self, outputs: Array) -> float:
        """Return the mean divergence of a network's outputs (N, ...) on the images from the untouched one's."""
        return (divergence if self.metric.classes else squared_distance)(self._untouched, outputs)

    def graded(self, outputs: Array) -> Graded:
        """Return what the metric finds of a network's outputs (N, ...) on the images."""
        return self.held_to(self._wanted, outputs)

    def held_to(self, targets: Targets, outputs: Array) -> Graded:
        """Return what the metric finds of a network's outputs (N, ...), by the targets, on any images."""
        return graded(outputs, targets, self.metric, self.scale)

    def wanted(self, images: Array, targets: Targets) -> Targets:
        """Return the targets of images (N, C, H, W); where there are none, what the untouched network says of them:
        its classes, or its outputs themselves where they are none."""
        if targets is not None:
            return targets
        own = images is self.images
        outputs = self._untouched if own else self.outputs(self.candidate(self.space.base()), images)
        return outputs.argmax(axis=1) if self.metric.classes else outputs

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
        outputs = session.run(self.images)
        answers, loss = self.graded(outputs), self.loss(outputs)
        laps.note("run")
        return Judgement(answers, loss, size, laps.seconds)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is shipped: what the untouched network says too, so that it is computed once and the same
        everywhere."""
        return {**self.__dict__, "_untouched": self._untouched, "_wanted": self._wanted, "scale": self.scale}

    @cached_property
    @torch_threads(1)
    def _untouched(self) -> Array:
        """The untouched network's outputs on the images, (N, ...), by the same judge."""
        return self.outputs(self.candidate(self.space.base()), self.images)

    @cached_property
    def _wanted(self) -> Targets:
        return self.wanted(self.images, self.targets)

    @cached_property
    def scale(self) -> Scale:
        """The metric's scale, by what it is of the untouched network."""
        return self.metric.scale(self.metric.value(self._untouched, self._wanted))

    @torch_threads(1)
    def outputs(self, candidate: Candidate, images: Array) -> Array:
        """Return a candidate's outputs (N, ...) for images (N, C, H, W)."""
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
    """A runner of networks: outputs (N, ...) for images (N, C, H, W)."""

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
    return graded(session.run(images), labels).value


def divergence(reference: Array, logits: Array) -> float:
    """Return the mean over N images, and over all places of each, of KL(p || q) in nats, at least 0, of the softmaxes p
    of `reference` and q of `logits`, both (N, classes, ...).

    That is by how much the cross-entropy exceeds the least possible one where the reference's predictions are the
    labels (the loss of Hinton et al. 2015, at temperature 1). An output that is not finite says nothing: it counts as
    a uniform guess.
    """
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(reference), AT_ONCE)]
    each = np.concatenate([_divergences(reference[part], logits[part]) for part in parts])
    return float(np.maximum(each, 0.0).mean())  # rounding takes equal predictions a little below 0


def squared_distance(reference: Array, outputs: Array) -> float:
    """Return the mean squared distance of outputs from those of a reference, both (N, ...), of which no softmax is
    taken, as a share of the reference's variance, each output's (axis 1) about its own mean; one that is not finite
    counts as 0."""
    finite = np.where(np.isfinite(outputs), outputs, 0.0)
    errors = ((finite - reference.astype(np.float64)) ** 2).mean()
    others = (0, *range(2, reference.ndim))
    return float(errors / max(float(reference.var(axis=others, dtype=np.float64).mean()), np.finfo(np.float32).tiny))


def _divergences(reference: Array, logits: Array) -> Array:
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    each = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.asarray(each.reshape(len(each), -1).mean(axis=1))


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
    """Run a candidate in PyTorch with simulated quantisation: (N, C, H, W) -> (N, ...)."""
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
