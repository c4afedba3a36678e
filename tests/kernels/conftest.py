"""What the engine's tests share."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.levels import LEVELS


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
