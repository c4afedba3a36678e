from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.search.runs import TINY, CommandLine, Ran
from typer.main import get_command

from trimtab.search.cli import app
from trimtab.search.setup.config import make_config
from trimtab.spaces import Policy

Written = Callable[..., Path]


def document(ran: Ran) -> Any:
    """The one strict JSON document on standard output."""
    assert ran.code == 0, ran.err
    return json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def refused(ran: Ran, code: int, *said: str) -> None:
    assert (ran.code, ran.out) == (code, ""), ran.err
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("trimtab: ")
    assert "Traceback" not in ran.err
    for text in said:
        assert text in last


def test_help_shows_how_to_start_and_every_command(trimtab: CommandLine) -> None:
    ran = trimtab("--help")
    assert ran.code == 0
    for text in ("trimtab search", "budgets:", "Exit codes", "evaluate", "export", "report", "doctor"):
        assert text in ran.out
    assert trimtab("search", "--help").out.count("--resume") == 1


def test_a_wrong_command_or_option_is_a_usage_error(trimtab: CommandLine) -> None:
    for arguments in (["serach"], ["search", "--nope"], ["evaluate"], ["bench", "kernels", "--threads", "0"]):
        ran = trimtab(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert "Error" in ran.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trails": 3}, "unknown key 'trails'; did you mean 'trials'?"),
        ({"budgets": {"latency": "fast"}}, "budget latency: 'fast' is not a budget"),
        ({"data": "cifar10"}, "TRIMTAB_DATA"),
        ({"data": {"name": "cifar10", "root": "/nowhere"}}, "/nowhere does not exist"),
    ],
)
def test_bad_configurations_end_with_code_2(
    trimtab: CommandLine, written: Written, changes: dict[str, Any], said: str
) -> None:
    refused(trimtab("search", written(**changes), "--out", "run"), 2, said)
    assert not list(trimtab.folder.iterdir())


def test_a_checkpoint_of_another_network_ends_with_code_2(trimtab: CommandLine, written: Written) -> None:
    save_file({"conv1.weight": torch.zeros(3, 1, 3, 3)}, str(trimtab.folder.parent / "other.safetensors"))
    network = {
        "zoo": "resnet8",
        "options": {"channels": 1},
        "checkpoint": str(trimtab.folder.parent / "other.safetensors"),
    }
    refused(trimtab("search", written(network=network), "--out", "run"), 2, "is of another network", "more differences")
    assert not list(trimtab.folder.iterdir())


def test_an_impossible_budget_ends_with_code_3(trimtab: CommandLine, written: Written) -> None:
    ran = trimtab("search", written(budgets={"size": "0.01x"}), "--out", "run", "--json")
    refused(ran, 3, "budget size", "smallest reachable size", "KiB")
    assert not list(trimtab.folder.iterdir())


def test_resuming_what_is_not_there_ends_with_code_2(trimtab: CommandLine, written: Written) -> None:
    refused(trimtab("search", "--resume"), 2, "--resume needs --out")
    refused(trimtab("search", "--resume", "--out", "none"), 2, "none is not a run")
    refused(trimtab("report", "none"), 2, "no finished run")
    refused(trimtab("export", "none"), 2, "none is not a run")
    assert not list(trimtab.folder.iterdir())


@pytest.mark.parametrize("agent", ["milp", "__main__:Climber", "climber"])
def test_a_run_from_python_is_not_read_from_its_folder(trimtab: CommandLine, agent: str) -> None:
    run = trimtab.folder / "run"
    run.mkdir()
    given = make_config({**TINY, "network": {"import": "python:model"}, "data": {"name": "python"}})
    (run / "config.yaml").write_text(given.model_copy(update={"agent": agent}).to_yaml())
    policy = Policy("net", {}, {})
    (run / "policy.json").write_text(json.dumps(policy.to_json()))
    for command in (["export", run], ["evaluate", run / "policy.json"], ["search", "--resume", "--out", run]):
        refused(trimtab(*command), 2, "config.yaml", "started from Python", "Result.export")


def test_a_plug_in_that_cannot_be_imported_ends_with_code_2(trimtab: CommandLine, written: Written) -> None:
    (trimtab.folder / "mine.py").write_text("class Climber(:")
    config = written(agent="mine:Climber")
    refused(trimtab("search", config, "--out", "run"), 2, "agent 'mine:Climber': SyntaxError")


