from __future__ import annotations

import pytest

from trimtab.errors import BadInput
from trimtab.kernels import levels
from trimtab.kernels.roofline import Roofline, cache_sizes, measure_roofline

KNOWN = Roofline("avx2", 1, 50e9, 100e9, ((1000, 80e9), (10_000, 20e9), (float("inf"), 10e9)))


def test_the_roofline_is_the_smaller_of_peak_and_arrival() -> None:
    assert KNOWN.attainable(macs=1e6, moved=1000, integer=True) == 100e9
    assert KNOWN.attainable(macs=1e6, moved=1000, integer=False) == 50e9
    assert KNOWN.attainable(macs=1000, moved=1000, integer=True) == 80e9
    assert KNOWN.attainable(macs=3000, moved=1500, integer=True) == 40e9
    assert KNOWN.attainable(macs=1e6, moved=1e6, integer=True) == KNOWN.memory_rate
    assert KNOWN.attainable(macs=1000, moved=1000, integer=True, rate=10e9) == 10e9


def test_caches_have_sizes() -> None:
    second, last = cache_sizes()
    assert 1 << 17 <= second <= last


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_measured_is_positive_and_ordered(threads: int) -> None:
    found = measure_roofline(levels()[0], threads, 0.005)
    assert (found.level, found.threads) == (levels()[0], threads)
    assert found.float_peak > 0
    assert found.int_peak > 0
    assert [size for size, _ in found.streams] == sorted(size for size, _ in found.streams)
    assert all(rate > 0 for _, rate in found.streams)


def test_input_is_checked() -> None:
    with pytest.raises(BadInput, match="positive"):
        measure_roofline(seconds=0)
    with pytest.raises(BadInput, match="neon"):
        measure_roofline("neon")
