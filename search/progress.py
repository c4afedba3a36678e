"""Progress that a run shows while it works: bars on a terminal, plain lines elsewhere, nothing for the Python API."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

__all__ = ["LINE_EVERY", "Bar", "ConsoleProgress", "Progress"]

#: Seconds between two lines of the same bar where there is no terminal.
LINE_EVERY = 10.0


class Bar:
    """A counter that is shown; the plain one shows nothing."""

    def update(self, done: int, note: str = "") -> None:
        """Set how much is done, with a few words on how it stands."""

    def total(self, total: int) -> None:
        """Change how much there is to do."""


class Progress:
    """Shows nothing: what the Python API uses unless told otherwise."""

    def line(self, text: str) -> None:
        """Say one thing."""

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Bar]:
        """Show a named counter while the block runs; `total` None means that the end is not known."""
        yield Bar()


class ConsoleProgress(Progress):
    """Writes to standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._bars: Bars | None = None

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Bar]:
        """Show a bar on a terminal, a line now and then elsewhere."""
        if not self.console.is_terminal:
            yield _Lines(self.console, name, total)
            return
        if self._bars is not None:
            yield _Shown(self._bars, self._bars.add_task(name, total=total, note=""))
            return
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=self.console) as bars:
            self._bars = bars
            try:
                yield _Shown(bars, bars.add_task(name, total=total, note=""))
            finally:
                self._bars = None


class _Shown(Bar):
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def update(self, done: int, note: str = "") -> None:
        self.bars.update(self.task, completed=done, note=note)

    def total(self, total: int) -> None:
        self.bars.update(self.task, total=total)


class _Lines(Bar):
    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self.console, self.name, self.end = console, name, total
        self.shown = time.monotonic()
        self.last: int | None = None

    def update(self, done: int, note: str = "") -> None:
        ends = done == self.end and done != self.last
        if ends or time.monotonic() - self.shown >= LINE_EVERY:
            self.shown, self.last = time.monotonic(), done
            of = f"/{self.end}" if self.end else ""
            self.console.print(f"{self.name}: {done}{of}  {note}".rstrip())

    def total(self, total: int) -> None:
        self.end = total
