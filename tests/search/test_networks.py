from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.search.runs import TINY, tiny
from torch import nn

from trimtab.errors import BadInput
from trimtab.evaluators.data import Splits, load
from trimtab.search.setup.config import NetworkConfig
from trimtab.search.setup.networks import load_checkpoint, load_network, make_model

State = dict[str, Any]


@pytest.fixture
def splits() -> Splits:
    return load("digits", calibration=64, selection=100)


@pytest.fixture
def model() -> nn.Module:
    return make_model(NetworkConfig(zoo="resnet8", options={"width": 4, "channels": 1}))


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("conv1.weight"), "conv1.weight is missing"),
        (lambda s: {**s, "more": torch.zeros(1)}, "more is not in the network"),
        (lambda s: {**s, "conv1.weight": torch.zeros(5, 1, 3, 3)}, r"conv1.weight is \(5, 1, 3, 3\)"),
    ],
)
def test_a_checkpoint_of_another_network_is_one_line(
    model: nn.Module, tmp_path: Path, change: Callable[[State], State], said: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(change({k: v.clone() for k, v in model.state_dict().items()}), str(path))
    with pytest.raises(BadInput, match=f"other.safetensors is of another network: {said}") as error:
        load_checkpoint(model, path)
    assert "\n" not in str(error.value)


def test_every_difference_is_counted(model: nn.Module, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(BadInput, match=r"conv1.weight is missing \(and \d+ more differences\)"):
        load_checkpoint(model, tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_weights_are_loaded_from_every_format(model: nn.Module, tmp_path: Path, name: str, wrap: Any) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(wrap(state), str(path))
    else:
        torch.save({"state_dict": wrap(state), "epoch": 3}, path)
    other = make_model(NetworkConfig(zoo="resnet8", options={"width": 4, "channels": 1}))
    load_checkpoint(other, path)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("raw", [True, False])
def test_pickled_code_is_refused_and_not_run(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if raw:
        Path("x.pt").write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"conv1.weight": Bomb()}, "x.pt")
    with pytest.raises(BadInput, match=r"x\.pt .*pickled code is never run") as error:
        load_checkpoint(model, Path("x.pt"))
    assert "\n" not in str(error.value)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x00" * 100])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_damaged_checkpoint_is_refused(model: nn.Module, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name):
        load_checkpoint(model, tmp_path / name)


@pytest.mark.parametrize("state", [[1, 2], {"conv1.weight": 3}, torch.zeros(3)])
def test_what_is_no_state_dict_is_refused(model: nn.Module, tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(BadInput, match="is not a state dict"):
        load_checkpoint(model, tmp_path / "x.pt")


def test_a_missing_checkpoint_is_named(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.pt does not exist"):
        load_checkpoint(model, tmp_path / "none.pt")


@pytest.fixture
def module_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def write(code: str) -> str:
        name = f"mine_{abs(hash(code))}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return write


def test_a_factory_is_imported_from_the_current_folder(module_here: Callable[[str], str]) -> None:
    name = module_here("from torch import nn\ndef make(size): return nn.Linear(size, 2)\nready = nn.Linear(4, 2)")
    made = make_model(NetworkConfig.model_validate({"import": f"{name}:make", "options": {"size": 3}}))
    assert isinstance(made, nn.Linear)
    assert made.in_features == 3
    ready = make_model(NetworkConfig.model_validate({"import": f"{name}:ready"}))
    assert isinstance(ready, nn.Linear)
    assert ready.in_features == 4


@pytest.mark.parametrize(
    ("code", "attribute", "said"),
    [
        ("", "make", "AttributeError.*make"),
        ("def make(): return 3", "make", "returned int"),
        ("def make(x): pass", "make", "TypeError"),
        ("1 / 0", "make", "ZeroDivisionError"),
        ("def (", "make", "SyntaxError"),
    ],
)
def test_an_import_that_fails_is_one_line(
    module_here: Callable[[str], str], code: str, attribute: str, said: str
) -> None:
    path = f"{module_here(code)}:{attribute}"
    with pytest.raises(BadInput, match=said) as error:
        make_model(NetworkConfig.model_validate({"import": path}))
    assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match=r"'package\.module:factory'"):
        make_model(NetworkConfig.model_validate({"import": "mine"}))


def test_torchvision_networks_come_by_name() -> None:
    made = make_model(NetworkConfig(torchvision="squeezenet1_1", options={"num_classes": 3}))
    assert made(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(BadInput, match="did you mean 'resnet18'"):
        make_model(NetworkConfig(torchvision="resnet81"))
    with pytest.raises(BadInput, match=r"'squeezenet1_1': .*depth"):
        make_model(NetworkConfig(torchvision="squeezenet1_1", options={"depth": 3}))


def test_a_network_without_weights_is_refused(splits: Splits) -> None:
    network = {key: value for key, value in TINY["network"].items() if key != "training"}
    with pytest.raises(BadInput, match=r"no weights: give network\.checkpoint, or network\.training"):
        load_network(tiny(network=network), splits)


@pytest.mark.parametrize(
    ("options", "said"), [({"width": 4}, r"images \(1, 8, 8\)"), ({"channels": 1, "classes": 7}, "10 classes")]
)
def test_a_network_that_does_not_fit_the_data_is_refused_untrained(
    splits: Splits, options: dict[str, int], said: str
) -> None:
    config = tiny(network={**TINY["network"], "options": options})
    with pytest.raises(BadInput, match=said):
        load_network(config, replace(splits, train=lambda: pytest.fail("read the training images")))


def state_of(splits: Splits, **changes: Any) -> State:
    return load_network(tiny(**changes), splits).state_dict()


def same(a: State, b: State) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_training_is_deterministic_and_cached(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "first"))
    first = state_of(splits)
    reused = state_of(replace(splits, train=lambda: pytest.fail("trained again")))
    other = state_of(splits, seed=1)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "second"))
    torch.manual_seed(99)
    assert same(first, reused)
    assert same(first, state_of(splits))
    assert not same(first, other)
    assert not list((tmp_path / "first").rglob("*.part"))


def test_other_images_are_trained_on_anew(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = state_of(splits)
    moved = replace(splits, calibration=splits.calibration + 1)
    assert same(first, state_of(splits))
    seen: list[int] = []
    load_network(tiny(), moved, lambda done, of: seen.append(done))
    assert seen == [1, 2]


def test_the_images_that_choose_and_report_are_not_trained_on(splits: Splits) -> None:
    train = {image.tobytes() for image in splits.train()[0]}
    assert len(train) > 1200
    for images, _ in (splits.selection, splits.final()):
        assert not train & {image.tobytes() for image in images}


def test_only_the_training_part_is_read(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = state_of(splits)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "other"))
    labels = np.zeros_like(splits.selection[1])
    blind = replace(splits, selection=(splits.selection[0], labels), final=lambda: pytest.fail("read the final images"))
    assert same(first, state_of(blind))
