"""Interrupts: Ctrl-C asks a search to finish with what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trimtab.search.progress import Progress

__all__ = ["heeding_interrupts"]


@contextmanager
def heeding_interrupts(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C is a request to stop soon, and the second one stops at once.

    Yields a function that says whether a stop was asked for. In other threads than the main one, which get no signals,
    it never is.
    """
    asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        progress.line("stopping after the evaluations in flight, and finishing with what there is (Ctrl-C: at once)")

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
