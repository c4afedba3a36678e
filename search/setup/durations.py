"""Durations as users write them."""

from __future__ import annotations

import re

from trimtab.errors import BadInput

__all__ = ["parse_duration"]

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
