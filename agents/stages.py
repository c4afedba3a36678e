"""Stages of a network: runs of layers of one spatial size."""

from __future__ import annotations

from itertools import groupby, pairwise

from trimtab.spaces import Space

__all__ = ["stages"]


def stages(space: Space, most: int | None = None) -> list[list[int]]:
    """Return the indices of the knobs of every stage, in network order; a stage without knobs is left out.

    A channel group belongs to the stage of its first layer. Where there are more than `most` stages, the two
    neighbours with the fewest knobs between them become one, until there are few enough.
    """
    sizes = groupby(space.network.layers, key=lambda op: space.network.shapes[op.name][1:])
    names = [{op.name for op in layers} for _, layers in sizes]
    knobs = [[i for i, knob in enumerate(space.knobs) if knob.target in stage] for stage in names]
    found = [stage for stage in knobs if stage]
    while most is not None and len(found) > most:
        pairs = [len(one) + len(other) for one, other in pairwise(found)]
        at = pairs.index(min(pairs))
        found[at : at + 2] = [sorted(found[at] + found[at + 1])]
    return found
