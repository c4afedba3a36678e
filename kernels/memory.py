"""The memory plan: every tensor's place in the arena; two that are never needed at the same time may share bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from trimtab.graph import Graph, Node, Shape

__all__ = ["Placement", "place"]

_ALIGNMENT = 64
_SLACK = 256  # bytes that a kernel may read past a tensor's end (kSlack in native/table.h)


@dataclass(frozen=True)
class Placement:
    """Byte offsets by tensor name, and the bytes of the whole arena. Tensors inside a step of several layers are not in
    it."""

    offsets: dict[str, int]
    total: int


@dataclass(frozen=True)
class _Life:
    name: str
    size: int
    first: int  # index of the step that writes it
    last: int  # index of the last step that reads it


def place(graph: Graph, steps: Sequence[Sequence[Node]], shapes: Mapping[str, Shape], batch: int) -> Placement:
    """Return offsets for `batch` images, largest tensors first, each in the lowest gap that is free all its life.

    A step is the layers that it runs; only what the last one gives has a place.
    """
    placed: list[tuple[int, _Life]] = []
    for life in sorted(_lives(graph, steps, shapes, batch), key=lambda life: -life.size):
        offset = 0
        for start, other in sorted(
            ((at, o) for at, o in placed if o.first <= life.last and life.first <= o.last), key=lambda p: p[0]
        ):
            if offset + life.size <= start:
                break
            offset = max(offset, start + other.size)
        placed.append((offset, life))
    return Placement({life.name: at for at, life in placed}, max(at + life.size for at, life in placed))


def _lives(graph: Graph, steps: Sequence[Sequence[Node]], shapes: Mapping[str, Shape], batch: int) -> list[_Life]:
    first = {graph.input: -1}
    last: dict[str, int] = {graph.input: -1}
    for i, nodes in enumerate(steps):
        first[nodes[-1].name] = i
        last[nodes[-1].name] = i
        for node in nodes:
            last.update(dict.fromkeys(node.inputs, i))
    last[graph.output] = len(steps)
    return [_Life(name, _bytes(graph, name, shapes[name], batch), first[name], last[name]) for name in first]


def _bytes(graph: Graph, name: str, shape: Shape, batch: int) -> int:
    raw = prod(shape) * batch * (1 if name in graph.quant else 4) + _SLACK
    return -(-raw // _ALIGNMENT) * _ALIGNMENT
