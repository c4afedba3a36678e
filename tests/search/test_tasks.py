"""Networks that are no classifiers, or whose data have no labels, from Python to the exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.search.runs import FROM_PYTHON
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trimtab import Result, Task, compress
from trimtab.errors import BadInput
from trimtab.evaluators.data import load
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.metrics import METRICS
from trimtab.search.setup.config import make_config
from trimtab.search.setup.networks import check_fits
from trimtab.search.training.distillation import Objective, distance
from trimtab.search.training.recipe import Recipe
from trimtab.spaces.repairs.repair import Calibration
from trimtab.spaces.repairs.repair import compress as compressed
from trimtab.spaces.space import Options, build_space
from trimtab.testing.shapes import CLASSES, UNet, draw_shapes, train_unet

SETTINGS: dict[str, Any] = {**FROM_PYTHON, "finish": False}


class Regressor(nn.Module):
    """Where in a signal something is, and how large: two values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).mean((2, 3)))
        return found


@pytest.fixture
def regressor() -> nn.Module:
    torch.manual_seed(0)
    return Regressor().eval()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)


def said_by(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(x)).numpy()
    return found


def search(model: nn.Module, task: Task, **changes: Any) -> Result:
    return compress(model, task, **{"budgets": {"size": "0.6x"}, **SETTINGS, **changes})


def test_a_regression_is_judged_by_its_error_and_learns_from_targets(regressor: nn.Module, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, (200, 2)).astype(np.float32)
    parts = [(x, said_by(regressor, x) + noise[: len(x)]) for x in (images(96), images(60, 1), images(60, 2))]
    finish = {"epochs": 20, "candidates": 1, "processes": 2, "batch": 16}
    task = Task(*parts, metric="rmse", loss=lambda y, wanted: F.mse_loss(y, wanted))
    space = {"bits": [[2, 8], [8, 8]], "ranks": [], "channels": 1, "drop_pointless": False}
    result = search(regressor, task, finish=finish, space=space, budgets={"size": "0.15x"}, out=tmp_path / "run")
    summary = result.summary
    x, targets = parts[2]
    base = METRICS["rmse"].value(said_by(regressor, x), targets)
    assert summary["base"]["final_accuracy"] == pytest.approx(base, rel=1e-5)
    assert summary["metric"]["name"] == "rmse"
    assert not summary["metric"]["scale"]["higher"]
    chosen = next(row for row in summary["agents"] if row["agent"] == summary["winner"]["agent"])["best"]
    assert [v for row in summary["agents"] for v in row["trace"]] == [
        v for row in summary["agents"] for v in np.minimum.accumulate(row["trace"])
    ]
    change = (summary["base"]["final_accuracy"] - chosen["final_accuracy"]) / summary["metric"]["scale"]["given"]
    assert chosen["final_change"]["value"] == pytest.approx(change)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "rmse, lower is better" in report
    assert "Rmse against latency" in report
    training = summary["finished"]["training"]
    assert training["loss_before"] > summary["finished"]["loss"]
    assert training["processes"] == 1  # no other process can import the loss


def test_without_labels_agreement_with_the_untouched_network_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    with torch.no_grad():
        model[4].weight.mul_(5)
    loader = DataLoader(TensorDataset(torch.from_numpy(images(200))), batch_size=32)
    result = search(model, Task(loader), out=tmp_path / "run")
    base, said = result.summary["base"], result.summary["provenance"]
    assert base["accuracy"] == base["final_accuracy"] == 1.0
    assert said == "40 of the user's images, held out; final: 40 others of them"
    assert "agreement with the untouched network" in (tmp_path / "run" / "report.html").read_text()
    assert result.best is not None
    # The same by hand: the exported file against the module, on the images that were held out.
    held = images(200)[np.random.default_rng(0).permutation(200)[:40]]
    found = make_engine("native").open(tmp_path / "run" / "export" / "model.safetensors").run(held)  # type: ignore[attr-defined]
    agreed = (found.argmax(1) == said_by(model, held).argmax(1)).mean()
    assert result.best.accuracy == pytest.approx(agreed)


