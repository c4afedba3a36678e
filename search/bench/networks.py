"""Whole networks on every engine, all forms and engines in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.accuracy import timing_candidate
from trimtab.evaluators.engines import Engine, make_engine
from trimtab.evaluators.engines.base import EngineSession, Images
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.timing import Rounds, interleave, timing_slot
from trimtab.kernels.graph import Graph, Node, Quant
from trimtab.search.bench.child import obeys_caps, run_in_child
from trimtab.search.bench.rows import empty_network, named
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.execute import run
from trimtab.spaces.network import Op
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space, build_space
from trimtab.spaces.zoo import ZOO, build

__all__ = ["FORMS", "bench_networks", "load_network", "network_rows"]

#: Forms of a network: "half" is int8 with half of its channels.
FORMS = ("fp32", "int8", "half")

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
    per image with its interval, `call_ms` (the engine's time for a network that does nothing), `rounds`, and three
    speed-ups with intervals, each the median over rounds of another's time divided by this one's: `speedup` over the
    fastest other engine, `best_other`; `exact_speedup` over the fastest other one with exact products; and
    `int8_speedup` of a half form over int8 on the same engine.
    """
    for form in forms:
        if form not in FORMS:
            raise unknown_name("form", form, FORMS)
    options = {"engines": list(engines), "forms": list(forms), "seconds": seconds}
    return [
        row
        for network in networks
        for count in threads
        for row in run_in_child(network_rows, count, level, {"network": network, **options})
    ]


def network_rows(
    network: str, engines: Sequence[str], forms: Sequence[str], threads: int, seconds: float, level: str | None
) -> list[dict[str, Any]]:
    """Return the rows of one network, measured in this process."""
    made = [make_engine(name, threads) for name in engines]
    space, images = load_network(network)
    inputs = np.ascontiguousarray(images[:ROTATED, None])
    keys = [(form, engine.name) for form in forms for engine in made]
    candidates = {form: calibrated(space, policy_of(space, form), images) for form in forms}
    timed: list[tuple[EngineSession, Images]] = []
    for form in forms:
        graph = lower(candidates[form])
        timed += [(engine.compile(graph, 1, candidates[form].ranges), inputs) for engine in made]
    timed += [(engine.compile(empty_network()), np.zeros((1, 1, 1), np.float32)) for engine in made]
    with timing_slot(threads, pools=True):
        rounds = interleave(timed, seconds, threads)
    exact = {engine.name: exact_products(engine) for engine in made}
    rows = []
    for index, (form, name) in enumerate(keys):
        engine = made[engines.index(name)]
        rows.append(
            {
                "network": network,
                "form": form,
                "threads": threads,
                "engine": engine.signature.removesuffix(f" threads={threads}"),
                "held_to": level if obeys_caps(name) else None,
                "exact": None if form == "fp32" else exact[name],
                **named("ms", rounds.time(index), 1e3),
                "call_ms": rounds.time(len(keys) + engines.index(name)).median * 1e3,
                "rounds": len(rounds.seconds),
                **_speedups(rounds, keys, index, exact),
            }
        )
    return rows


def _speedups(rounds: Rounds, keys: list[tuple[str, str]], index: int, exact: Mapping[str, bool]) -> dict[str, Any]:
    form, name = keys[index]
    others = [i for i, key in enumerate(keys) if key[0] == form and key[1] != name]
    rivals = [i for i in others if form == "fp32" or exact[keys[i][1]]]
    times = [rounds.time(i).median for i in range(len(keys))]
    best = min(others, key=times.__getitem__, default=None)
    best_exact = min(rivals, key=times.__getitem__, default=None)
    whole = keys.index(("int8", name)) if form == "half" and ("int8", name) in keys else None
    return {
        "best_other": None if best is None else keys[best][1],
        **named("speedup", None if best is None else rounds.ratio(best, index)),
        **named("exact_speedup", None if best_exact is None else rounds.ratio(best_exact, index)),
        **named("int8_speedup", None if whole is None else rounds.ratio(whole, index)),
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
        return space.uniform(0.5, (8, 8))
    return space.base() if form == "fp32" else space.int8()


def calibrated(space: Space, policy: Policy, images: Images) -> Candidate:
    """Return a candidate to be timed, with the ranges that two images give: some activations are to be other than
    zero."""
    candidate = timing_candidate(space, policy)
    x = torch.from_numpy(images[:2])
    ranges = {candidate.network.input: (float(x.min()), float(x.max()))}

    def observe(op: Op, y: torch.Tensor) -> None:
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
