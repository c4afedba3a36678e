"""`trimtab train`: from a zoo network's name to a checkpoint that a configuration takes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.search.runs import CommandLine, tiny

from trimtab.errors import BadInput
from trimtab.evaluators.data import load
from trimtab.search.progress import Progress
from trimtab.search.setup.networks import PROVENANCE, load_network
from trimtab.search.train import Order, train_network, usual_data

SMALL = {"width": 8, "channels": 1}
SHORT = Order("resnet8", "digits", SMALL, selection=397, epochs=2.0, processes=1)
WORDS = ("resnet8", "--data", "digits", "--option", "width=8", "--option", "channels=1", "--selection", "397")


def test_a_configuration_takes_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "made" / "net.safetensors"
    found = train_network(SHORT, out, Progress())
    assert [path.name for path in out.parent.iterdir()] == ["net.safetensors"]
    given: dict[str, Any] = {"network": {"zoo": "resnet8", "options": SMALL, "checkpoint": str(out)}}
    splits = load("digits", selection=397)
    network = load_network(tiny(**given), splits)
    for (images, labels), key in ((splits.selection, "held_out_accuracy"), (splits.final(), "test_accuracy")):
        with torch.no_grad():
            answers = network(torch.from_numpy(images)).argmax(1).numpy()
        assert found[key] == (answers == labels).mean()
    with safe_open(out, "pt") as file:
        said = json.loads(file.metadata()[PROVENANCE])
    assert {"file": str(out), **said} == found
    assert (said["recipe"]["seed"], said["data"], said["held_out"], said["options"]) == (0, "digits", 397, SMALL)
    assert said["epochs"] == 2.0
    # Other images than those that were held out were trained on.
    for other in ({"seed": 1}, {"data": {"name": "digits", "selection": 398}}):
        with pytest.raises(BadInput, match=r"seed: 0 and at most 397"):
            load_network(tiny(**given, **other), splits)
    load_network(tiny(**given, seed=1, data={"name": "digits", "split": "test-half"}), splits)


def test_networks_have_their_usual_data() -> None:
    assert (usual_data("lenet5"), usual_data("vgg16-bn")) == ("mnist", "cifar10")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "lenet"}, "unknown zoo network 'lenet'; did you mean 'lenet5'"),
        ({"data": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"options": {"wdith": 8}}, "zoo network 'resnet8'.*wdith"),
        ({"options": {}}, r"does not take the data's images \(1, 8, 8\)"),
        ({"network": "lenet5", "options": {}}, r"does not take the data's images \(1, 8, 8\)"),
        ({"options": {**SMALL, "classes": 7}}, "10 classes"),
        ({"selection": 1397}, "too few"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        train_network(Order(**{**vars(SHORT), **changes}), tmp_path / "new" / "net.safetensors", Progress())
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.search.train.load", lambda *words, **more: pytest.fail("read the data"))
    (tmp_path / "file").write_text("")
    (tmp_path / "there.safetensors").write_text("")
    (tmp_path / "half.safetensors.unfinished").write_text("")
    for name, resume, said in (
        ("file/net.safetensors", False, "cannot be made"),
        ("net.pt", False, ".safetensors file"),
        ("there.safetensors", False, "exists already"),
        ("half.safetensors", False, "pass --resume"),
        ("net.safetensors", True, "no training to go on with"),
    ):
        with pytest.raises(BadInput, match=said):
            train_network(SHORT, tmp_path / name, Progress(), resume)
    with pytest.raises(BadInput, match="more than 0"):
        Order("resnet8", "digits", epochs=float("nan"))


@pytest.mark.slow
def test_the_command_goes_on_after_an_interruption(trimtab: CommandLine) -> None:
    words = ("train", *WORDS, "--processes", "1", "--epochs", "20", "--json")
    unfinished = trimtab.folder / "resnet8-digits.safetensors.unfinished"
    stopped = trimtab.stop_when(unfinished.exists, signal.SIGINT, *words)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert [path.name for path in trimtab.folder.iterdir()] == [unfinished.name]
    ran = trimtab(*words, "--resume")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["epochs"] == 20
    assert [path.name for path in trimtab.folder.iterdir()] == [found["file"]] == ["resnet8-digits.safetensors"]
