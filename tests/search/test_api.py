from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.search.runs import FROM_PYTHON
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trimtab import Result, Task, compress
from trimtab.agents import Agent, Random
from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.spaces import Policy


class Nameless(Random):
    """An agent that lacks nothing but a name."""

    name = None  # type: ignore[assignment]


class Idle(Agent):
    """An agent that proposes nothing."""

    name = "idle"


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        result: Tensor = self.last(x.mean((2, 3)))
        return result


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Mine()


def arrays(count: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 1, 12, 12)).astype(np.float32), np.arange(count) % classes


def loader(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*map(torch.from_numpy, arrays(count))), batch_size=16)


def search(model: Any, task: Any, **changes: Any) -> Result:
    return compress(model, task, **{"budgets": {"size": "0.6x"}, **FROM_PYTHON, **changes})


def test_a_module_with_loaders_is_compressed_and_exported(model: nn.Module, tmp_path: Path) -> None:
    threads, before = torch.get_num_threads(), {k: v.clone() for k, v in model.state_dict().items()}
    result = search(model, Task(loader(80), loader(40), loader(48)), out=tmp_path / "run")
    assert result.best is not None
    assert result.best.cost.size <= 0.6 * result.summary["base"]["size"]
    assert result.pareto
    assert result.folder == tmp_path / "run"
    assert "48 images given as final" in result.summary["provenance"]
    assert result.summary["data"] == "python"
    assert f"{result.best.cost.size} bytes" in repr(result)
    checks = result.export(tmp_path / "out")
    assert checks[0].agreement == 1.0
    assert Policy.load(tmp_path / "out" / "policy.json") == result.best.policy
    # The caller's module and settings are as they were.
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.get_num_threads() == threads
    again = search(model, Task(loader(80), loader(40), loader(48)), out=tmp_path / "run", resume=True)
    assert [p["policy"] for p in again.summary["points"]] == [p["policy"] for p in result.summary["points"]]


def test_a_network_of_signals_takes_them_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [nn.Conv1d(2, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 12, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 4))
    parts = [(rng.normal(size=(n, 2, 40)).astype(np.float32), np.arange(n) % 4) for n in (64, 32, 32)]
    result = search(model, Task(*parts), out=tmp_path / "run")
    assert result.best is not None
    assert all(check.agreement == 1.0 for check in result.export(tmp_path / "out")[:1])


def test_a_network_of_vectors_is_trained_in_the_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # predictions that say something
            parameter.normal_()
    inputs = [rng.normal(size=(n, 6)).astype(np.float32) for n in (2048, 200, 100)]
    parts = [(x, model(torch.from_numpy(x)).argmax(1).numpy()) for x in inputs]
    training = {"epochs": 20, "candidates": 1, "processes": 1, "batch": 16}
    space = {"bits": [[2, 8], [8, 8]], "ranks": [], "channels": 1}
    result = search(model, Task(*parts), out=tmp_path / "run", finish=training, space=space, budgets={"size": "0.2x"})
    assert result.best is not None
    before, best = result.summary["finished"]["training"]["loss_before"], result.best
    assert best.loss < before
    result.finish(epochs=10)
    assert result.best is not None
    assert result.best.loss == result.summary["finished"]["loss"]


