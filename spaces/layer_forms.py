"""Forms: what a layer may be besides dense, written as text: "svd 0.25", "2:4", "circulant 4".

A form is one of a factorisation (with its rank as a fraction of the full rank), a sparsity pattern, or a way in which
weights are shared. A layer has one of them: a sparse or shared factor saves next to nothing that its rank would not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from trimtab.errors import BadInput
from trimtab.spaces import factorisation as low_rank
from trimtab.spaces import sparsity
from trimtab.spaces.network import Op
from trimtab.spaces.sharing import SHARINGS, check_amount

__all__ = ["DENSE", "FACTORISATIONS", "PATTERNS", "SHARINGS", "Form", "applies", "parse_form"]

DENSE = "dense"

#: Name -> whether a layer can take the form at all. What it gains is another question, which measurement answers.
FACTORISATIONS: Mapping[str, Callable[[Op], bool]] = {
    name: partial(low_rank.factorises, each) for name, each in low_rank.FACTORISATIONS.items()
}
PATTERNS: Mapping[str, Callable[[Op], bool]] = {name: lambda op: op.groups == 1 for name in sparsity.PATTERNS}

_TEXT = re.compile(r"([a-z-]+) (\d*\.?\d+)|(\d+):(\d+)")


@dataclass(frozen=True)
class Form:
    """`kind` is "dense", "factorisation", "pattern" or "sharing", `name` one of that kind, `amount` its number: the
    rank as a fraction of the full rank, the share of zeros, or what the way of sharing counts."""

    kind: str
    name: str
    amount: float
    text: str


def parse_form(text: str) -> Form:
    """Read a form's text; one that is not known, or whose number makes no sense, is a `BadInput`."""
    if text == DENSE:
        return Form(DENSE, DENSE, 1.0, text)
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise BadInput(f"{text!r} is not a form of a layer; write it like 'svd 0.25', '2:4' or 'block 0.5'")
    if match[3] or match[1] in PATTERNS:
        pattern = sparsity.parse_pattern(text)
        return Form("pattern", pattern.name, pattern.zeros, text)
    name, amount = match[1], float(match[2])
    for kind, known in (("factorisation", FACTORISATIONS), ("sharing", SHARINGS)):
        if name in known:
            wrong = check_amount(name, amount) if kind == "sharing" else None
            if wrong or (kind != "sharing" and not 0 < amount < 1):
                raise BadInput(f"{text!r}: {wrong or 'the number is a fraction between 0 and 1'}")
            return Form(kind, name, amount, f"{name} {match[2]}")
    names = sorted({*FACTORISATIONS, *PATTERNS, *SHARINGS} - {"n:m"})
    raise BadInput(f"{text!r} is not a form of a layer; known are {', '.join(names)} and N:M")


def applies(form: Form, op: Op) -> bool:
    """Whether a layer can take a form."""
    if op.weight is None:
        return False
    known = {**FACTORISATIONS, **PATTERNS, **SHARINGS}
    return form.kind == DENSE or known[form.name](op)
