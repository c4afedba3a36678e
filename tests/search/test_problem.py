from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from trimtab.search.progress import Progress
from trimtab.search.setup.config import load_config
from trimtab.search.setup.problem import load_problem
from trimtab.spaces.zoo import build

OPTIONS = {"width": 4, "classes": 2}


def test_what_a_run_writes_of_its_problem_is_read_in_another_folder_and_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        place = tmp_path / "pictures" / ("train" if number < 40 else "val") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{number}.png")
    save_file(dict(build("resnet8", **OPTIONS).state_dict()), str(tmp_path / "net.safetensors"))
    settings = {
        "network": {"zoo": "resnet8", "options": OPTIONS, "checkpoint": "net.safetensors"},
        "data": {"name": "image-folder", "size": 16, "selection": 10, "calibration": 16},
        "budgets": {"size": "0.5x"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_DATA", "pictures")
    problem = load_problem(load_config("mine.yaml"), Progress())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(problem.config.to_yaml())

    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.delenv("TRIMTAB_DATA")
    again = load_problem(load_config("config.yaml"), Progress())
    assert again.config == problem.config
    assert again.space.network.weights_hash() == problem.space.network.weights_hash()
    np.testing.assert_array_equal(again.judge.images, problem.judge.images)
