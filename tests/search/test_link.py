"""The yardstick of a run, chosen by a bench whose networks take made-up times."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.evaluators.nets import space_of

from trimtab.evaluators import Interval, Latency, Link
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import parse_budget
from trimtab.search.setup.config import default_config
from trimtab.search.setup.link import WIDTHS, find_yardstick, latency_limit, tie
from trimtab.spaces import Policy
from trimtab.spaces.numbers.formats import INT8

SPACE = space_of("resnet8")
UNIFORM = {width: SPACE.uniform(width, INT8) for width in WIDTHS}

#: int8 takes 0.4 of the base's time, and every network as much of int8's as it has channels.
INT8 = 0.4


class MadeUpBench:
    space = SPACE

    def __init__(self, fits: bool) -> None:
        self.fits, self.precision = fits, 0.0
        self.tied: list[tuple[Policy, float]] = []

    def lives_in_own_cache(self, policy: Policy) -> bool:
        assert policy == SPACE.int8()
        return self.fits

    def tie(self, yardstick: Policy, seconds: float, told: Any = None) -> Link:
        self.tied.append((yardstick, seconds))
        width = next(width for width, policy in UNIFORM.items() if policy == yardstick)
        one = Interval.exactly
        ratio = Interval(INT8 * width, INT8 * width * (1 - self.precision), INT8 * width * (1 + self.precision))
        return Link(yardstick, ratio, one(width), one(1e-3 * width), 48, 0.1, seconds, "interval")

    def measure(self, policy: Policy, link: Link, seconds: float, least: int) -> Latency:
        assert link.yardstick == SPACE.int8()
        width = Interval.exactly(next(width for width, each in UNIFORM.items() if each == policy))
        return Latency(*width.times(link.ratio), width, width, 1e-3, least, 40, 0, seconds, "time")


def found(budgets: dict[str, Any], fits: bool = False) -> Policy:
    bench = cast(LatencyBench, MadeUpBench(fits))
    return find_yardstick(bench, [parse_budget(name, value) for name, value in budgets.items()], 30.0)


def test_the_int8_form_is_the_yardstick_where_it_fits_the_core_s_own_cache() -> None:
    for budget in ("0.2x", "0.2x int8", "1 ms"):
        assert found({"latency": budget}, fits=True) == SPACE.int8()


@pytest.mark.parametrize("width", WIDTHS)
def test_elsewhere_it_is_the_uniform_network_nearest_to_the_budget_whatever_that_is_relative_to(width: float) -> None:
    for near in (0.95 * width, 1.05 * width):
        for budget in (f"{INT8 * near}x", f"{near}x int8", f"{near} ms"):
            assert found({"size": "0.5x", "latency": budget}) == UNIFORM[width]


def test_without_a_latency_budget_it_is_in_the_middle() -> None:
    assert found({"size": "0.5x"}) == UNIFORM[0.5]


class Told(Progress):
    def __init__(self) -> None:
        self.text = ""

    def line(self, text: str) -> None:
        self.text += text + "\n"


@pytest.mark.parametrize("fits", [True, False])
def test_a_run_says_what_its_yardstick_is_and_how_well_the_link_is_known(fits: bool) -> None:
    config = default_config(["budgets.latency=0.5x int8", "measure.link_seconds=8"])
    bench, told = MadeUpBench(fits), Told()
    link = tie(cast(LatencyBench, bench), config, told)
    assert bench.tied[-1] == (UNIFORM[1.0 if fits else 0.5], 8)
    assert "uniform int8 takes 0.4000x" in told.text
    assert ("does not fit" in told.text) == (not fits)
    assert "as much room is kept" not in told.text
    assert latency_limit(config.parsed_budgets, link) == pytest.approx(Interval.exactly(0.5 if fits else 1.0))
    bench.precision = 0.05
    tie(cast(LatencyBench, bench), config, told)
    assert "known to within 5.0%" in told.text
