"""Sparsity within a layer: which of its weights are zero, and what the others become to make up for them.

A pattern says which weights go together: output channels that share their zeros, and inputs that are zero together. A
new one is one class here, and its place in `PATTERNS`.

With the moments of the layer's inputs, Optimal Brain Surgeon chooses, and the remaining weights make up for the others
(Frantar and Alistarh 2022, arXiv:2208.11580); without them, the smallest weights go.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.linalg.blas import dger

from trimtab.errors import BadInput
from trimtab.graph import Array, Node
from trimtab.threads import one_blas_thread

__all__ = [
    "PATTERNS",
    "Pattern",
    "parse_pattern",
    "pattern_mask",
    "refit",
    "sparsify",
]

#: A block that the engine can leave out: one panel of output channels at AVX2 by the inputs of one step. Wider panels
#: (64 output channels at AVX-512) leave out less of it.
BLOCK_OUTPUTS, BLOCK_INPUTS = 16, 4

#: Layers with more inputs than this get all of their zeros at once: one by one takes their third power in time.
SURGEON_INPUTS = 300

#: Steps of conjugate gradients in place of a solution.
CONJUGATE_STEPS = 40

#: Ridge that keeps the moments invertible, relative to their mean diagonal.
RIDGE = 1e-6

_SHARE = re.compile(r"0?\.\d+")


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of weights that go together: every panel of output channels by every block of inputs.

    `panels` are slices of output channels, `blocks` arrays of inputs, `sequence` (blocks,) numbers the sequence that
    each block belongs to, `quota` (sequences,) says how many blocks of each may go, and `gone` how many cells go in
    all; None: in every panel the whole quota.
    """

    panels: list[slice]
    blocks: list[Array]
    sequence: Array
    quota: Array
    gone: int | None

    def means(self, rows: Array) -> Array:
        """Return the means of (O, I) over cells, (panels, blocks): those at the edge have fewer weights."""
        by_block = np.stack([rows[:, block].mean(axis=1) for block in self.blocks], axis=1)
        return np.stack([by_block[panel].mean(axis=0) for panel in self.panels])

    @property
    def shape(self) -> tuple[int, int]:
        """The number of panels and of blocks."""
        return len(self.panels), len(self.blocks)


@dataclass(frozen=True)
class Pattern:
    """A pattern of zeros, `zeros` being the share of weights that are zero; written as its name and that share."""

    zeros: float

    name: ClassVar[str]
    #: Input channels in sequence that are zero together at one tap.
    inputs: ClassVar[int] = 1

    @classmethod
    def parse(cls, text: str) -> Pattern | None:
        """Read the pattern's text; None where it is not this pattern's, or its numbers make no sense."""
        name, _, share = text.partition(" ")
        fits = name == cls.name and _SHARE.fullmatch(share) is not None and 0 < float(share) < 1
        return cls(float(share)) if fits else None

    def applies(self, op: Node) -> bool:
        """Whether a layer can have it. What it gains is another question, which measurement answers."""
        return op.groups == 1

    def outputs(self, all_outputs: int) -> int:
        """Return how many output channels in sequence share their zeros."""
        return 1

    def cells(self, shape: tuple[int, ...]) -> Cells:
        """Return what of a weight (O, I, ...) goes together, and how much of it goes."""
        outputs, channels = shape[:2]
        taps = int(np.prod(shape[2:]))
        height, width = self.outputs(outputs), self.inputs
        panels = [slice(start, min(start + height, outputs)) for start in range(0, outputs, height)]
        places = [(start, tap) for start in range(0, channels, width) for tap in range(taps)]
        blocks = [np.arange(start, min(start + width, channels)) * taps + tap for start, tap in places]
        gone = round(self.zeros * len(panels) * len(blocks))
        return Cells(panels, blocks, np.zeros(len(blocks), int), np.array([len(blocks)]), gone)


class Weights(Pattern):
    """Single weights, each on its own."""

    name = "weights"


@dataclass(frozen=True)
class NOfM(Pattern):
    """All but n of m input channels in sequence, at one tap of one filter (Mishra et al. 2021, arXiv:2104.08378);
    written "2:4", with m = `of`."""

    of: int

    name = "n:m"

    @classmethod
    def parse(cls, text: str) -> Pattern | None:
        match = re.fullmatch(r"(\d+):(\d+)", text)
        kept, of = (int(match[1]), int(match[2])) if match else (0, 0)
        return cls(1 - kept / of, of) if 0 < kept < of else None

    def cells(self, shape: tuple[int, ...]) -> Cells:
        cells, taps = super().cells(shape), int(np.prod(shape[2:]))
        position = np.concatenate(cells.blocks)
        sequence = position // taps // self.of * taps + position % taps
        kept = round((1 - self.zeros) * self.of)
        return replace(cells, sequence=sequence, quota=np.maximum(np.bincount(sequence) - kept, 0), gone=None)


