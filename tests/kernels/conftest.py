"""What the engine's tests share."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.kernels import emulated_levels, levels

EVERY_LEVEL = [*levels(), *emulated_levels()]


@pytest.fixture(params=EVERY_LEVEL)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
