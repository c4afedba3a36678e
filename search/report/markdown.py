"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] | None = None) -> str:
    """Return a table without a line break at its end; `right` says which columns are aligned to the right: without it,
    all but the first."""
    if right is None:
        right = [False, *[True] * (len(head) - 1)]
    lines = [head, ["---:" if end else "---" for end in right], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