def test_a_folder_of_images_without_classes_has_no_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 10)):
        (tmp_path / part).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(256, size=(12, 14, 3), dtype=np.uint8)).save(tmp_path / part / f"{i:02}.png")
    splits = load("image-folder", root=tmp_path, selection=5, calibration=16, size=8)
    assert splits.classes == 0
    assert splits.selection[1] is None
    assert splits.final()[1] is None
    assert splits.selection[0].shape == (5, 3, 8, 8)
    assert len(splits.final()[0]) == 10
    check_fits(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), splits, any_shape=True)
    (tmp_path / "val" / "a class").mkdir()
    with pytest.raises(BadInput, match="has a folder per class, the other has not"):
        load("image-folder", root=tmp_path, selection=5, calibration=16, size=8)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task(images(3)), "too few to hold some of them out"),
        (Task(images(32), (images(8), np.zeros((8, 8, 8))), metric="mean-iou", mirror=True), "vary both in the loader"),
        (Task(images(32), (images(8), np.zeros((8, 8, 8)))), r"labels of shape \(8, 8\)"),
        (Task(images(32), (images(8), np.full((8, 2), 0.5))), "labels are whole numbers"),
        (Task(images(32), (images(8), {"boxes": np.zeros(8)})), "takes labels, an array, and not dict"),
        (Task(images(32), (images(8), np.zeros((8, 3))), metric="rmse"), "metric 'rmse': ValueError"),
        (Task(images(32), images(8), metric="rsme"), "did you mean 'rmse'"),
    ],
)
def test_a_task_that_does_not_go_together_is_refused(regressor: nn.Module, task: Task, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        search(regressor, task)


def test_a_configuration_names_its_metric() -> None:
    network = {"zoo": "resnet8", "metric": "mean-recall"}
    assert make_config({"network": network, "budgets": {"size": "0.5x"}}).network.metric == "mean-recall"
    with pytest.raises(BadInput, match="did you mean 'mean-recall'"):
        make_config({"network": {**network, "metric": "mean-recal"}, "budgets": {"size": "0.5x"}})


def test_what_is_learned_from_a_teacher_is_a_mean_over_pixels() -> None:
    torch.manual_seed(0)
    outputs, wanted, labels = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    rows = [y.permute(0, 2, 3, 1).reshape(-1, 4) for y in (outputs, wanted)]
    assert torch.allclose(
        distance(outputs, wanted, labels, Recipe()), distance(*rows, labels.reshape(-1), Recipe()), rtol=1e-5
    )
    values = Objective(classes=False, loss=None)
    assert distance(outputs, wanted, None, Recipe(), values) == pytest.approx(
        ((outputs - wanted) ** 2).mean().item() / wanted.var((0, 2, 3), correction=0).mean().item(), rel=1e-5
    )


def test_a_u_net_runs_in_integers_as_it_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = draw_shapes(8)[0]
    space = build_space(UNet(width=8).eval(), torch.from_numpy(x[:1]), Options(ranks=()), x)
    for policy in (space.int8(), space.uniform(0.5, (8, 8))):
        candidate = compressed(space, policy, Calibration.of(space, x))
        graph, exported = lower(candidate), make_engine("onnxruntime")
        exported.save(graph, tmp_path / "model.onnx", candidate.ranges)  # type: ignore[attr-defined]
        found = exported.open(tmp_path / "model.onnx").run(x)  # type: ignore[attr-defined]
        expected = make_engine("native").compile(graph, 8).run(x)
        assert found.shape == (8, CLASSES, 32, 32)
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.slow
def test_a_u_net_is_searched_finished_and_exported(tmp_path: Path) -> None:
    train, selection, final = draw_shapes(600), draw_shapes(150, seed=1), draw_shapes(150, seed=2)
    model = train_unet(*train, width=8, epochs=10)
    finish = {"epochs": 4, "candidates": 1, "processes": 1, "batch": 32}
    space = {"bits": [[2, 8], [4, 8], [8, 8]], "ranks": [], "channels": 4}
    task = Task(train, selection, final, metric="mean-iou")
    settings = {"finish": finish, "space": space, "trials": 8, "baselines": ["uniform"]}
    result = search(model, task, budgets={"size": "0.12x"}, out=tmp_path / "run", **settings)
    summary = result.summary
    base = METRICS["mean-iou"].value(said_by(model, final[0]), final[1])
    assert base > 0.75
    assert summary["base"]["final_accuracy"] == pytest.approx(base, abs=1e-3)
    assert result.best is not None
    assert result.best.cost.size <= 0.12 * summary["base"]["size"]
    # The figure that is reported is that of the file, by anybody's hand.
    found = make_engine("native").open(tmp_path / "run" / "export" / "model.safetensors").run(final[0])  # type: ignore[attr-defined]
    reported = (summary["finished"] or next(r["best"] for r in summary["agents"] if r["best"]))["final_accuracy"]
    assert METRICS["mean-iou"].value(found, final[1]) == pytest.approx(reported, abs=1e-6)
    assert reported > base - 0.1
    uniform = next(row["best"] for row in summary["agents"] if row["agent"] == "uniform")
    assert uniform is None or reported > uniform["final_accuracy"]
    assert all(check["agreement"] > 0.98 for check in summary["exports"])
