"""The roofline of this machine: products in registers, and bytes from each level of its memory, at most.

A layer's roofline (Williams, Waterman, Patterson 2009) is the smaller of the peak and of what arrives: the bandwidth
times the products for each byte.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import BadInput
from trimtab.kernels import _native
from trimtab.kernels.isa import active_level, resolve_level

__all__ = ["Roofline", "beyond_caches", "cache_sizes", "measure_roofline", "stream_rate"]

#: Of a cache that others use too, so much can be counted on.
USABLE = 0.5

#: What is streamed to measure main memory, in sizes of the last cache, within bounds.
BEYOND_CACHES, LEAST_BEYOND, MOST_BEYOND = 4, 1 << 27, 1 << 29


@dataclass(frozen=True)
class Roofline:
    """Rates of `threads` threads together, per second: `float_peak` and `int_peak` in multiply-accumulates, `streams`
    in bytes read. A stream holds for data of up to so many bytes; the last one is main memory's."""

    level: str
    threads: int
    float_peak: float
    int_peak: float
    streams: tuple[tuple[float, float], ...]

    @property
    def memory_rate(self) -> float:
        """Bytes per second from main memory."""
        return self.streams[-1][1]

    def rate(self, data: float) -> float:
        """Bytes per second of data that is read again and again, `data` bytes of it."""
        return next((rate for size, rate in self.streams if data <= size), self.memory_rate)

    def attainable(self, macs: float, moved: float, integer: bool, rate: float | None = None) -> float:
        """Multiply-accumulates per second for a layer of `macs` that moves `moved` bytes, at `rate` per second or from
        the cache that they fit in."""
        rate = self.rate(moved) if rate is None else rate
        return min(self.int_peak if integer else self.float_peak, rate * macs / moved)


def measure_roofline(level: str | None = None, threads: int = 1, seconds: float = 0.1) -> Roofline:
    """Measure it, for about `seconds` a rate; a level that this machine lacks is a BadInput."""
    if seconds <= 0 or threads < 1:
        raise BadInput(f"seconds and threads must be positive, got {seconds} and {threads}")
    level = active_level() if level is None else resolve_level(level)
    second, last = cache_sizes()
    # Caches are shared in unknown ways: the last one is streamed at the geometric mean of both sizes.
    middle = int((second * last) ** 0.5)
    sizes = ((USABLE * second, second // 2), (USABLE * last, middle), (float("inf"), beyond_caches()))
    return Roofline(
        level,
        threads,
        _native.peak_float(level, seconds) * threads,
        _native.peak_int(level, seconds) * threads,
        tuple((limit, stream_rate(level, size, seconds, threads)) for limit, size in sizes),
    )


def beyond_caches() -> int:
    """Return a number of bytes that can only be streamed from main memory."""
    return min(max(BEYOND_CACHES * cache_sizes()[1], LEAST_BEYOND), MOST_BEYOND)


def stream_rate(level: str, size: int, seconds: float, threads: int) -> float:
    """Return the bytes per second of several threads, each reading a buffer of its own: the best within `seconds`, at
    least one pass."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: _native.stream_rate(level, size, seconds), range(threads)))


def cache_sizes() -> tuple[int, int]:
    """Return the bytes of the second and of the last cache, as the system tells them, else of a common processor."""
    found = dict[int, int]()
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            size = (index / "size").read_text().strip()
            found[int((index / "level").read_text())] = int(size.rstrip("KM")) << {"K": 10, "M": 20}.get(size[-1], 0)
        except (OSError, ValueError):  # a kernel that does not tell
            continue
    second = found.get(2) or _configured("SC_LEVEL2_CACHE_SIZE") or 1 << 20
    last = found.get(max(found, default=0)) or _configured("SC_LEVEL3_CACHE_SIZE") or 1 << 25
    return second, max(second, last)


def _configured(name: str) -> int:
    try:
        return max(0, os.sysconf(name))
    except (OSError, ValueError):
        return 0
