"""Formats: which numbers a layer's weights and input activations are, as values. The one place that knows what so many
bits mean.

| bits | weights | input activations |
| --- | --- | --- |
| 1 to 8 | int8 values of a grid (`numbers.grids`) times a scale per output channel | uint8 with one scale |
| 16 | bf16 | bf16 |
| 32 | float32 | float32 |

A layer computes in integers where both are integers, multiplies bf16 numbers where both are bf16, and computes in
float32 otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab.errors import BadInput, unknown_name
from trimtab.graph import Array
from trimtab.spaces.numbers.grids import GRIDS, UNIFORM, Grid

__all__ = [
    "ACTIVATION_BITS",
    "BF16",
    "BYTE",
    "DEFAULT_FORMATS",
    "FLOAT",
    "FORMATS",
    "INT8",
    "LayerFormat",
    "WeightFormat",
    "round_to_bf16",
]

#: Bits of the widest integers, and of sums and products that are stored as integers.
BYTE = 8

_BF16_BITS, _FLOAT_BITS = 16, 32

#: The bits in which activations may be stored as integers.
ACTIVATION_BITS = (1, 2, 4, 7, BYTE)

_TEXT = re.compile(r"(\d+)/(\d+)(?: ([a-z0-9]+))?")


@dataclass(frozen=True)
class WeightFormat:
    """The numbers that a layer's weights are: of 1 to 8 `bits`, on a `grid` of `grids.GRIDS`, 16 or 32.

    A grid that does not exist, or has no form of these bits, is a `BadInput` where it is asked for anything.
    """

    bits: int = _FLOAT_BITS
    grid: str = UNIFORM

    def __str__(self) -> str:
        return f"{self.bits}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "" if self.grid == UNIFORM else f" {self.grid}"

    @property
    def is_integer(self) -> bool:
        """Whether weights are int8 values with scales."""
        return self.bits <= BYTE

    @property
    def is_narrow(self) -> bool:
        """Whether weights are integers of fewer than 8 bits, whose rounding is worth making up for."""
        return self.bits < BYTE

    @property
    def is_bf16(self) -> bool:
        """Whether weights are bf16 numbers."""
        return self.bits == _BF16_BITS

    @property
    def stored_bits(self) -> int:
        """The bits of a weight as artefacts store it at most, before entropy coding."""
        return (self._grid.size(self.bits) - 1).bit_length() if self.is_integer else self.bits

    @property
    def has_zero(self) -> bool:
        """Whether zero is among the values of every layer, so that weights may be sparse."""
        return not self.is_integer or self._grid.has_zero(self.bits)

    @property
    def is_symmetric(self) -> bool:
        """Whether every layer's values are the same with the opposite sign."""
        return not self.is_integer or self._grid.is_symmetric(self.bits)

    @property
    def is_row_wise(self) -> bool:
        """Whether every output channel is rounded whatever the others are, see `Grid`."""
        return not self.is_integer or self._grid.is_row_wise

    @property
    def levels(self) -> Array | None:
        """The levels (L,) of every layer, sorted int8; None where each layer has its own, or any number is one."""
        return self._grid.levels(self.bits) if self.is_integer else None

    @property
    def _grid(self) -> Grid:
        if self.grid not in GRIDS:
            raise unknown_name("grid", self.grid, GRIDS)
        grid = GRIDS[self.grid]
        if self.bits not in grid.offered:
            offered = ", ".join(map(str, grid.offered))
            raise BadInput(f"grid {self.grid!r} has no form of {self.bits} bits (it has: {offered})")
        return grid

    def fit(self, rows: Array) -> tuple[Array, Array]:
        """Return (levels (L,), sorted int8; scale (O,), float32) that suit float32 weights (O, I) of integers."""
        return self._grid.fit(rows, self.bits)

    def round_floats(self, weight: Array) -> Array:
        """Return float32 weights as they are stored where they are no integers: rounded to bf16, or as they are."""
        return round_to_bf16(weight) if self.is_bf16 else weight