class Blocks(Pattern):
    """Blocks of 4 input channels at one tap by 16 output channels, which the engine leaves out."""

    name = "block"
    inputs = BLOCK_INPUTS

    def outputs(self, all_outputs: int) -> int:
        return BLOCK_OUTPUTS


class Filters(Pattern):
    """The same (input channel, tap) positions of all filters (Group-wise Brain Damage; Lebedev and Lempitsky 2016,
    arXiv:1506.02515)."""

    name = "filters"

    def outputs(self, all_outputs: int) -> int:
        return all_outputs


#: By the name that texts give; "n:m" is written as its two numbers.
PATTERNS: Mapping[str, type[Pattern]] = {each.name: each for each in (Weights, NOfM, Blocks, Filters)}


def parse_pattern(text: str) -> Pattern:
    """Read "weights 0.5", "block 0.5", "filters 0.5" or "2:4"; anything else is a `BadInput`."""
    found = (each.parse(text) for each in PATTERNS.values())
    pattern = next((each for each in found if each is not None), None)
    if pattern is None:
        names = ", ".join(name for name in PATTERNS if name != NOfM.name)
        raise BadInput(
            f"{text!r} is no sparsity pattern: write one of {names} and the share of zeros, like 'block 0.5', or N:M, "
            "like '2:4'"
        )
    return pattern


def sparsify(weight: Array, pattern: str, gram: Array | None = None) -> Array:
    """Return a layer's weight, (O, I, kh, kw) or (O, I), with the zeros of a pattern, in its own type.

    `gram` (I * kh * kw, I * kh * kw) holds the second moments of the layer's inputs: with it, zeros are chosen and
    made up for by the least squared error of the layer's outputs. A pattern that does not exist is a `BadInput`.
    """
    parsed = parse_pattern(pattern)
    if gram is None:
        return np.where(pattern_mask(weight.astype(np.float64) ** 2, parsed), weight, 0).astype(weight.dtype)
    rows = weight.reshape(weight.shape[0], -1).astype(np.float64)
    cells = parsed.cells(weight.shape)
    with one_blas_thread():
        moments = _invertible(gram)
        if rows.shape[1] > SURGEON_INPUTS:
            found = _at_once(rows, moments, cells)
        else:
            found = refit(rows, _surgeons_mask(rows, moments, cells), moments)
    return found.reshape(weight.shape).astype(weight.dtype)


def pattern_mask(saliency: Array, pattern: Pattern) -> Array:
    """Return which weights stay, bool, where those of the least saliency (O, I, ...) go, as the pattern lets them."""
    rows = saliency.reshape(saliency.shape[0], -1).astype(np.float64)
    cells = pattern.cells(saliency.shape)
    return _mask(cells, _smallest(cells.means(rows), cells)).reshape(saliency.shape)


def refit(rows: Array, mask: Array, gram: Array) -> Array:
    """Return the weights (O, I) that stay, fitted so that the outputs' squared error is least: eq. 2 of OBC.

    `mask` (O, I) says which stay, `gram` (I, I) are the second moments of the inputs, invertible.
    """
    found = np.zeros_like(rows)
    patterns, member = np.unique(mask, axis=0, return_inverse=True)
    for i, stays in enumerate(patterns):
        same = np.flatnonzero(member.ravel() == i)
        if stays.any():
            wanted = gram[stays] @ rows[same].T
            found[np.ix_(same, np.flatnonzero(stays))] = np.linalg.solve(gram[np.ix_(stays, stays)], wanted).T
    return found


# which cells go


def _mask(cells: Cells, gone: Array) -> Array:
    """Which weights stay, (O, I), when these cells (panels, blocks) go."""
    panel = np.repeat(np.arange(len(cells.panels)), [each.stop - each.start for each in cells.panels])
    inputs, sizes = np.concatenate(cells.blocks), [len(each) for each in cells.blocks]
    block = np.empty_like(inputs)
    block[inputs] = np.repeat(np.arange(len(sizes)), sizes)
    return np.asarray(~gone[panel[:, None], block])


def _smallest(costs: Array, cells: Cells) -> Array:
    """Which cells go when each costs (panels, blocks) by itself."""
    gone = np.zeros(costs.shape, dtype=bool)
    if cells.gone is not None:
        gone.flat[np.argsort(costs, axis=None, kind="stable")[: cells.gone]] = True
        return gone
    for number, quota in enumerate(cells.quota.tolist()):
        blocks = np.flatnonzero(cells.sequence == number)
        order = np.argsort(costs[:, blocks], axis=1, kind="stable")[:, :quota]
        np.put_along_axis(gone, blocks[order], True, axis=1)
    return gone


