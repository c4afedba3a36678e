"""The trainer: trains a network in several processes of one thread each, or in this one.

Threads of one process wait for each other wherever a neighbour holds a core; processes meet once a step.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.search.training.member import Assignment, fulfil
from trimtab.search.training.recipe import OneCycle
from trimtab.search.training.team import Team
from trimtab.search.training.training import Learner, Lessons, Progress

__all__ = ["train"]

Result = TypeVar("Result")
RecipeType = TypeVar("RecipeType", bound=OneCycle)

#: Seconds that a process may take to end.
DYING = 1.0


def train(
    learner: Callable[[Lessons, RecipeType], Learner[Result]],
    lessons: Lessons,
    recipe: RecipeType,
    *,
    processes: int = 1,
    seconds: float | None = None,
    checkpoint: Path | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Return what a learner has made of its network after a training, from the checkpoint where there is one.

    `learner`, which can be pickled, makes the learner of the lessons and the recipe in every process. `seconds` limit
    the training; `checkpoint` is written now and then, into a folder that exists. The result depends on the number of
    processes, and on nothing else that is not given.
    """
    given = Assignment(learner, lessons, recipe, seconds, checkpoint)
    processes = max(1, min(processes, recipe.batch // 2))
    if processes == 1:
        return fulfil(given, Team(), tell)
    with TemporaryDirectory(prefix="trimtab-") as folder:
        return _together(Path(folder), processes, given, tell)


def _together(folder: Path, processes: int, given: Assignment[Result], tell: Callable[[Progress], None]) -> Result:
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
        trained: Result = _listen(members, pipes, tell)
        return trained
    finally:
        for member in members:
            member.terminate()
        for member in members:
            member.wait()
        for pipe in pipes:
            pipe.close()


def _listen(members: list[subprocess.Popen[bytes]], pipes: list[Connection], tell: Callable[[Progress], None]) -> Any:
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
                return said
            else:
                listening.remove(pipe)


def _explained(error: BaseException, members: list[subprocess.Popen[bytes]]) -> BaseException:
    """What ended a process: where one was killed, that, and not what the others make of it."""
    with suppress(subprocess.TimeoutExpired):
        for member in members:
            if member.wait(DYING) < 0:
                return TrimtabError("a process of the training was killed: was there too little memory?")
    return error
