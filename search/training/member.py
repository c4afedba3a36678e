"""One process of a training: a program that `trimtab.search.training.trainer` starts, and the work that it does."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.search.training.recipe import OneCycle
from trimtab.search.training.team import Team, join
from trimtab.search.training.training import Learner, Lessons, Progress, Training
from trimtab.threads import torch_threads

__all__ = ["Assignment", "fulfil"]

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Assignment(Generic[Result]):
    """All that a process of a training needs; see `trimtab.search.training.trainer.train`."""

    learner: Callable[[Lessons, Any], Learner[Result]]
    lessons: Lessons
    recipe: OneCycle
    seconds: float | None
    checkpoint: Path | None


@torch_threads(1)
def fulfil(given: Assignment[Result], team: Team, tell: Callable[[Progress], None]) -> Result:
    """Train, from the checkpoint where there is one, and return what was trained as it then is."""
    learner = given.learner(given.lessons, given.recipe)
    training = Training(learner, given.lessons, given.recipe, team, given.seconds)
    if given.checkpoint is not None and given.checkpoint.is_file():
        training.load(given.checkpoint)
    training.run(tell, given.checkpoint)
    return learner.result()


def _take_part(folder: Path, part: int, parts: int, pipe: Connection) -> None:
    """Receive the assignment; say how far it is, and then the result, the first process; the others say None."""
    try:
        shared: Assignment[Any] = pipe.recv()
        given = replace(shared, lessons=replace(shared.lessons, images=np.load(folder / "images.npy", mmap_mode="r")))
        team = join(folder / "meeting", part, parts)
        trained = fulfil(given, team, pipe.send if part == 0 else lambda progress: None)
        pipe.send(trained if part == 0 else None)
    except TrimtabError as error:
        pipe.send(error)
    except (BrokenPipeError, EOFError):
        sys.exit(1)  # whoever listened is gone
    except Exception:
        with suppress(BrokenPipeError):
            pipe.send(RuntimeError(f"in a process of the training:\n{traceback.format_exc()}"))


if __name__ == "__main__":
    _folder, *_numbers = sys.argv[1:]
    _part, _parts, _pipe = map(int, _numbers)
    _take_part(Path(_folder), _part, _parts, Connection(_pipe))
