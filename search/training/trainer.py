"""The trainer: trains a candidate in several processes of one thread each, or in this one.

Threads of one process wait for each other wherever a neighbour holds a core; processes meet once a step.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.search.training.member import Assignment, fulfil
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.team import Team
from trimtab.search.training.training import Lessons, Progress
from trimtab.spaces.candidate import Candidate

__all__ = ["train"]

#: Seconds that a process may take to end.
DYING = 1.0


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

    `seconds` limit the training; `checkpoint` is written now and then, into a folder that exists. The result
    depends on the number of processes, and on nothing else that is not given.
    """
    given = Assignment(candidate, tuple(normalised), lessons, recipe, seconds, checkpoint)
    processes = max(1, min(processes, recipe.batch // 2))
    if processes == 1:
        return fulfil(given, Team(), tell)
    with TemporaryDirectory(prefix="trimtab-") as folder:
        return _together(Path(folder), processes, given, tell)


def _together(folder: Path, processes: int, given: Assignment, tell: Callable[[Progress], None]) -> Candidate:
    """Train in processes that share the images by way of a file.

    They are started as programs of their own: a forked child of a process that has used threads may hang, and one that
    is spawned would run the caller's script again.
    """
    np.save(folder / "images.npy", given.lessons.images)
    shared = replace(given, lessons=replace(given.lessons, images=np.zeros(0, np.float32)))
    members: list[subprocess.Popen[bytes]] = []
    pipes: list[Connection] = []
    try:
        for part in range(processes):
            ours, theirs = Pipe()
            with theirs:
                words = [str(folder), str(part), str(processes), str(theirs.fileno())]
                command = [sys.executable, "-m", "trimtab.search.training.member", *words]
                # In a session of its own: Ctrl-C is for this process, which ends them all.
                member = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
            members.append(member)
            pipes.append(ours)
        for pipe in pipes:
            pipe.send(shared)
        return _listen(members, pipes, tell)
    finally:
        for member in members:
            member.terminate()
        for member in members:
            member.wait()
        for pipe in pipes:
            pipe.close()


def _listen(
    members: list[subprocess.Popen[bytes]], pipes: list[Connection], tell: Callable[[Progress], None]
) -> Candidate:
    """Pass on what the processes say, until the first one has the result; what goes wrong in one ends all."""
    listening = list(pipes)
    while True:
        for pipe in cast("list[Connection]", wait(listening)):
            try:
                said = pipe.recv()
            except EOFError:
                said = RuntimeError("it ended without a word")
            if isinstance(said, Progress):
                tell(said)
            elif isinstance(said, TrimtabError):
                raise said
            elif isinstance(said, BaseException):
                raise _explained(said, members)
            elif said is not None:
                found: Candidate = said
                return found
            else:
                listening.remove(pipe)


def _explained(error: BaseException, members: list[subprocess.Popen[bytes]]) -> BaseException:
    """What ended a process: where one was killed, that, and not what the others make of it."""
    with suppress(subprocess.TimeoutExpired):
        for member in members:
            if member.wait(DYING) < 0:
                return TrimtabError("a process of the training was killed: was there too little memory?")
    return error
