"""The processes of one training: each computes with one thread, and all agree after every step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Team", "join"]


@dataclass(frozen=True)
class Team:
    """The place of a process, `part`, among the `parts` that train one network."""

    part: int = 0
    parts: int = 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes into every tensor."""
        if self.parts == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.parts
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def agreed(self, number: float) -> float:
        """Return the first process's number."""
        if self.parts == 1:
            return number
        told = torch.tensor([number], dtype=torch.float64)
        dist.broadcast(told, 0)
        return float(told)


def join(meeting: Path, part: int, parts: int) -> Team:
    """Meet the other processes at a file that none of them has made yet; all of them on this machine."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=part, world_size=parts)
    return Team(part, parts)
