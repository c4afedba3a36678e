"""What these tests share with the engine's, on which programs run."""

from __future__ import annotations

from tests.kernels.conftest import level, rng

__all__ = ["level", "rng"]
