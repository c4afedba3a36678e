from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.evaluators.fakes import Machine

from trimtab.evaluators.measure import comparison, rounds

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder))
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(seed: int = 0, **options: float) -> Machine:
        made = Machine(seed, **options)
        for module in (comparison, rounds):
            monkeypatch.setattr(module, "time", made)
        return made

    return make