def test_doctor_prints_facts_or_one_document(trimtab: CommandLine) -> None:
    facts = document(trimtab("doctor", "--json"))
    assert facts["kernel_level"] in facts["kernel_levels"]
    assert facts["engines"]["native"]
    assert facts["timing_cores"]
    plain = trimtab("doctor")
    assert plain.code == 0
    assert all(name in plain.out for name in facts)


def documented() -> list[list[str]]:
    """The arguments of every command line in the documents and in the script of the benchmarks."""
    root, found = Path(__file__).parents[2], []
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = path.read_text().replace("\\\n", " ")
        lines = re.findall(r"^ {4}(?:\w+=\S+ )*trimtab ([a-z].*)", text, re.MULTILINE)
        found += [shlex.split(line, comments=True) for line in lines]
    script = (root / "docs" / "benchmark-tables.sh").read_text()
    return found + [["bench", *shlex.split(line)] for line in re.findall(r"^ *bench (\w.*)", script, re.MULTILINE)]


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_every_command_line_of_the_documents_is_understood(arguments: list[str]) -> None:
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("trimtab", [re.sub(r"\$.*", "2", argument) for argument in arguments])


@pytest.mark.slow
def test_every_command_on_one_run(trimtab: CommandLine, written: Written) -> None:
    config = written(trials=3, baselines=["random"], measure={**TINY["measure"], "precision": 0.05})
    found = document(trimtab("search", config, "--out", "run", "--json"))
    run = trimtab.folder / "run"
    assert found["folder"] == "run"
    assert found["winner"]["policy"] == json.loads((run / "policy.json").read_text())
    refused(trimtab("search", config, "--out", "run"), 2, "run exists already", "--resume")

    best = next(row["best"] for row in found["agents"] if row["agent"] == found["winner"]["agent"])
    evaluated = document(trimtab("evaluate", run / "policy.json", "--json"))
    assert evaluated["policy"] == best["policy"]
    assert (evaluated["accuracy"], evaluated["size"]) == (best["accuracy"], best["size"])
    assert evaluated["final_accuracy"] == best["final_accuracy"]
    assert sum(evaluated["kernels"].values()) >= len(found["layers"])
    assert all(layer["runs_as"] for layer in found["layers"])

    exported = document(trimtab("export", run, "--out", "elsewhere", "--json"))
    assert {check["engine"] for check in exported["exports"]} == {"native", "onnxruntime"}
    assert {path.name for path in (trimtab.folder / "elsewhere").iterdir()} == {
        "policy.json",
        "model.safetensors",
        "model.onnx",
    }
    reported = document(trimtab("report", run, "--json"))
    assert reported["winner"] == found["winner"]
    plain = trimtab("report", run)
    assert plain.code == 0
    assert "milp" in plain.out

    wide = trimtab("evaluate", run / "policy.json", "--set", "network.options.width=16", "--json")
    refused(wide, 2, "policy is for another network")


@pytest.mark.slow
def test_benchmarks_print_one_document(trimtab: CommandLine) -> None:
    rows = document(trimtab("bench", "engines", "--networks", "resnet8", "--seconds", "0.01", "--json"))
    assert {row["engine"].split()[0] for row in rows} == {"native", "onnxruntime"}
    refused(trimtab("bench", "engines", "--engines", "natve", "--networks", "resnet8"), 2, "did you mean 'native'")
    refused(trimtab("bench", "measure", "--networks", "resnet9"), 2, "unknown network 'resnet9'")
    refused(trimtab("bench", "kernels", "--engines", "native,native"), 2, "named twice")
    refused(trimtab("bench", "methods", "--cases", " ; "), 2, "at least one case")


def test_a_benchmark_that_does_not_exist_is_refused_with_the_nearest(trimtab: CommandLine) -> None:
    ran = trimtab("bench", "measur")
    assert (ran.code, ran.out) == (2, "")
    assert "Did you mean 'measure'" in ran.err


def test_every_benchmark_shows_only_its_own_options(trimtab: CommandLine) -> None:
    for name, own in {"kernels": "--layers", "measure": "--minutes", "methods": "--cases", "proxy": "--steps"}.items():
        shown = trimtab("bench", name, "--help").out
        options = {"--layers", "--minutes", "--cases", "--steps"}
        assert {option for option in options if option in shown} == {own}
