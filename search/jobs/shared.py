"""The proof that a folder is shared: every node writes a token there, and this process reads all of them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.errors import BadInput, TrimtabError, in_one_line

__all__ = ["prove_shared"]

#: Seconds that nodes have.
SECONDS = 120.0


def prove_shared(folder: Path) -> int:
    """Check, in a process that is connected to a Ray cluster, that all nodes write into one folder; return how many.

    The folder is made. One that is not shared, or that a node may not write to, is a `BadInput` that names the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = secrets.token_hex(16)
    place = folder / f".proof-{token}"
    try:
        place.mkdir(parents=True)
        (place / "driver").write_text(token)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written to on {os.uname().nodename}: {error.strerror}") from error
    try:
        task, running = ray.remote(num_cpus=0, max_retries=0)(_answer), {}
        for node in ray.nodes():
            if node["Alive"]:
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                reference = task.options(scheduling_strategy=here).remote(str(place), node["NodeID"], token)
                running[reference] = node
        done, _ = ray.wait(list(running), num_returns=len(running), timeout=SECONDS)
        for reference, node in running.items():
            _check(reference in done, reference, place / node["NodeID"], token, node["NodeManagerAddress"])
    finally:
        rmtree(place, ignore_errors=True)
    return len(running)


def _check(answered: bool, reference: Any, file: Path, token: str, node: str) -> None:
    import ray

    if not answered:
        raise TrimtabError(f"the node {node} has not answered within {SECONDS:.0f} s")
    try:
        problem = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise TrimtabError(f"the node {node} runs nothing of trimtab: {in_one_line(error)}") from error
    if problem is None and not (file.is_file() and file.read_text() == token):
        problem = "what it writes there is not seen where the search runs"
    if problem is not None:
        raise BadInput(f"{file.parent.parent} is not shared with the node {node}: {problem}")


def _answer(place: str, name: str, token: str) -> str | None:
    """On a node: read the driver's token and write it again; return what was wrong."""
    try:
        if (Path(place) / "driver").read_text() != token:
            return "another file lies there"
        (Path(place) / name).write_text(token)
    except OSError as error:
        return f"{error.strerror} ({place})"
    return None
