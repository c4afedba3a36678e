"""The link of a run: which network is the yardstick of its measurements, and what ties it to the network as given."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Link
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import Budget
from trimtab.search.setup.config import Config
from trimtab.spaces.numbers.formats import INT8
from trimtab.spaces.policy import Policy

__all__ = ["find_yardstick", "latency_limit", "tie"]

#: Half the interval of the link beyond which a run says what it costs.
UNCERTAIN = 0.03

#: Shares of the channels that yardsticks keep, and the one that serves where latency has no limit.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25)
MIDDLE = 0.5

#: Seconds of looking for one: of the link, and of every network.
LOOK_SECONDS = 2.0


def tie(bench: LatencyBench, config: Config, progress: Progress) -> Link:
    """Measure what ties the yardstick to the network as given, and say how well that is known."""
    seconds = config.measuring.link_seconds
    yardstick = find_yardstick(bench, config.parsed_budgets, seconds)
    with progress.bar("seconds of the network as given in turn with the yardstick", round(seconds)) as bar:
        link = bench.tie(yardstick, seconds, lambda took: bar.update(min(int(took), round(seconds))))
    progress.line(_described(link, bench.space.int8()))
    limited = any(budget.name == "latency" for budget in config.parsed_budgets)
    if limited and max(link.ratio.precision, link.to_int8.precision) > UNCERTAIN:
        progress.line(
            f"what budgets relative to the network as given mean is known to within {link.ratio.precision:.1%}, "
            f"relative to int8 to within {link.to_int8.precision:.1%}, and as much room is kept: a machine with less "
            "beside this, or a longer measure.link_seconds, makes it less"
        )
    return link


def find_yardstick(bench: LatencyBench, budgets: Sequence[Budget], seconds: float) -> Policy:
    """Return the policy that candidates are measured in turn with, found within a part of `seconds`.

    It is the uniform int8 form where that lives in the core's own cache, as whatever is smaller then does too. Weights
    that stream from a shared cache slow down by another factor while others use the machine: there it is the uniform
    int8 network that is nearest to the latency budget.
    """
    space = bench.space
    if bench.lives_in_own_cache(space.int8()):
        return space.int8()
    look = min(LOOK_SECONDS, seconds / 4)
    link = bench.tie(space.int8(), look)
    limit = latency_limit(budgets, link)
    if limit is None:
        return space.uniform(MIDDLE, INT8)
    nearest = math.log(limit.middle)
    times = {
        policy: bench.measure(policy, link, look / 4, least=4).to_yardstick.middle
        for policy in dict.fromkeys(space.uniform(width, INT8) for width in WIDTHS)
    }
    return min(times, key=lambda policy: abs(math.log(times[policy]) - nearest))


def latency_limit(budgets: Sequence[Budget], link: Link) -> Interval | None:
    """Return the latency budget in multiples of the yardstick; None where latency has no limit."""
    return next((link.limit(budget.value, budget.relative_to) for budget in budgets if budget.name == "latency"), None)


def _described(link: Link, int8: Policy) -> str:
    ratio = link.int8
    ended = "" if link.stopped_by == "interval" else ", when the time was up"
    text = (
        f"uniform int8 takes {ratio.middle:.4f}x of the time of the network as given [{ratio.low:.4f}, "
        f"{ratio.high:.4f}], after {link.took:.0f} s in {link.blocks} blocks{ended}"
    )
    if link.yardstick == int8:
        return text
    return (
        f"{text}; candidates are measured in turn with a uniform network of their own size that takes "
        f"{link.to_int8.middle:.4f}x of int8's [{link.to_int8.low:.4f}, {link.to_int8.high:.4f}]: int8 does not fit "
        "the core's own cache"
    )