# what the other weights can make up for


def _invertible(gram: Array) -> Array:
    moments = gram.astype(np.float64)
    ridge = RIDGE * max(float(np.diagonal(moments).mean()), 1e-12)
    return np.asarray(moments + ridge * np.eye(len(moments)))


def _surgeons_mask(rows: Array, gram: Array, cells: Cells) -> Array:
    """Each panel loses blocks one by one; of all panels' next blocks, the cheapest goes, until the share is reached.

    OBC's algorithms 1 and 2: what a block costs depends on those that its panel has already lost.
    """
    inverse = np.linalg.inv(gram)
    traces = [_trace(rows[panel], inverse, cells) for panel in cells.panels]
    gone = np.zeros(cells.shape, dtype=bool)
    if cells.gone is None:
        for panel, trace in enumerate(traces):
            gone[panel, [block for _, block in trace]] = True
        return _mask(cells, gone)
    heap = [(trace[0][0], panel, 0) for panel, trace in enumerate(traces)]
    heapq.heapify(heap)
    for _ in range(cells.gone):
        _, panel, step = heapq.heappop(heap)
        gone[panel, traces[panel][step][1]] = True
        if step + 1 < len(traces[panel]):
            heapq.heappush(heap, (traces[panel][step + 1][0], panel, step + 1))
    return _mask(cells, gone)


def _trace(rows: Array, inverse: Array, cells: Cells) -> list[tuple[float, int]]:
    """The blocks that a panel loses, in order, each with what each of its weights adds to the squared error."""
    rows, inverse = rows.copy(), np.array(inverse, order="F")
    left, quota = np.ones(len(cells.blocks), dtype=bool), cells.quota.copy()
    trace = []
    for _ in range(int(quota.sum())):
        open_blocks = np.flatnonzero(left & (quota[cells.sequence] > 0))
        costs = _costs(rows, inverse, [cells.blocks[i] for i in open_blocks])
        costs /= [len(cells.blocks[i]) * len(rows) for i in open_blocks]
        block = int(open_blocks[np.argmin(costs)])
        trace.append((float(costs.min()), block))
        left[block] = False
        quota[cells.sequence[block]] -= 1
        for i in cells.blocks[block].tolist():  # inputs one after the other come to the same as all at once
            column = inverse[:, i].copy()
            rows -= np.outer(rows[:, i] / column[i], column)
            inverse = dger(-1 / column[i], column, column, a=inverse, overwrite_a=1)
            inverse[:, i] = inverse[i] = 0
            inverse[i, i] = 1
            rows[:, i] = 0
    return trace


def _costs(rows: Array, inverse: Array, blocks: list[Array]) -> Array:
    """What losing each block adds to the squared error when all other weights make up for it: (blocks,)."""
    if max(len(block) for block in blocks) == 1:
        inputs = np.concatenate(blocks)
        return np.asarray((rows[:, inputs] ** 2).sum(axis=0) / np.diagonal(inverse)[inputs])
    costs = np.empty(len(blocks))
    for count in {len(block) for block in blocks}:
        same = [i for i, block in enumerate(blocks) if len(block) == count]
        inputs = np.stack([blocks[i] for i in same])
        weight = rows[:, inputs].transpose(1, 2, 0)
        solved = np.linalg.solve(inverse[inputs[:, :, None], inputs[:, None, :]], weight)
        costs[same] = (weight * solved).sum(axis=(1, 2))
    return costs


def _at_once(rows: Array, gram: Array, cells: Cells) -> Array:
    """All zeros at once, where weight times input is smallest (Wanda; Sun et al. 2024, arXiv:2306.11695, eq. 1).

    The others are fitted as `refit` does, by conjugate gradients: some products of O I^2 in place of O times I^3.
    """
    diagonal = np.diagonal(gram)
    mask = _mask(cells, _smallest(cells.means(rows**2 * diagonal), cells))
    found = np.where(mask, rows, 0)
    residual = mask * ((rows - found) @ gram)
    direction = residual / diagonal
    strength = (residual * direction).sum(axis=1, keepdims=True)
    for _ in range(CONJUGATE_STEPS):
        image = mask * (direction @ gram)
        step = strength / np.maximum((direction * image).sum(axis=1, keepdims=True), 1e-300)
        found += step * direction
        residual -= step * image
        scaled = residual / diagonal
        previous, strength = strength, (residual * scaled).sum(axis=1, keepdims=True)
        direction = scaled + strength / np.maximum(previous, 1e-300) * direction
    return found
