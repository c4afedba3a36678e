"""Coverage of intervals: how far measurements of seconds lie from what ten minutes say, and whether they say so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trimtab.errors import BadInput
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.base import Engine, Images
from trimtab.evaluators.measure.comparison import BLOCK_SECONDS, Compile
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval, block_interval, undisturbed_ratio
from trimtab.evaluators.measure.rounds import interleave
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.search.bench.load import bursts
from trimtab.search.bench.networks import load_network
from trimtab.search.progress import Progress
from trimtab.search.setup.config import default_config, load_config
from trimtab.search.setup.link import find_yardstick
from trimtab.search.setup.problem import load_problem
from trimtab.spaces.policy import Policy

__all__ = ["LENGTHS", "bench_coverage", "coverage_rows"]

Floats = npt.NDArray[np.float64]
Block = TypeVar("Block")

#: Seconds of the measurements.
LENGTHS = (1.0, 2.0, 5.0, 10.0)

#: Seconds of every network at the beginning that serve as the link.
RUN_IN = 30.0

#: Measurements of each length at least; where they would not fit beside each other, they overlap.
LEAST_MEASUREMENTS = 60


@dataclass(frozen=True)
class _Setting:
    """A network in three forms: as given, the yardstick, and a small one."""

    name: str
    yardstick: str
    small: str
    inputs: Images
    forms: tuple[Compile, Compile, Compile]


def bench_coverage(
    network: str, engine: str, threads: int, minutes: float, load: bool, run: Path | None
) -> list[dict[str, Any]]:
    """Measure pairs of networks for `minutes`, all networks in turn, under a load of bursts where `load` is set, and
    say of measurements of every one of LENGTHS how they stand to all blocks pooled.

    The pairs: `network`'s int8 form with itself as given, both undisturbed, as links are measured; half of its channels
    with its int8 form; and the winner of the `run` in a folder (without one, a quarter of the demo's channels) with the
    yardstick that the run has, and with its base by the link. See `coverage_rows` for the rows.
    """
    if minutes * 60 < 4 * RUN_IN:  # half of it for either network, and of that half for the link
        raise BadInput(f"bench measure needs at least {4 * RUN_IN / 60:g} minutes, got {minutes:g}")
    made = make_engine(engine, threads)
    settings = [_of_network(made, network), _of_run(made, run)]
    records: list[list[Floats]] = [[] for _ in settings]
    with bursts() if load else nullcontext(), timing_slot(threads):
        end = time.perf_counter() + minutes * 60
        while time.perf_counter() < end:
            for setting, record in zip(settings, records, strict=True):
                record.append(_block(setting))
    about = {"engine": made.signature, "load": load, "minutes": minutes}
    return [
        {**about, **row}
        for setting, record in zip(settings, records, strict=True)
        for row in _rows(setting, record, network=setting is settings[0])
    ]


def coverage_rows(
    pair: str, blocks: Sequence[Block], truth: float, measure: Callable[[Sequence[Block]], Interval]
) -> list[dict[str, Any]]:
    """Return a row for every length: `deviation_p50` and `deviation_p95` of measurements from the `truth`, the median
    half of their intervals, all as shares of it, and the `coverage`: the share of intervals that the truth lies in.

    `blocks` are in order of time, BLOCK_SECONDS each, and `measure` makes an interval of some in a row. `measurements`
    counts those taken, `apart` those that do not overlap.
    """
    rows = []
    for seconds in LENGTHS:
        length = max(round(seconds / BLOCK_SECONDS), 1)
        apart = len(blocks) // length
        if apart < 2:
            continue
        step = length if apart >= LEAST_MEASUREMENTS else max((len(blocks) - length) // LEAST_MEASUREMENTS, 1)
        found = [measure(blocks[first : first + length]) for first in range(0, len(blocks) - length + 1, step)]
        deviations = np.array([abs(interval.middle / truth - 1) for interval in found])
        rows.append(
            {
                "pair": pair,
                "ratio": truth,
                "seconds": seconds,
                "measurements": len(found),
                "apart": apart,
                "deviation_p50": float(np.quantile(deviations, 0.5)),
                "deviation_p95": float(np.quantile(deviations, 0.95)),
                "half_interval": float(np.median([interval.precision for interval in found])),
                "coverage": float(np.mean([interval.low <= truth <= interval.high for interval in found])),
            }
        )
    return rows


def _rows(setting: _Setting, blocks: list[Floats], network: bool) -> list[dict[str, Any]]:
    """`blocks` are those of `_block`."""
    first = round(RUN_IN / BLOCK_SECONDS)
    early, later = blocks[:first], blocks[first:]
    whole, like = _unlike(later), _pooled(later)
    name = f"{setting.name} {setting.small}"
    rows = coverage_rows(f"{name} / {setting.yardstick}", later, like.middle, _pooled)
    if network:
        return [*coverage_rows(f"{setting.name} {setting.yardstick} / fp32", later, whole.middle, _unlike), *rows]
    link = _unlike(early)

    def chained(window: Sequence[Floats]) -> Interval:
        return _pooled(window).times(link)

    return [*rows, *coverage_rows(f"{name} / fp32, by the link", later, like.middle * whole.middle, chained)]


def _pooled(blocks: Sequence[Floats]) -> Interval:
    """The small form's ratio to the yardstick, as a comparison says it."""
    return block_interval([float(np.median(block[:, 2] / block[:, 1])) for block in blocks])


def _unlike(blocks: Sequence[Floats]) -> Interval:
    """The yardstick's ratio to the network as given, as a link says it."""
    base, yardstick, _ = np.concatenate(blocks).T
    return undisturbed_ratio(yardstick.tolist(), base.tolist())


def _block(setting: _Setting) -> Floats:
    """Return the seconds per run of base, yardstick and small in a block's rounds, (rounds, 3), all compiled anew."""
    sessions = [compiled() for compiled in setting.forms]
    rounds = interleave([(session, setting.inputs) for session in sessions], BLOCK_SECONDS / len(sessions))
    return rounds.seconds


def _of_network(engine: Engine, name: str) -> _Setting:
    space, images = load_network(name)
    bench = LatencyBench(engine, space, images)
    forms = bench.compiles(space.base()), bench.compiles(space.int8()), bench.compiles(space.uniform(0.5, (8, 8)))
    return _Setting(name, "int8", "half the channels", bench.inputs, forms)


def _of_run(engine: Engine, run: Path | None) -> _Setting:
    config = default_config() if run is None else load_config(run / "config.yaml")
    problem = load_problem(config, Progress())
    space, bench = problem.space, LatencyBench(engine, problem.space, problem.judge.images)
    if run is None:
        small, policy = "a quarter of the channels", space.uniform(0.25, (8, 8))
    elif (run / "policy.json").is_file():
        small, policy = "winner", Policy.load(run / "policy.json")
    else:
        raise BadInput(f"{run} has no policy.json: its search has not finished, or nothing met the budgets")
    yardstick = find_yardstick(bench, config.parsed_budgets, RUN_IN)
    name = "int8" if yardstick == space.int8() else "yardstick"
    forms = bench.compiles(space.base()), bench.compiles(yardstick), bench.compiles(policy)
    return _Setting(config.data.name, name, small, bench.inputs, forms)
