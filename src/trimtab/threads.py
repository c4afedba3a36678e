"""Numbers of threads, which are settings of the whole process and are put back afterwards.

Where results have to be the same everywhere, one thread computes them: the number of threads shows in the last bits of
sums, and those decide roundings and choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread", "torch_threads"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads within the block, or the function that this decorates."""
    import torch

    before = torch.get_num_threads()
    if before == count:  # setting it costs more than the small networks that are run so
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread within the block: on small matrices, threads that wait for a busy core take ten times as
    long."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looks through the process's libraries: milliseconds
