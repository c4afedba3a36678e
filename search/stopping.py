"""When a search ends before its last trial: its time is up, or Ctrl-C asks it to finish with what it has."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trimtab.errors import BadInput
from trimtab.search.progress import Progress

__all__ = ["heeding_interrupts", "parse_duration"]

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: object) -> float:
    """Return the seconds of "90s", "20m", "1h", "1h30m" or a plain number of seconds; else a `BadInput`."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        match = _DURATION.fullmatch("".join(text.split())) if isinstance(text, str) else None
        if match is None:
            raise BadInput(f"{text!r} is not a duration; write it like '90s', '20m', '1h' or '1h30m'")
        seconds = sum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS.values(), strict=True) if part)
    if not 0 < seconds < float("inf"):
        raise BadInput(f"a duration of {text!r} has to be finite, and more than zero")
    return seconds


@contextmanager
def heeding_interrupts(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C is a request to stop soon, and the second one stops at once.

    Yields a function that says whether a stop was asked for. In other threads than the main one, which get no signals,
    it never is.
    """
    asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        progress.line("stopping after the evaluations in flight, and finishing with what there is (Ctrl-C: at once)")

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
