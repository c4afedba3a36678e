from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluators.nets import NETS, candidate_of, pictures, random_policies, space_of
from torch import nn
from torch.nn import functional as F

from trimtab.evaluators import Judge, accuracy, lower
from trimtab.evaluators.accuracy import accuracy_of, divergence, graded, timing_candidate, torch_logits
from trimtab.evaluators.answers import Answers
from trimtab.evaluators.data import load
from trimtab.evaluators.engines import SIMULATED
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.kernels import stored_bytes
from trimtab.spaces import Calibration, Options, Policy, Space, build_space
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.repairs.repair import compress


def native_logits(candidate: Candidate, x: np.ndarray) -> np.ndarray:
    return NativeEngine().compile(lower(candidate), 8).run(x)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference, relative to how far logits lie apart."""
    return float(np.sqrt(((a - b) ** 2).mean()) / b.std())


@pytest.mark.parametrize("name", NETS)
def test_simulated_quantisation_agrees_with_the_engine(name: str) -> None:
    x, distances = pictures(24), []
    for policy in random_policies(space_of(name), 4):
        # One value on a tie moves a network of narrow activations a long way, and one of narrow weights further than
        # one of 8 bits; every factor rounds once more.
        layers = {
            op: replace(d, format=LayerFormat(d.format.weight, max(d.format.activation_bits, 8)))
            for op, d in policy.layers.items()
        }
        candidate = candidate_of(name, replace(policy, layers=layers))
        distances.append(distance(torch_logits(candidate, x), native_logits(candidate, x)))
    *others, worst = sorted(distances)
    assert max(others) < 0.2
    assert np.median(others) < 0.1
    assert worst < 0.5


@pytest.mark.parametrize("name", ["residual-a", "concat"])
def test_without_integers_the_simulation_is_the_engine(name: str) -> None:
    space, x = space_of(name), pictures(8)
    for policy in (space.base(), space.uniform(0.5, LayerFormat.of(8, 32))):
        candidate = candidate_of(name, policy)
        expected = native_logits(candidate, x)
        np.testing.assert_allclose(
            torch_logits(candidate, x, batch=3), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
        )


@pytest.mark.parametrize("name", ["residual-a", "inverted"])
def test_bf16_layers_round_what_they_read_in_the_simulation_too(name: str) -> None:
    space, x = space_of(name), pictures(8)
    both, weights = (candidate_of(name, space.uniform(1.0, bits)) for bits in ((16, 16), (16, 32)))
    expected = native_logits(both, x)
    rounding = distance(torch_logits(weights, x), expected)
    assert 1e-4 < rounding < 0.1
    # Float sums in another order may round an input to the other neighbour.
    assert distance(torch_logits(both, x), expected) < rounding / 4


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.third = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.last = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(F.relu(self.second(x) + x), 2)
        logits: torch.Tensor = self.last(F.relu(self.third(x)).mean((2, 3)))
        return logits


@cache
def trained() -> tuple[nn.Module, Space, Judge]:
    """A network that has seen the digits for a second, and its judge."""
    splits = load("digits", selection=300, calibration=64)
    torch.manual_seed(0)
    model = Digits()
    images, labels = (torch.from_numpy(part) for part in splits.train())
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for epoch in range(6):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for at in order.split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(images[at]), labels[at]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    space = build_space(model.eval(), images[:1], Options(channels=4))
    return model, space, Judge(space, Calibration.of(space, splits.calibration), *splits.selection)


def policies() -> list[Policy]:
    space = trained()[1]
    return [space.base(), space.int8(), space.uniform(0.75, INT8), *random_policies(space, 3)[2:]]


def test_the_judge_counts_right_answers() -> None:
    model, space, judge = trained()
    with torch.no_grad():
        answers = [int(model(torch.from_numpy(image[None])).argmax()) for image in judge.images]
    right = sum(answer == label for answer, label in zip(answers, judge.targets, strict=True))
    judged = judge(space.base())
    assert judged.accuracy == right / len(judge.targets)
    assert judged.accuracy > 0.8
    assert judged.size == stored_bytes(lower(judge.candidate(space.base())))
    assert set(judged.seconds) == {"repair", "store", "compile", "run"}
    assert all(seconds >= 0 for seconds in judged.seconds.values())


@pytest.mark.parametrize("by", ["native", SIMULATED])
def test_the_judge_computes_on_one_thread_whoever_calls(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, seen = replace(trained()[2], by=by), []
    for name in ("compress", "run"):
        original = getattr(accuracy, name)

        def noting(*arguments: Any, original: Any = original, **options: Any) -> Any:
            seen.append(torch.get_num_threads())
            return original(*arguments, **options)

        monkeypatch.setattr(accuracy, name, noting)
    torch.set_num_threads(2)
    try:
        judge(judge.space.int8())
        judge.candidate(judge.space.base())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(seen) >= 3
    assert set(seen) == {1}


def test_the_loss_is_the_divergence_from_the_untouched_network() -> None:
    model, space, judge = trained()
    with torch.no_grad():
        untouched = model(torch.from_numpy(judge.images)).log_softmax(1)
    for policy in policies():
        logits = torch.from_numpy(native_logits(judge.candidate(policy), judge.images)).log_softmax(1)
        expected = F.kl_div(logits, untouched, log_target=True, reduction="batchmean")
        assert judge(policy).loss == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    assert judge(space.base()).loss == 0.0
    assert judge(space.int8()).loss > 0.0
    assert replace(judge, by=SIMULATED)(space.base()).loss == 0.0


def test_what_is_shipped_has_the_untouched_outputs_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, space, judge = trained()
    shipped = pickle.dumps(judge)
    made: list[Policy] = []

    def candidate(self: Judge, policy: Policy) -> Candidate:
        made.append(policy)
        return compress(self.space, policy, self.calibration)

    monkeypatch.setattr(Judge, "candidate", candidate)
    there = pickle.loads(shipped)
    policy = space.int8()
    assert replace(there(policy), seconds={}) == replace(judge(policy), seconds={})
    assert space.base() not in made


logits = st.lists(
    st.tuples(*[st.floats(-40, 40, width=32)] * 6),
    min_size=1,
    max_size=5,
)


@given(logits)
def test_the_divergence_agrees_with_torch_and_is_never_negative(rows: list[tuple[float, ...]]) -> None:
    reference, found = np.array(rows, np.float32).reshape(len(rows), 2, 3).transpose(1, 0, 2)
    p, q = (torch.from_numpy(part.astype(np.float64)).log_softmax(1) for part in (reference, found))
    expected = float(F.kl_div(q, p, log_target=True, reduction="batchmean"))
    assert divergence(reference, found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert divergence(reference, found) >= 0.0
    assert divergence(reference, reference) == divergence(found, found) == 0.0


def test_an_output_that_is_not_finite_is_a_uniform_guess() -> None:
    reference = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]], np.float32)
    wild, flat = reference.copy(), reference.copy()
    wild[0, 1], flat[0] = np.inf, 0.0
    assert divergence(reference, wild) == divergence(reference, flat) > 0.0
    wild[0, 1] = np.nan
    assert divergence(reference, wild) == divergence(reference, flat)


def test_all_judges_agree() -> None:
    _, space, judge = trained()
    for by in (SIMULATED, "onnxruntime", "torch"):
        other = Judge(space, judge.calibration, judge.images, judge.targets, by=by)
        for policy in policies():
            assert abs(judge(policy).accuracy - other(policy).accuracy) < 0.0101, by


def test_another_judge_judges_alike() -> None:
    _, space, judge = trained()
    again = Judge(space, Calibration.of(space, judge.calibration.images.numpy()), judge.images, judge.targets)
    for policy in policies():
        found = [replace(each(policy), seconds={}) for each in (judge, again, judge)]
        assert found[0] == found[1] == found[2]


def test_images_may_lie_in_any_memory_order() -> None:
    _, space, judge = trained()
    strided = np.ascontiguousarray(judge.images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    padded = np.repeat(strided, 2, axis=3)[:, :, :, ::2]
    assert not padded.flags.c_contiguous
    for by in ("native", SIMULATED):
        judges = [Judge(space, judge.calibration, images, judge.targets, by) for images in (judge.images, padded)]
        assert judges[0](space.int8()).accuracy == judges[1](space.int8()).accuracy


def test_read_only_images_serve() -> None:
    _, space, judge = trained()
    images = judge.images.copy()
    images.flags.writeable = False
    for by in ("native", SIMULATED):
        assert Judge(space, judge.calibration, images, judge.targets, by)(space.int8()).accuracy > 0.8


def test_accuracy_of_a_session_is_that_of_its_judgement() -> None:
    _, space, judge = trained()
    session = NativeEngine().compile(lower(judge.candidate(space.base())), 16)
    assert accuracy_of(session, judge.images, judge.targets) == judge(space.base()).accuracy


def test_grades_by_hand() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [5.0, 1.0, 2.0], [0.0, 3.0, 2.0], [1.0, 0.0, 0.5]])
    assert graded(logits, np.array([2, 0, 2, 0])) == Answers(4, 0b1101)


@pytest.mark.parametrize("name", NETS)
def test_a_timing_candidate_has_the_shapes_of_the_repaired_one(name: str) -> None:
    for policy in random_policies(space_of(name), 2):
        bare, repaired = lower(timing_candidate(space_of(name), policy)), lower(candidate_of(name, policy))
        assert [(node.kind, node.name, node.inputs) for node in bare.nodes] == [
            (node.kind, node.name, node.inputs) for node in repaired.nodes
        ]
        assert set(bare.quant) == set(repaired.quant)