@dataclass(frozen=True)
class LayerFormat:
    """The numbers that a layer computes with: its `weight`s, and its input in `activation_bits`, as the table above has
    them."""

    weight: WeightFormat = WeightFormat()
    activation_bits: int = _FLOAT_BITS

    @classmethod
    def of(cls, w_bits: int, a_bits: int, grid: str = UNIFORM) -> LayerFormat:
        """Return the format of so many bits of weights, on a grid, and of activations."""
        return cls(WeightFormat(w_bits, grid), a_bits)

    @classmethod
    def read(cls, entry: Any) -> LayerFormat:
        """Read an entry of the configuration, [4, 8] or [2, 8, codebook], or a format; others are a `BadInput`."""
        if isinstance(entry, LayerFormat):
            return _offered(entry)
        numbers = isinstance(entry, Sequence) and len(entry) in (2, 3) and all(type(bits) is int for bits in entry[:2])
        if not numbers or any(not isinstance(grid, str) or grid == UNIFORM for grid in entry[2:]):
            raise BadInput(f"{entry!r}: write weight bits, activation bits and, where it is not the even one, the grid")
        return _offered(cls.of(*entry))

    @classmethod
    def parse(cls, text: str) -> LayerFormat | None:
        """Read "4/8" or "2/8 codebook"; None where a text is not of that form, what is not offered is a `BadInput`."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        return _offered(cls.of(int(match[1]), int(match[2]), match[3] or UNIFORM))

    def __str__(self) -> str:
        return f"{self.weight.bits}/{self.activation_bits}{self.weight._suffix}"

    def to_list(self) -> list[int | str]:
        """Return the entry of the configuration: [4, 8] or [2, 8, "codebook"]."""
        grid = [] if self.weight.grid == UNIFORM else [self.weight.grid]
        return [self.weight.bits, self.activation_bits, *grid]

    def to_json(self) -> dict[str, int | str]:
        """Return plain JSON values, as policies and the keys of the latency table hold them."""
        return {"w_bits": self.weight.bits, "a_bits": self.activation_bits, "grid": self.weight.grid}

    @property
    def why_not_offered(self) -> str | None:
        """Why no layer can have this format; None where one can."""
        even = replace(self, weight=WeightFormat(self.weight.bits))
        if even not in FORMATS:
            return (
                f"{self.weight.bits}-bit weights with {self.activation_bits}-bit activations are not offered (offered: "
                f"{', '.join(map(str, FORMATS))})"
            )
        grid = GRIDS.get(self.weight.grid)
        if self != even and (grid is None or self.weight.bits not in grid.offered):
            others = (each for each in GRIDS.values() if each.name != UNIFORM)
            offered = "; ".join(f"{each.name}: {', '.join(map(str, each.offered))} bits" for each in others)
            return (
                f"{self.weight.bits}-bit weights have no grid {self.weight.grid!r} (beside the uniform one there are "
                f"{offered})"
            )
        return None

    @property
    def is_integer(self) -> bool:
        """Whether the layer computes in integers."""
        return self.weight.is_integer and self.activation_bits <= BYTE

    @property
    def is_bf16(self) -> bool:
        """Whether the layer multiplies bf16 numbers; a depthwise one never does, see `executed`."""
        return self.weight.is_bf16 and self.activation_bits == _BF16_BITS

    @property
    def reads_narrow(self) -> bool:
        """Whether the input has fewer than 8 bits, whose rounding is worth making up for."""
        return self.activation_bits < BYTE

    @property
    def order(self) -> tuple[int, bool, str]:
        """What sorts formats that are offered: the cheapest bits first, of equal ones the uniform grid last."""
        bits = LayerFormat.of(self.weight.bits, self.activation_bits)
        return FORMATS.index(bits), self.weight.grid == UNIFORM, self.weight.grid

    def is_finer_than(self, other: LayerFormat) -> bool:
        """Whether bits are wider in weights or activations, and narrower in neither; grids are not compared."""
        ours, theirs = (self.weight.bits, self.activation_bits), (other.weight.bits, other.activation_bits)
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))

    def executed(self, depthwise: bool) -> LayerFormat:
        """Return what a layer of this format computes in: a depthwise one reads floats where others multiply bf16."""
        return replace(self, activation_bits=_FLOAT_BITS) if self.is_bf16 and depthwise else self


#: The network as given; the uniform int8 form; and bf16 products, which only some processors make faster than float32.
FLOAT, INT8, BF16 = LayerFormat(), LayerFormat.of(8, 8), LayerFormat.of(16, 16)

#: All that may be decided on the uniform grid, cheapest first: integers, integer weights under float activations, bf16
#: weights under bf16 and under float activations, and float. Float weights under int8 activations would save neither
#: bytes nor time.
FORMATS: tuple[LayerFormat, ...] = (
    *(LayerFormat.of(w_bits, a_bits) for w_bits in range(1, BYTE + 1) for a_bits in ACTIVATION_BITS),
    LayerFormat.of(8, 32),
    BF16,
    LayerFormat.of(16, 32),
    FLOAT,
)

#: What a search decides among where nothing is asked: 8-bit activations are faster than float ones and cost next to no
#: accuracy, narrower ones save time only under 1-bit weights and, as weights of 5 to 7 bits do, at the level avx2.
DEFAULT_FORMATS: tuple[LayerFormat, ...] = (LayerFormat.of(2, 8), LayerFormat.of(4, 8), INT8, FLOAT)


def _offered(found: LayerFormat) -> LayerFormat:
    if (why := found.why_not_offered) is not None:
        raise BadInput(f"{found}: {why}")
    return found


def round_to_bf16(weight: Array) -> Array:
    """Return float32 numbers rounded to 8 significant bits, halves to even: the numbers of bf16."""
    words = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    odd = (words >> 16) & 1
    rounded = (words + (0x7FFF + odd).astype(np.uint32)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(weight), rounded.view(np.float32), weight).astype(np.float32)
