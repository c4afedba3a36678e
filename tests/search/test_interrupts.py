from __future__ import annotations

import os
import signal
import threading

import pytest

from trimtab.search.loop.interrupts import heeding_interrupts
from trimtab.search.progress import Progress


def test_the_first_interrupt_asks_and_the_second_one_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with heeding_interrupts(Progress()) as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_the_handlers_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with heeding_interrupts(Progress()) as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
