"""Forms: what a layer may be besides dense, written as text: "svd 0.25", "2:4", "circulant 4".

A form is one of a factorisation (with its rank as a fraction of the full rank), a sparsity pattern, or a way in which
weights are shared. A layer has one of them: a sparse or shared factor saves next to nothing that its rank would not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trimtab.errors import BadInput
from trimtab.spaces.factorisation import FACTORISATIONS, factorises
from trimtab.spaces.network import Op
from trimtab.spaces.sharing import SHARINGS
from trimtab.spaces.sparsity import PATTERNS, parse_pattern

__all__ = ["DENSE", "Form", "applies", "parse_form"]

DENSE = "dense"

_NUMBER = re.compile(r"\d*\.?\d+")


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
    name, _, number = text.partition(" ") if isinstance(text, str) else ("", "", "")
    if name in PATTERNS or ":" in name:
        pattern = parse_pattern(text)
        return Form("pattern", pattern.name, pattern.zeros, text)
    if _NUMBER.fullmatch(number) is None:
        raise BadInput(f"{text!r} is not a form of a layer; write it like 'svd 0.25', '2:4' or 'block 0.5'")
    amount = float(number)
    if name in FACTORISATIONS:
        kind, wrong = "factorisation", None if 0 < amount < 1 else "the number is a fraction between 0 and 1"
    elif name in SHARINGS:
        kind, wrong = "sharing", SHARINGS[name].why_not(amount)
    else:
        names = sorted({*FACTORISATIONS, *PATTERNS, *SHARINGS} - {"n:m"})
        raise BadInput(f"{text!r} is not a form of a layer; known are {', '.join(names)} and N:M")
    if wrong:
        raise BadInput(f"{text!r}: {wrong}")
    return Form(kind, name, amount, text)


def applies(form: Form, op: Op) -> bool:
    """Whether a layer can take a form at all. What it gains is another question, which measurement answers."""
    if op.weight is None:
        return False
    if form.kind == "factorisation":
        return factorises(FACTORISATIONS[form.name], op)
    if form.kind == "pattern":
        return parse_pattern(form.text).applies(op)
    return form.kind == DENSE or SHARINGS[form.name].applies(op)
