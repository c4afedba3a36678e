from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own, and with it a timing slot of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder))
    return folder
