"""Forms: what a layer may be besides dense, written as text: "svd 0.25", "2:4", "circulant 4".

A form is one of a factorisation (with its rank as a fraction of the full rank), a sparsity pattern, or a way in which
weights are shared. A layer has one of them: a sparse or shared factor saves next to nothing that its rank would not.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from trimtab.errors import BadInput
from trimtab.graph import Node
from trimtab.spaces.factorisation import FACTORISATIONS, Geometry, factorises, pays
from trimtab.spaces.forms.sharing import SHARINGS
from trimtab.spaces.forms.sparsity import PATTERNS, parse_pattern
from trimtab.spaces.numbers.formats import LayerFormat
from trimtab.spaces.policy import LayerDecision

__all__ = ["DENSE", "Form", "parse_form"]

DENSE = "dense"

#: A layer of a smaller full rank has nothing to factorise.
SMALLEST_FULL_RANK = 8

_NUMBER = re.compile(r"\d*\.?\d+")


@dataclass(frozen=True)
class Form(ABC):
    """One form: the `name` of a factorisation, a pattern or a way of sharing, and its number `amount`: the rank as a
    fraction of the full rank, the share of zeros, or what the way of sharing counts."""

    name: str
    amount: float
    text: str

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Form | None:
        """Read a text; None where it is not of this kind, a number that makes no sense is a `BadInput`."""

    @abstractmethod
    def applies(self, op: Node) -> bool:
        """Whether a layer with weights can take it at all; what it gains is measured."""

    def is_offered(self, op: Node, in_shape: tuple[int, ...]) -> bool:
        """Whether a layer that reads a tensor of this shape can take it and, as far as counting tells, gains by it."""
        return op.is_layer and self.applies(op)

    @abstractmethod
    def decision(self, bits: LayerFormat, layer: Geometry, in_shape: tuple[int, ...]) -> LayerDecision:
        """Return what is decided about a layer that reads a tensor of this shape; dense where the form is pointless."""


class _Dense(Form):
    kind = DENSE

    @classmethod
    def parse(cls, text: str) -> Form | None:
        return cls(DENSE, 1.0, text) if text == DENSE else None

    def applies(self, op: Node) -> bool:
        return True

    def decision(self, bits: LayerFormat, layer: Geometry, in_shape: tuple[int, ...]) -> LayerDecision:
        return LayerDecision(bits)


class _Factorised(Form):
    kind = "factorisation"

    @classmethod
    def parse(cls, text: str) -> Form | None:
        name, amount = _split(text)
        if name not in FACTORISATIONS or amount is None:
            return None
        if not 0 < amount < 1:
            raise BadInput(f"{text!r}: the number is a fraction between 0 and 1")
        return cls(name, amount, text)

    def applies(self, op: Node) -> bool:
        return factorises(FACTORISATIONS[self.name], op)

    def is_offered(self, op: Node, in_shape: tuple[int, ...]) -> bool:
        if not super().is_offered(op, in_shape):
            return False
        layer = Geometry.of(op)
        worthwhile = FACTORISATIONS[self.name].full_rank(layer) >= SMALLEST_FULL_RANK
        return worthwhile and self._rank(layer, in_shape) is not None

    def decision(self, bits: LayerFormat, layer: Geometry, in_shape: tuple[int, ...]) -> LayerDecision:
        rank = self._rank(layer, in_shape)
        return LayerDecision(bits) if rank is None else LayerDecision(bits, rank, self.name)

    def _rank(self, layer: Geometry, in_shape: tuple[int, ...]) -> int | None:
        """The rank; None where the dense layer costs no more."""
        rank = FACTORISATIONS[self.name].rank_at(layer, self.amount)
        return rank if pays(layer, self.name, rank, in_shape) else None


class _Sparse(Form):
    kind = "pattern"

    @classmethod
    def parse(cls, text: str) -> Form | None:
        name = text.partition(" ")[0]
        if name not in PATTERNS and ":" not in name:
            return None
        pattern = parse_pattern(text)
        return cls(pattern.name, pattern.zeros, text)

    def applies(self, op: Node) -> bool:
        return parse_pattern(self.text).applies(op)

    def decision(self, bits: LayerFormat, layer: Geometry, in_shape: tuple[int, ...]) -> LayerDecision:
        return LayerDecision(bits, pattern=self.text if bits.weight.has_zero else None)


class _Shared(Form):
    kind = "sharing"

    @classmethod
    def parse(cls, text: str) -> Form | None:
        name, amount = _split(text)
        if name not in SHARINGS or amount is None:
            return None
        if (wrong := SHARINGS[name].why_not(amount)) is not None:
            raise BadInput(f"{text!r}: {wrong}")
        return cls(name, amount, text)

    def applies(self, op: Node) -> bool:
        return SHARINGS[self.name].applies(op)

    def decision(self, bits: LayerFormat, layer: Geometry, in_shape: tuple[int, ...]) -> LayerDecision:
        return LayerDecision(bits, sharing=self.text)


_KINDS: tuple[type[Form], ...] = (_Dense, _Factorised, _Sparse, _Shared)


def parse_form(text: str) -> Form:
    """Read a form's text; one that is not known, or whose number makes no sense, is a `BadInput`."""
    for kind in _KINDS:
        if (form := kind.parse(text)) is not None:
            return form
    names = sorted({*FACTORISATIONS, *PATTERNS, *SHARINGS} - {"n:m"})
    raise BadInput(
        f"{text!r} is not a form of a layer: write it like 'svd 0.25', '2:4' or 'block 0.5'; known are "
        f"{', '.join(names)} and N:M"
    )


def _split(text: str) -> tuple[str, float | None]:
    name, _, number = text.partition(" ")
    return name, float(number) if _NUMBER.fullmatch(number) else None
