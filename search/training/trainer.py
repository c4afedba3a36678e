"""The trainer: trains a candidate in several processes of one thread each, or in this one.

Threads of one process wait for each other wherever a neighbour holds a core; processes meet once a step.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.team import Team, join
from trimtab.search.training.training import Lessons, Progress, Training
from trimtab.spaces.candidate import Candidate
from trimtab.threads import torch_threads

__all__ = ["train"]


def train(
    candidate: Candidate,
    normalised: Collection[str],
    lessons: Lessons,
    recipe: Recipe,
    *,
    processes: int = 1,
    seconds: float | None = None,
    checkpoint: Path | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Candidate:
    """Return the candidate as it is after a training, from the checkpoint where there is one.

    `seconds` limit the training; `checkpoint` is written after every epoch, into a folder that exists. The result
    depends on the number of processes, and on nothing else that is not given.
    """
    given = _Assignment(candidate, tuple(normalised), lessons, recipe, seconds, checkpoint)
    processes = max(1, min(processes, recipe.batch // 2))
    if processes == 1:
        return _train(given, Team(), tell)
    with TemporaryDirectory(prefix="trimtab-") as folder:
        return _together(Path(folder), processes, given, tell)


@dataclass(frozen=True, eq=False)
class _Assignment:
    """All that a process of a training needs."""

    candidate: Candidate
    normalised: tuple[str, ...]
    lessons: Lessons
    recipe: Recipe
    seconds: float | None
    checkpoint: Path | None


@torch_threads(1)
def _train(given: _Assignment, team: Team, tell: Callable[[Progress], None]) -> Candidate:
    training = Training(given.candidate, given.normalised, given.lessons, given.recipe, team, given.seconds)
    if given.checkpoint is not None and given.checkpoint.is_file():
        training.load(given.checkpoint)
    training.run(tell, given.checkpoint)
    return training.candidate()


def _together(folder: Path, processes: int, given: _Assignment, tell: Callable[[Progress], None]) -> Candidate:
    """Train in processes that share the images by way of a file."""
    np.save(folder / "images.npy", given.lessons.images)
    shared = replace(given, lessons=replace(given.lessons, images=np.zeros(0, np.float32)))
    # Forked children of a process that has used threads may hang.
    spawn = multiprocessing.get_context("spawn")
    members, pipes = [], []
    try:
        for part in range(processes):
            ours, theirs = spawn.Pipe(duplex=False)
            arguments = (theirs, folder, part, processes, shared)
            member = spawn.Process(target=_take_part, args=arguments, daemon=True)
            member.start()
            theirs.close()
            members.append(member)
            pipes.append(ours)
        return _listen(pipes, tell)
    finally:
        for member in members:
            member.terminate()
        for member in members:
            member.join()


def _listen(pipes: list[Connection], tell: Callable[[Progress], None]) -> Candidate:
    """Pass on what the processes say, until the first one has the result; what goes wrong in one ends all."""
    while True:
        for pipe in cast("list[Connection]", wait(pipes)):
            try:
                said = pipe.recv()
            except EOFError:
                raise TrimtabError(
                    "a process of the training ended without a word: was it killed for memory?"
                ) from None
            if isinstance(said, Progress):
                tell(said)
            elif isinstance(said, BaseException):
                raise said
            elif said is not None:
                found: Candidate = said
                return found
            else:
                pipes.remove(pipe)


def _take_part(pipe: Connection, folder: Path, part: int, parts: int, shared: _Assignment) -> None:
    """One process: says how far it is, then the candidate, the first one; the others then say None."""
    # Ctrl-C is for the process that listens: it ends all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        given = replace(shared, lessons=replace(shared.lessons, images=images))
        team = join(folder / "meeting", part, parts)
        trained = _train(given, team, pipe.send if part == 0 else lambda progress: None)
        pipe.send(trained if part == 0 else None)
    except TrimtabError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(f"in a process of the training:\n{traceback.format_exc()}"))
