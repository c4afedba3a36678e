"""Networks at every width: what an engine's time is worth of channels that were pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.base import EngineSession, Images
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.rounds import interleave
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.evaluators.price.plan import StepPlan
from trimtab.search.bench.child import run_in_child
from trimtab.search.bench.networks import ROTATED, calibrated, check_forms, load_network, policy_of
from trimtab.search.bench.rows import named
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["PARTS", "bench_widths", "width_rows"]

#: Widths are so many parts of all channels, rounded to whole ones.
PARTS = 16


def bench_widths(
    networks: Sequence[str],
    engines: Sequence[str],
    forms: Sequence[str],
    widths: Sequence[int],
    seconds: float,
    level: str | None,
) -> list[dict[str, Any]]:
    """Time every network with `widths` of sixteen parts of every group's channels, on every engine, all in turn; one
    process per network and form.

    A row has `network`, `form`, `engine`, `width` (of 16), `macs` (the share of the full width's), and `ratio`: its
    time over the first engine's at full width, with its interval.
    """
    check_forms(forms)
    if not widths or not all(1 <= width <= PARTS for width in widths):
        raise BadInput(f"widths are 1 to {PARTS} of {PARTS} parts, got {', '.join(map(str, widths)) or 'none'}")
    options = {"engines": list(engines), "widths": sorted({*widths, PARTS}), "seconds": seconds}
    return [
        row
        for network in networks
        for form in forms
        for row in run_in_child(width_rows, 1, level, {"network": network, "form": form, **options})
    ]


def width_rows(
    network: str,
    form: str,
    engines: Sequence[str],
    widths: Sequence[int],
    threads: int,
    seconds: float,
    level: str | None,
) -> list[dict[str, Any]]:
    """Return the rows of one network in one form, measured in this process; the last width is the full one."""
    space, images = load_network(network)
    inputs = np.ascontiguousarray(images[:ROTATED, None])
    policies = [_at_width(space, policy_of(space, form), width) for width in widths]
    plan = StepPlan(space)
    macs = [sum(step.macs for step in plan.steps(policy)) for policy in policies]
    sessions: list[tuple[EngineSession, Images]] = []
    for name in engines:
        engine = make_engine(name, threads)
        for policy in policies:
            candidate = calibrated(space, policy, images)
            sessions.append((engine.compile(lower(candidate), 1, candidate.ranges), inputs))
    with timing_slot(threads, pools=True):
        rounds = interleave(sessions, seconds, threads)
    full = len(policies) - 1  # of the first engine
    return [
        {
            "network": network,
            "form": form,
            "engine": name,
            "width": width,
            "macs": macs[j] / macs[full],
            **named("ratio", rounds.ratio(i * len(policies) + j, full)),
        }
        for i, name in enumerate(engines)
        for j, width in enumerate(widths)
    ]


def _at_width(space: Space, policy: Policy, width: int) -> Policy:
    counts = {
        group.name: max(space.smallest[group.name], 1, round(group.size * width / PARTS)) for group in space.groups
    }
    return replace(policy, channels=counts)
