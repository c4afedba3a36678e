"""Published checkpoints on CIFAR-10, through the whole of tracing, repair and the native engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab.evaluators.accuracy import accuracy_of, judging_session
from trimtab.search.progress import Progress
from trimtab.search.setup.config import load_config
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.spaces.numbers.formats import INT8

CONFIGS = Path(__file__).parents[2] / "configs"

#: Checkpoint -> configuration, name in the zoo, and top-1 in percent on the 10,000 test images, measured in PyTorch by
#: others.
PUBLISHED = {
    "resnet8": ("resnet8-cifar10", "resnet8-tiny", 87.19),
    "resnet20": ("resnet20-cifar10", "resnet20", 91.73),
    "resnet56": ("resnet20-cifar10", "resnet56", 93.39),
}

pytestmark = pytest.mark.data


def problem_of(name: str) -> Problem:
    root = os.environ.get("TRIMTAB_DATA")
    if root is None:
        pytest.skip("TRIMTAB_DATA is not set: it names the folder with cifar10/ and checkpoints/")
    checkpoint = Path(root) / "checkpoints" / f"{name}.safetensors"
    if not checkpoint.is_file():
        pytest.skip(f"{checkpoint} is absent")
    config, zoo, _ = PUBLISHED[name]
    settings = [f"network.zoo={zoo}", f"network.checkpoint={checkpoint}", "data.selection=5000"]
    return load_problem(load_config(CONFIGS / f"{config}.yaml", settings), Progress())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_engine_has_the_published_accuracy_in_fp32_and_int8(name: str) -> None:
    problem = problem_of(name)
    sessions = [
        judging_session(problem.judge.candidate(policy)) for policy in (problem.space.base(), problem.space.int8())
    ]
    halves = (problem.splits.selection, problem.splits.final())
    fp32, int8 = (100 * sum(accuracy_of(s, *half) for half in halves) / len(halves) for s in sessions)
    assert fp32 == pytest.approx(PUBLISHED[name][2], abs=0.02)
    assert int8 > fp32 - 0.3


def test_reconstruction_keeps_most_of_what_three_quarters_of_the_channels_can_hold() -> None:
    problem = problem_of("resnet20")
    policy = problem.space.uniform(0.75, INT8)
    session = judging_session(problem.judge.candidate(policy))
    assert accuracy_of(session, *problem.splits.selection) > 0.65
