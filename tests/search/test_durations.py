from __future__ import annotations

import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput
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
