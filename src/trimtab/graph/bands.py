"""Fusion in bands: convolutions run together as one step where the tensor between them would not stay in cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from trimtab.graph.node import Node
from trimtab.graph.program import Graph

__all__ = ["Link", "find_chains", "graph_links"]

#: Bytes of a tensor, for one image, from which it pays to compute it in bands that stay in cache (docs/decisions.md).
CHAINED_BYTES = 2 * 1024 * 1024

#: Bytes of all rows that a chain holds between its convolutions.
WINDOW_BYTES = 256 * 1024


@dataclass(frozen=True)
class Link:
    """A step as far as chains are concerned. `reads` starts with the input proper; `size` is the bytes of the output
    for one image."""

    tensor: str
    reads: tuple[str, ...]
    is_conv: bool
    size: int


def find_chains(links: Sequence[Link], output: str) -> list[range]:
    """Return the steps that run together, as ranges that cover all links in order.

    A convolution joins the one before it where it alone reads that one's output, which is large and not the network's.
    """
    uses = Counter(name for link in links for name in link.reads)
    uses[output] += 1
    chains: list[range] = []
    for i, link in enumerate(links):
        before = links[i - 1] if i else None
        if (
            before is not None
            and before.is_conv
            and link.is_conv
            and link.reads[0] == before.tensor
            and uses[before.tensor] == 1
            and before.size >= CHAINED_BYTES
        ):
            chains[-1] = range(chains[-1].start, i + 1)
        else:
            chains.append(range(i, i + 1))
    return chains


def graph_links(graph: Graph) -> list[Link]:
    """Return a link for every node of a legalised graph."""

    def link(node: Node) -> Link:
        size = prod(graph.shapes[node.name]) * (1 if node.name in graph.quant else 4)
        return Link(node.name, node.inputs, node.kind == "conv2d", size)

    return [link(node) for node in graph.nodes]
