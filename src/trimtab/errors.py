"""The errors that every room raises for the person who caused them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["BadInput", "InfeasibleBudget", "TrimtabError", "UnsupportedOperator", "in_one_line", "unknown_name"]


class TrimtabError(Exception):
    """Root of all errors that trimtab raises on purpose; its text says what was wrong and what to do."""

    exit_code = 1


class BadInput(TrimtabError, ValueError):
    """The user's input cannot be used: a file, a key, a value, a network."""

    exit_code = 2


class UnsupportedOperator(BadInput):
    """There is no such operator; the text names the operator and the layer, and lists what there is."""


class InfeasibleBudget(TrimtabError):
    """No policy of the space meets the budgets; the text names the budget and the smallest reachable value."""

    exit_code = 3


def unknown_name(kind: str, given: str, known: Iterable[str]) -> BadInput:
    """Return the error for a name that is not known, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return BadInput(f"unknown {kind} {given!r}{hint} (known: {', '.join(names)})")


def in_one_line(found: object) -> str:
    """Return an error, or any other object, as one line: its type and its text; of an error of ours the text alone."""
    text = " ".join(str(found).split())[:300]
    return text if isinstance(found, TrimtabError) else f"{type(found).__name__}: {text}"
