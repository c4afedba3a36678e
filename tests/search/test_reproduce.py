"""`trimtab reproduce`: published cases as data, as runs that can be gone on with, and as rows."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file
from tests.search.runs import TINY, CommandLine

from trimtab.errors import BadInput
from trimtab.evaluators.accuracy import judging_session
from trimtab.evaluators.data import load
from trimtab.kernels import load as load_session
from trimtab.search.progress import Progress
from trimtab.search.reproduce import reproduce as module
from trimtab.search.reproduce.cases import RATIOS, Case, case_names, load_case
from trimtab.search.reproduce.reproduce import reproduce
from trimtab.search.reproduce.row import as_markdown, row_of
from trimtab.search.setup.networks import load_checkpoint
from trimtab.search.setup.problem import load_problem
from trimtab.search.train import Order, train_network
from trimtab.spaces import Policy
from trimtab.spaces.candidate_file import load_candidate
from trimtab.spaces.zoo import build

SMALL = {"width": 8, "channels": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "net.safetensors"
    train_network(Order("resnet8", "digits", SMALL, selection=397, epochs=2.0, processes=1), out, Progress())
    return out


@pytest.fixture(scope="module")
def case_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {**TINY, "network": {"zoo": "resnet8", "options": SMALL}, "budgets": {"size": "0.15x"}, "trials": 2}
    changes |= {"data": {"name": "digits", "selection": 200, "calibration": 64}, "agent": "uniform", "baselines": []}
    changes |= {"finish": {"epochs": 1.0, "candidates": 1, "processes": 1}}
    case = {
        "title": "digits",
        "config": "digits",
        "settings": [f"{key}={json.dumps(value)}" for key, value in changes.items()],
        "reach": {"change": -50, "bytes": 3},
        "published": [{"method": "theirs", "source": "a paper", "base": 90, "final": 89.5, "bytes": 2}],
        "unlike": ["Their digits are larger."],
    }
    path = tmp_path_factory.mktemp("case") / "tiny.yaml"
    path.write_text(yaml.safe_dump(case))
    return path


@pytest.fixture(scope="module")
def reproduced(
    case_file: Path, checkpoint: Path, with_shared_cache: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("out") / "case"
    return folder, reproduce(str(case_file), folder, Progress(), checkpoint=checkpoint)


def test_the_row_says_what_the_files_of_the_run_are(
    reproduced: tuple[Path, dict[str, Any]], case_file: Path, checkpoint: Path
) -> None:
    folder, row = reproduced
    (run,) = row["runs"]
    images, labels = load("digits", selection=200).final()
    network = build("resnet8", **SMALL)
    load_checkpoint(network, checkpoint)
    with torch.no_grad():
        answers = network.eval()(torch.from_numpy(images)).argmax(1).numpy()
    assert run["base"] == pytest.approx((answers == labels).mean())
    policy = Policy.from_json(run["policy"])
    config = load_case(str(case_file)).configured([f"network.checkpoint={checkpoint}"])
    space = load_problem(config, Progress()).space
    candidate, made = load_candidate(folder / "seed-0" / "candidates" / f"{policy.id}.safetensors", space)
    right = judging_session(candidate).run(images).argmax(1) == labels
    assert run["final"] == pytest.approx(right.mean())
    assert (made.stage, run["epochs"]) == ("finished", pytest.approx(1, abs=0.1))
    file = folder / "seed-0" / "export" / "model.safetensors"
    assert run["file_bytes"] == file.stat().st_size
    np.testing.assert_array_equal(load_session(file, batch=len(images)).run(images).argmax(1) == labels, right)
    folded = sum(p.numel() for name, p in network.named_parameters() if "bn" not in name)
    norms = sum(len(p) for name, p in network.named_parameters() if "bn" in name and "bias" in name)
    assert run["bytes"] * run["stored_bytes"] == pytest.approx(4 * (folded + norms))
    assert run["parameters"] * run["kept_parameters"] == pytest.approx(folded + norms)
    assert set(run["latencies"]) == {"native", "onnxruntime", "openvino"}
    assert run["latencies"]["native"]["low"] <= run["latencies"]["native"]["ratio"]


def test_it_is_gone_on_with_and_nothing_is_done_twice(
    reproduced: tuple[Path, dict[str, Any]], case_file: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, row = reproduced
    monkeypatch.setattr(module, "load_problem", lambda *given: pytest.fail("ran again"))
    again = reproduce(str(case_file), folder, Progress(), checkpoint=checkpoint, resume=True)
    assert again == row == json.loads((folder / "row.json").read_text())
    for changes, said in (
        ({}, "exists already"),
        ({"resume": True, "settings": ["trials=3"]}, "begun with another"),
        ({"resume": True, "checkpoint": None}, "begun with another"),
    ):
        with pytest.raises(BadInput, match=said):
            reproduce(str(case_file), folder, Progress(), **{"checkpoint": checkpoint, **changes})
    for changes, said in (({"settings": ["trials=no"]}, "trials"), ({"checkpoint": folder / "none"}, "does not exist")):
        with pytest.raises(BadInput, match=said):
            reproduce(str(case_file), folder / "new", Progress(), **{"checkpoint": checkpoint, **changes})
        assert not (folder / "new").exists()
    with pytest.raises(BadInput, match="no reproduction to go on with"):
        reproduce(str(case_file), folder / "seed-0", Progress(), checkpoint=checkpoint, resume=True)


def test_bases_are_trained_once_on_images_that_no_policy_is_chosen_on(
    case_file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []

    def trained(order: Order, out: Path, *given: Any) -> None:
        orders.append(order)
        out.write_bytes(checkpoint.read_bytes())

    class Far(Exception):
        pass

    def far(config: Any, *given: Any) -> None:
        assert (config.data.split, config.seed) == ("held-out", 0)
        raise Far

    monkeypatch.setattr(module, "train_network", trained)
    monkeypatch.setattr(module, "load_problem", far)
    for resume in (False, True):
        with pytest.raises(Far):
            reproduce(str(case_file), tmp_path / "out", Progress(), resume=resume)
    assert orders == [Order("resnet8", "digits", SMALL, selection=200, seed=0)]


def test_every_published_case_loads() -> None:
    assert {"lenet5-bytes", "lenet5-parameters", "resnet20-latency-50"} <= set(case_names())
    for name in case_names():
        case = load_case(name)
        config = case.configured(["seed=3"])
        assert config.network.zoo is not None
        assert config.seed == 3
        assert all(each.lost is not None for each in case.published)


def test_what_could_not_begin_leaves_nothing(case_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros((3, 3), np.float32)}, other)
    for _ in range(2):  # the second is refused for the same reason, and not for what the first has left
        with pytest.raises(BadInput, match=r"other\.safetensors"):
            reproduce(str(case_file), tmp_path / "out", Progress(), checkpoint=other)
        assert not (tmp_path / "out").exists()


def test_the_mean_of_all_seeds_has_to_reach_everything(reproduced: tuple[Path, dict[str, Any]]) -> None:
    run = reproduced[1]["runs"][0]
    case = Case.model_validate(reproduced[1]["case"])
    runs = []
    for seed, (change, times) in enumerate([(-0.02, 5.0), (0.01, 7.0)]):
        each = {**deepcopy(run), "seed": seed, "bytes": times}
        each["change"]["value"] = change
        runs.append(each)
    for reach, reached in (
        ({"change": -0.5}, True),
        ({"change": -0.4}, False),
        ({"change": -0.5, "bytes": 6.1}, False),
    ):
        asked = case.model_copy(update={"reach": case.reach.model_validate(reach)})
        row = row_of("tiny", asked, runs)
        assert (row["mean"]["bytes"], row["reached"]) == (6.0, reached)
        page = as_markdown(row)
        assert "not reached" in page or reached
        assert "trimtab, mean of 2 seeds" in page
        assert "theirs (a paper) | 90.00% | 89.50% | −0.50" in page
    assert set(RATIOS) <= set(row["mean"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: [", "is not YAML"),
        ("title: x\nconfig: digits\nreach: {change: -1}\nseed: 1", "seed: Extra inputs"),
        ("title: x\nconfig: digits\nreach: {change: -1, bytes: -3}", "reach.bytes"),
    ],
)
def test_a_case_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "case.yaml").write_text(text)
    with pytest.raises(BadInput, match=said) as error:
        load_case(str(tmp_path / "case.yaml"))
    assert "\n" not in str(error.value)


def test_the_command_lists_cases_and_helps_with_their_names(trimtab: CommandLine) -> None:
    listed = trimtab("reproduce", "--list")
    assert listed.code == 0
    assert [line.partition(":")[0] for line in listed.out.splitlines()] == case_names()
    for words, said in (
        (["lenet5-byte"], "did you mean 'lenet5-bytes'"),
        ([], "name a case"),
        (["lenet5-bytes", "--seeds", "a"], "whole numbers"),
    ):
        wrong = trimtab("reproduce", *words)
        assert (wrong.code, wrong.err.count("\n")) == (2, 1)
        assert said in wrong.err
