from __future__ import annotations

import pytest

from trimtab.search.progress import ConsoleProgress


def test_without_a_terminal_the_end_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress().bar("evaluations", 3) as bar:
        for done in (1, 2, 3, 3, 3):
            bar.update(done)
    assert capsys.readouterr().err.split() == ["evaluations:", "3/3"]
