from __future__ import annotations

import math

import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput
from trimtab.search.run import _search_seconds
from trimtab.search.setup.config import said_trials
from trimtab.search.setup.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1h", 3600), ("1h30m", 5400), ("1.5h", 5400), (" 2 m ", 120), (45, 45), (0.5, 0.5)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "20", "m", "20 minutes", "-1s", "0s", 0, -3, float("inf"), float("nan"), True, None]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(BadInput, match="duration"):
        parse_duration(text)


def test_a_time_limit_in_a_configuration() -> None:
    assert tiny(time_limit="20m").time_limit == 1200
    assert tiny().time_limit is None
    with pytest.raises(BadInput, match="time_limit: 'soon' is not a duration"):
        tiny(time_limit="soon")


def test_a_time_limit_alone_is_a_complete_order() -> None:
    alone = tiny(time_limit="20m", trials=None)
    assert alone.asked_trials is None
    assert said_trials(alone.asked_trials) == "as many as there is time for"
    assert tiny(time_limit="20m", trials=7).asked_trials == 7
    assert tiny(trials=7).asked_trials == 7


def test_the_stages_of_a_run_share_its_time() -> None:
    """Every measurement takes its share at most, and less where less is asked for; what is left is the search's."""
    measure, finish = {"seconds": 2.0, "final_seconds": 9.0, "link_seconds": 4.0}, {"time": "2m", "candidates": 2}
    config = tiny(time_limit="100s", measure=measure, finish=finish, baselines=["random"])
    found = config.measuring
    assert (found.seconds, found.final_seconds, found.link_seconds) == (1.0, 2.5, 4.0)
    assert config.measure.seconds == 2.0  # what was asked for stays, and with it the run's identity
    assert config.training_seconds == 30.0
    # Two winners, two exports, two that are tried, and three measurements of what is trained.
    assert _search_seconds(config, 20.0) == pytest.approx(100 - 20 - 9 * 2.5 - 30)
    assert _search_seconds(config, 95.0) == pytest.approx(10.0)
    assert _search_seconds(tiny(), 20.0) == math.inf
    without = tiny(time_limit="100s", finish=False, measure=measure, baselines=["random"])
    assert without.training_seconds == 0
    assert _search_seconds(without, 20.0) == pytest.approx(100 - 20 - 4 * 2.5)
