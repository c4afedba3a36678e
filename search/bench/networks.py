"""Whole networks on every engine, all forms and engines in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines import ENGINES, Engine, make_engine
from trimtab.evaluators.engines.base import EngineSession, Images
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.rounds import Rounds, interleave
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.graph import Graph, Node, Quant
from trimtab.search.bench.child import run_in_child
from trimtab.search.bench.rows import empty_network, named
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import run
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space, build_space
from trimtab.spaces.zoo import ZOO, build

__all__ = [
    "FORMS",
    "ROTATED",
    "bench_networks",
    "calibrated",
    "check_forms",
    "load_network",
    "network_rows",
    "policy_of",
]

#: Forms of a network: "half" is int8 with half of its channels. Others are formats of all layers, as "7/7".
FORMS = ("fp32", "int8", "half")

#: Images that a session is timed on in turn.
ROTATED = 4


def bench_networks(
    networks: Sequence[str],
    engines: Sequence[str],
    forms: Sequence[str],
    threads: Sequence[int],
    seconds: float,
    level: str | None,
) -> list[dict[str, Any]]:
    """Time every form of every network on every engine; one process per network and number of threads.

    Every row has `network`, `form`, `threads`, `engine`, `held_to` (the kernel level that was asked for, None where the
    engine chooses; onnxruntime always does), `exact` (whether its integer products are: see `exact_products`), `ms`
    per image with its interval, `call_ms` (the engine's time for a network that does nothing), `rounds`, and four
    speed-ups with intervals, each the median over rounds of another's time divided by this one's: `speedup` over the
    fastest other engine, `best_other`; `exact_speedup` over the fastest other one with exact products; `int8_speedup`
    of a half form, or of another format, over int8 on the same engine; and `thread_speedup` of native with several
    threads over one. `lacking` says why an engine has no time for a form.
    """
    check_forms(forms)
    options = {"engines": list(engines), "forms": list(forms), "seconds": seconds}
    return [
        row
        for network in networks
        for count in threads
        for row in run_in_child(network_rows, count, level, {"network": network, **options})
    ]


def check_forms(forms: Sequence[str]) -> None:
    """Raise `BadInput` for a form that there is not."""
    for form in forms:
        if form not in FORMS:
            _format(form)


def network_rows(
    network: str, engines: Sequence[str], forms: Sequence[str], threads: int, seconds: float, level: str | None
) -> list[dict[str, Any]]:
    """Return the rows of one network, measured in this process."""
    made = {name: make_engine(name, threads) for name in engines}
    exact = {name: _exact_or_none(engine) for name, engine in made.items()}
    space, images = load_network(network)
    inputs = np.ascontiguousarray(images[:ROTATED, None])
    timed: dict[_Timed, tuple[EngineSession, Images]] = {}
    lacking: dict[_Timed, str] = {}
    for form in forms:
        candidate = calibrated(space, policy_of(space, form), images)
        graph = lower(candidate)
        for name, engine in made.items():
            try:
                timed[_Timed(form, name)] = (engine.compile(graph, 1, candidate.ranges), inputs)
            except BadInput as error:
                lacking[_Timed(form, name)] = str(error)
        if threads > 1 and "native" in made:
            timed[_Timed(form, "native", alone=True)] = (make_engine("native").compile(graph), inputs)
    for name, engine in made.items():
        timed[_Timed("empty", name)] = (engine.compile(empty_network()), np.zeros((1, 1, 1), np.float32))
    with timing_slot(threads, pools=True):
        found = _Found(list(timed), interleave(list(timed.values()), seconds, threads), exact)
    return [
        {
            "network": network,
            "form": form,
            "threads": threads,
            "engine": engine.signature.removesuffix(f" threads={threads}"),
            "held_to": level if name in ENGINES and ENGINES[name].obeys_level else None,
            "exact": None if form == "fp32" else exact[name],
            **named("ms", found.time(_Timed(form, name)), 1e3),
            "call_ms": named("call", found.time(_Timed("empty", name)), 1e3)["call"],
            "rounds": len(found.rounds.seconds),
            **_speedups(found, _Timed(form, name)),
            "lacking": lacking.get(_Timed(form, name)),
        }
        for form in forms
        for name, engine in made.items()
    ]


def _exact_or_none(engine: Engine) -> bool | None:
    try:
        return exact_products(engine)
    except BadInput:  # it has no integer convolutions
        return None


class _Timed(NamedTuple):
    """A timed pair: a form on an engine; `alone` is one thread where the others have several."""

    form: str
    engine: str
    alone: bool = False


@dataclass(frozen=True)
class _Found:
    """The rounds of all that was timed, in the order of `timed`; `exact` says which engines' integers are."""

    timed: list[_Timed]
    rounds: Rounds
    exact: Mapping[str, bool | None]

    def time(self, what: _Timed) -> Interval | None:
        return self.rounds.time(self.timed.index(what)) if what in self.timed else None

    def fastest(self, whats: list[_Timed]) -> _Timed | None:
        return min(whats, key=lambda what: self.rounds.time(self.timed.index(what)), default=None)

    def speedup(self, what: _Timed, over: _Timed | None) -> Interval | None:
        if over is None or not {what, over} <= set(self.timed):
            return None
        return self.rounds.ratio(self.timed.index(over), self.timed.index(what))


def _speedups(found: _Found, what: _Timed) -> dict[str, Any]:
    others = [t for t in found.timed if t.form == what.form and t.engine != what.engine and not t.alone]
    best = found.fastest(others)
    best_exact = found.fastest([t for t in others if t.form == "fp32" or found.exact[t.engine]])
    int8 = None if what.form in ("fp32", "int8") else what._replace(form="int8")
    return {
        "best_other": None if best is None else best.engine,
        **named("speedup", found.speedup(what, best)),
        **named("exact_speedup", found.speedup(what, best_exact)),
        **named("int8_speedup", found.speedup(what, int8)),
        **named("thread_speedup", found.speedup(what, what._replace(alone=True))),
    }


def load_network(name: str) -> tuple[Space, Images]:
    """Return a network with random weights, on which no time depends, and random images of its size."""
    torch.manual_seed(0)
    if name in ZOO:
        model, size = build(name), 32
    else:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise BadInput(str(unknown_name("network", name, [*ZOO, *known])))
        model, size = models.get_model(name, weights=None), 224
    images = np.random.default_rng(0).normal(size=(8, 3, size, size)).astype(np.float32)
    return build_space(model, torch.from_numpy(images[:1])), images


def policy_of(space: Space, form: str) -> Policy:
    """Return the policy of a form."""
    if form == "half":
        return space.uniform(0.5, INT8)
    if form == "fp32":
        return space.base()
    policy = space.int8()
    if form == "int8":
        return policy
    layers = {name: replace(decision, format=_format(form)) for name, decision in policy.layers.items()}
    return replace(policy, layers=layers)


def _format(form: str) -> LayerFormat:
    found = LayerFormat.parse(form)
    if found is None:
        raise unknown_name("form", form, FORMS)
    return found


def calibrated(space: Space, policy: Policy, images: Images) -> Candidate:
    """Return a candidate to be timed, with the ranges that two images give: some activations are to be other than
    zero."""
    candidate = timing_candidate(space, policy)
    x = torch.from_numpy(images[:2])
    ranges = {candidate.network.input: (float(x.min()), float(x.max()))}

    def observe(op: Node, y: torch.Tensor) -> None:
        ranges[op.name] = (float(y.min()), float(y.max()))

    run(candidate.network, x, observe)
    return replace(candidate, ranges=ranges)


def exact_products(engine: Engine) -> bool:
    """Whether an integer convolution adds its products exactly, on the largest there are.

    Kernels made for processors without VNNI add two of them in 16 bits, which saturate at half of the sum.
    """
    largest = np.full((16, 16, 3, 3), 127, np.int8)
    total = 127.0 * 255 * largest[0].size
    nodes = (
        Node("conv2d", "sum", ("x",), {}, {"weight": largest, "weight_scale": np.ones(16, np.float32)}),
        Node("flatten", "y", ("sum",)),
    )
    graph = Graph("x", (16, 3, 3), nodes, "y", {"x": Quant(1.0, 0), "sum": Quant(total / 250, 0)})
    found = engine.compile(graph).run(np.full((1, 16, 3, 3), 255, np.float32))
    return bool(np.allclose(found, total, rtol=0.01))
