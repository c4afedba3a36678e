from tests.kernels.conftest import rng

__all__ = ["rng"]
