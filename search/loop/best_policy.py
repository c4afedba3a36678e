"""The best policy of a search, kept in a file while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from trimtab.files import write_text
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.loop import AgentRun
from trimtab.search.loop.preference import preferred
from trimtab.spaces.policy import Policy

__all__ = ["keep_best", "write_policy"]


def keep_best(folder: Path) -> Callable[[AgentRun], None]:
    """Return what keeps `policy.json` in a folder the best policy of the runs that it is shown."""
    bests: dict[str, Evaluation] = {}
    kept: Evaluation | None = None

    def keep(run: AgentRun) -> None:
        nonlocal kept
        if run.best is not None:
            bests[run.agent] = run.best
        best = preferred(bests.values())
        if best is not None and best is not kept:
            kept = best
            write_policy(folder, best.policy)

    return keep


def write_policy(folder: Path, policy: Policy) -> None:
    """Write `policy.json` into a folder."""
    write_text(folder / "policy.json", json.dumps(policy.to_json(), indent=1) + "\n")