def test_what_can_be_read_once_is_trained_on_whole() -> None:
    images, labels = arrays(64)
    batches = ((images[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16))
    splits = Task(batches, arrays(16), calibration=8).splits()
    assert len(splits.calibration) == 8
    for _ in range(2):
        np.testing.assert_array_equal(splits.train()[0], images)


def test_parts_of_other_shapes_are_named(model: nn.Module) -> None:
    images, labels = arrays(16)
    for name in ("selection", "final"):
        parts = {"train": arrays(16), "selection": arrays(16), name: (images[:, :, :6], labels)}
        with pytest.raises(BadInput, match=rf"task.{name}: its images are of shape \(1, 6, 12\), those of task.train"):
            search(model, Task(**parts))


def notebook_cell() -> type[Agent]:
    class Climber(Random):
        """An agent that no import finds."""

        name = "climber"

    return Climber


def test_an_agent_of_one_s_own_is_defined_again_and_its_run_gone_on_with(model: nn.Module, tmp_path: Path) -> None:
    found = [
        search(model, (arrays(64), arrays(30)), agent=notebook_cell(), out=tmp_path, resume=resume).summary["points"]
        for resume in (False, True)
    ]
    own = [point["policy"] for point in found[0] if point["agent"].endswith(":notebook_cell.<locals>.Climber")]
    assert len(own) == FROM_PYTHON["trials"]
    assert found[0] == found[1]


def test_arrays_do_without_final_images_and_say_so(model: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    # The selection lacks the last class, which is no reason to refuse it.
    result = search(model, (arrays(64), arrays(30, classes=3)))
    assert "final: the selection images themselves" in result.summary["provenance"]
    assert result.summary["base"]["accuracy"] == result.summary["base"]["final_accuracy"]
    assert capfd.readouterr().out == ""


def without(part: tuple[np.ndarray, np.ndarray], value: float) -> tuple[np.ndarray, np.ndarray]:
    """The part with a value that is not finite in two of its images."""
    images = part[0].copy()
    images[3, 0, 0, 0] = images[5, 0, 2, 2] = value
    return images, part[1]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (arrays(8)[0], "a trimtab.Task or a pair"),
        ((3, arrays(8)), "task.train is a DataLoader"),
        ((arrays(8), [1, 2]), "does not yield"),
        ((arrays(8), []), "yields no images"),
        (([(*arrays(8), 1)], arrays(8)), "3 things in a batch"),
        (([(*arrays(8),), (arrays(8)[0],)], arrays(8)), "others have none"),
        ((arrays(32), (arrays(8)[0], arrays(7)[1])), "beside 8 images"),
        ((arrays(32), (arrays(8)[0], np.eye(8))), r"labels of shape \(\), and the data labels of shape \(8,\)"),
        ((arrays(32), (arrays(8)[0][0], arrays(1)[1])), "those of task.train"),
        ((arrays(32), (arrays(8)[0][..., None], arrays(8)[1])), "expected batches"),
        ((arrays(32), (arrays(8)[0], arrays(8)[1] - 1)), "labels from 0"),
        ((arrays(32), [arrays(8), (np.zeros((2, 1, 9, 9)), np.zeros(2))]), "those of task.train"),
        (([arrays(8), (np.zeros((2, 1, 9, 9)), np.zeros(2))], arrays(8)), "one shape"),
        ((arrays(32), arrays(32, classes=9)), "9 classes"),
        ((arrays(32), (arrays(8)[0], arrays(8)[1] + 0.25)), "task.selection: labels are whole numbers, found [0-9].25"),
        *(
            (parts, f"{name}: 2 images of a batch")
            for value in (np.nan, np.inf)
            for name, parts in (
                ("train", (without(arrays(32), value), arrays(8))),
                ("selection", (arrays(32), without(arrays(8), value))),
            )
        ),
    ],
)
def test_data_of_the_wrong_form_is_refused(model: nn.Module, tmp_path: Path, task: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        search(model, task, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budgets": "0.5x"}, "budgets"),
        ({"budgets": {"sise": "0.5x"}}, "did you mean 'size'"),
        ({"agent": "tpee"}, "did you mean 'tpe'"),
        ({"agent": Nameless}, "Nameless' lacks name"),
        ({"agent": Idle}, "Idle' lacks _propose"),
        ({"agent": "random", "baselines": ["milp", Idle]}, "Idle' lacks _propose"),
        ({"trails": 3}, "unknown key 'trails'; did you mean 'trials'"),
        ({"network": "resnet8"}, "not as the setting 'network'"),
        ({"resume": True}, "resume needs out"),
    ],
)
def test_wrong_settings_are_refused(model: nn.Module, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        search(model, (arrays(32), arrays(8)), **changes)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(BadInput, match=r"model is a torch\.nn\.Module, not str"):
        search("resnet8", (arrays(32), arrays(8)))


def test_an_impossible_budget_leaves_nothing_behind(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InfeasibleBudget, match="smallest reachable size"):
        search(model, (arrays(32), arrays(8)), budgets={"size": "1 B"})
    assert not list(tmp_path.glob("trimtab-*"))
