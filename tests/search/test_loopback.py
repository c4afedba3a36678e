"""What a search starts listens on loopback only."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from trimtab.search.loop.pool import start_ray

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves its log files open

#: 127.0.0.1 as the kernel's tables write it, and the same in IPv6.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def listening() -> set[str]:
    """Every ADDRESS:PORT of this machine on which a process listens, as the kernel writes it."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {fields[1] for fields in lines if fields[3] == "0A"}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_listens_on_loopback_only() -> None:
    before = listening()
    ours = start_ray(1)
    try:
        assert ours, "another test has left its cluster"
        assert {socket.split(":")[0] for socket in listening() - before} <= LOOPBACK
        assert listening() > before
    finally:
        ray.shutdown()
