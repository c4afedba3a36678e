"""Compact networks are bases like any other: the whole way, from a module to its exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

import trimtab


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_compact_network_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, num_classes=10).eval()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(48, 3, 64, 64)).astype(np.float32)
    labels = rng.integers(10, size=48)
    result = trimtab.compress(
        model,
        trimtab.Task(train=(images, labels), selection=(images[:32], labels[:32]), calibration=16),
        budgets={"latency": "0.8x", "size": "0.3x"},
        agent="random",
        trials=2,
        out=tmp_path / "run",
        space={"channels": 3, "bits": [[8, 8], [32, 32]], "ranks": [0.25]},
        measure={"seconds": 0.1, "final_seconds": 0.3, "probes": 2},
        workers=0,
    )
    assert result.best is not None
    assert result.best.feasible
    checks = result.export(tmp_path / "export")
    assert [check.engine for check in checks] == ["native", "onnxruntime"]
    assert checks[0].largest_difference == 0
