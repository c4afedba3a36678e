from __future__ import annotations

import os
import signal
import threading

import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput
from trimtab.search.progress import Progress
from trimtab.search.stopping import heeding_interrupts, parse_duration


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


def test_the_first_interrupt_asks_and_the_second_one_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with heeding_interrupts(Progress()) as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_the_handlers_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with heeding_interrupts(Progress()) as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
