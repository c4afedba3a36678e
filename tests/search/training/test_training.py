"""Training: what is trained is what is stored and runs; it learns, is repeatable, and can be gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tests.search.runs import tiny
from torch import nn

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.accuracy import accuracy_of, judging_session, torch_logits
from trimtab.evaluators.lowering import lower
from trimtab.kernels import stored_bytes
from trimtab.search.progress import Progress
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.search.training.distillation import Distillation, distance
from trimtab.search.training.network import TrainedNetwork
from trimtab.search.training.recipe import Recipe, rate_for
from trimtab.search.training.trainer import train
from trimtab.search.training.training import Lessons, Training
from trimtab.search.training.training import Progress as Steps
from trimtab.spaces import Candidate, Policy
from trimtab.spaces.candidate_file import Provenance, load_candidate, save_candidate
from trimtab.spaces.numbers.formats import INT8, LayerFormat
from trimtab.spaces.repairs.repair import Calibration, compress
from trimtab.spaces.space import Options, build_space

SHORT = Recipe(epochs=1.0, batch=64, learning_rate=3e-3)


@pytest.fixture(scope="module")
def problem() -> Problem:
    bits = [[1, 8], [2, 8], [2, 8, "codebook"], [4, 4], [8, 8], [16, 32], [32, 32]]
    space = {"channels": 4, "bits": bits, "ranks": [0.5], "patterns": ["2:4"], "sharing": ["hashed 0.5"]}
    return load_problem(tiny(space=space), Progress())


@pytest.fixture(scope="module")
def lessons(problem: Problem) -> Lessons:
    return Lessons(*problem.splits.train(), problem.splits.augmentation)


#: Makes a learner of a candidate and the bytes that may be stored of it.
Learning = Callable[..., Callable[[Lessons, Recipe], Distillation]]


@pytest.fixture(scope="module")
def learning(problem: Problem) -> Learning:
    teacher = lower(problem.judge.candidate(problem.space.base()))
    return lambda candidate, most=None: partial(Distillation, candidate, problem.space.normalised, teacher, most=most)


POLICIES = {
    "as given": (1.0, "32/32", "dense"),
    "half the channels": (0.5, "8/8", "dense"),
    "1 bit": (1.0, "1/8", "dense"),
    "2 bits": (1.0, "2/8", "dense"),
    "codebook": (1.0, "2/8 codebook", "dense"),
    "4 bits both": (1.0, "4/4", "dense"),
    "bf16 in factors": (0.5, "16/32", "svd 0.5"),
    "zeros": (1.0, "8/8", "2:4"),
    "shared": (1.0, "8/8", "hashed 0.5"),
}


def policy_of(problem: Problem, name: str) -> Policy:
    width, numbers, form = POLICIES[name]
    found = LayerFormat.parse(numbers) or INT8
    return problem.space.uniform(width, found, *([] if form == "dense" else [form]))


@pytest.fixture(scope="module", params=POLICIES)
def candidate(problem: Problem, request: pytest.FixtureRequest) -> Candidate:
    return problem.judge.candidate(policy_of(problem, request.param))


def close(a: np.ndarray, b: np.ndarray, to: float = 0.03) -> bool:
    """Scales and weights are multiplied by factors of 1 that are rounded, which moves what lies on a tie."""
    return bool(np.sqrt(((a - b) ** 2).mean()) < to * a.std())


def test_without_a_step_a_candidate_stays_what_it_was(
    problem: Problem, lessons: Lessons, learning: Learning, candidate: Candidate
) -> None:
    x = problem.judge.images[:64]
    network = TrainedNetwork(candidate, problem.space.normalised, torch.from_numpy(lessons.images[:256])).eval()
    with torch.no_grad():
        outputs = network(torch.from_numpy(x)).numpy()
    assert close(torch_logits(candidate, x), outputs)
    same = train(learning(candidate), lessons, replace(SHORT, epochs=0))
    assert close(torch_logits(candidate, x), torch_logits(same, x))
    for name, (values, _) in candidate.int8.items():
        np.testing.assert_array_equal(same.int8[name][0], values)


def test_all_weights_start_at_one_length_whatever_the_zeros(problem: Problem, candidate: Candidate) -> None:
    images = torch.from_numpy(problem.judge.images[:64])
    for normalised in (problem.space.normalised, frozenset[str]()):
        network = TrainedNetwork(candidate, normalised, images)
        for op in network.network.layers:
            lengths = network.layers["_" + op.name.replace(".", "|")].weight.detach().flatten(1).norm(dim=1)
            lengths = lengths[lengths > 0] if op.name in normalised else lengths.square().mean()
            torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_what_was_trained_is_what_runs(
    problem: Problem, lessons: Lessons, learning: Learning, candidate: Candidate, tmp_path: Path
) -> None:
    learner = learning(candidate)(lessons, SHORT)
    Training(learner, lessons, SHORT).run(lambda steps: None)
    trained, x = learner.result(), problem.judge.images
    with torch.no_grad():
        outputs = learner.network.eval()(torch.from_numpy(x)).numpy()
    engine = judging_session(trained).run(x)
    # With 4-bit activations a value on a tie is a sixteenth of the range off.
    narrow = any(each.format.reads_narrow for each in candidate.decisions.values())
    assert close(outputs, engine, 0.15 if narrow else 0.03)
    assert (outputs.argmax(1) == engine.argmax(1)).mean() > (0.94 if narrow else 0.96)
    save_candidate(tmp_path / "c.safetensors", trained, Provenance("finished", {}), problem.space)
    again, _ = load_candidate(tmp_path / "c.safetensors", problem.space)
    np.testing.assert_array_equal(judging_session(again).run(x), engine)


def test_bits_and_zeros_and_shared_values_stay(
    problem: Problem, lessons: Lessons, learning: Learning, candidate: Candidate
) -> None:
    trained = train(learning(candidate), lessons, SHORT)
    assert trained.network.shapes == candidate.network.shapes
    moved = False
    for op in trained.network.layers:
        decision, before = trained.decisions[op.name], candidate.network.node(op.name).weight
        if decision.pattern is not None:
            assert not op.weight[before == 0].any()
        if decision.format.weight.is_bf16:
            assert not (np.ascontiguousarray(op.weight).view(np.uint32) & 0xFFFF).any()
        if op.name in trained.int8:
            values, scale = trained.int8[op.name]
            levels = decision.format.weight.levels
            assert (scale > 0).all()
            assert len(np.unique(values)) <= 2**decision.format.weight.bits
            assert levels is None or np.isin(values, levels).all()
            if decision.sharing is not None:
                np.testing.assert_array_equal(values, candidate.int8[op.name][0])
        moved |= not np.array_equal(op.weight, before)
    assert moved


def test_training_gains(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    gained = []
    for name in ("half the channels", "2 bits", "codebook", "4 bits both", "bf16 in factors"):
        candidate = problem.judge.candidate(policy_of(problem, name))
        trained = train(learning(candidate), lessons, replace(SHORT, epochs=5))
        before, after = (
            problem.judge.loss(problem.judge.outputs(each, problem.judge.images)) for each in (candidate, trained)
        )
        gained.append(before - after)
    assert np.mean(gained) > 0
    assert np.mean(np.array(gained) > 0) > 0.5


def test_bytes_stay_within_their_limit(
    problem: Problem, lessons: Lessons, learning: Learning, candidate: Candidate
) -> None:
    """Where integers are stored that may move, whatever their grid, and with no more change than does it."""
    may_move = any(each.sharing is None and each.format.weight.is_integer for each in candidate.decisions.values())
    if not may_move:
        pytest.skip("there is nothing to round")
    most, longer = 0.98 * stored_bytes(lower(candidate)), replace(SHORT, epochs=5)
    held = train(learning(candidate, most), lessons, longer)
    assert 0.99 * most < stored_bytes(lower(held)) <= most
    x, y = problem.judge.images, problem.judge.targets
    before, after = (accuracy_of(judging_session(each), x, y) for each in (candidate, held))
    # Two levels that are equally frequent have no bits to spare.
    binary = all(each.format.weight.bits == 1 for each in candidate.decisions.values())
    assert binary or after > before - 0.1
    far = train(learning(candidate, 10 * most), lessons, replace(SHORT, epochs=0.5))
    free = train(learning(candidate), lessons, replace(SHORT, epochs=0.5))
    assert far.network.weights_hash() == free.network.weights_hash()


def test_it_is_repeatable(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    candidate = problem.judge.candidate(policy_of(problem, "2 bits"))
    found = [
        train(learning(candidate), lessons, recipe).network.weights_hash()
        for recipe in (SHORT, SHORT, replace(SHORT, seed=1))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("share", [None, 0.9])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    problem: Problem, lessons: Lessons, learning: Learning, tmp_path: Path, share: float | None
) -> None:
    candidate, recipe = problem.judge.candidate(policy_of(problem, "2 bits")), replace(SHORT, epochs=3.0)
    most = None if share is None else share * stored_bytes(lower(candidate))
    whole = train(learning(candidate, most), lessons, recipe)

    class Stopped(Exception):
        pass

    def stop(done: Steps) -> None:
        raise Stopped

    checkpoint = tmp_path / "checkpoint"
    training = Training(learning(candidate, most)(lessons, recipe), lessons, recipe)
    saves = 0

    def save_and_stop(path: Path) -> None:
        nonlocal saves
        Training.save(training, path)
        saves += 1
        if saves == 2:
            raise Stopped

    training.save = save_and_stop  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        training.run(lambda steps: None, checkpoint)
    resumed = train(learning(candidate, most), lessons, recipe, checkpoint=checkpoint)
    assert resumed.network.weights_hash() == whole.network.weights_hash()
    for other, asked in ((1.0, recipe), (most, replace(recipe, seed=9))):
        with pytest.raises(BadInput, match="another training"):
            train(learning(candidate, other), lessons, asked, checkpoint=checkpoint)


def test_seconds_limit_it(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    candidate = problem.judge.candidate(policy_of(problem, "half the channels"))
    told: list[Steps] = []
    train(learning(candidate), lessons, replace(SHORT, epochs=1000.0), seconds=1.0, tell=told.append)
    assert told[-1].done == told[-1].steps < 1000 * (len(lessons.images) // SHORT.batch)


def test_the_loss_is_hinton_s(rng: np.random.Generator) -> None:
    outputs, wanted = rng.standard_normal((2, 5, 4))
    labels, recipe = np.array([0, 3, 1, 1, 2]), Recipe(temperature=3.0, labels=0.25)
    found = distance(torch.from_numpy(outputs), torch.from_numpy(wanted), torch.from_numpy(labels), recipe)
    p = softmax(wanted / 3, axis=1)
    divergence = (p * (np.log(p) - log_softmax(outputs / 3, axis=1))).sum(1).mean()
    cross = -log_softmax(outputs, axis=1)[np.arange(5), labels].mean()
    assert float(found) == pytest.approx(0.75 * 9 * divergence + 0.25 * cross)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    recipe = Recipe(learning_rate=1.0, warm_up=0.2)
    assert [round(recipe.rate(done), 6) for done in (0, 0.1, 0.2, 0.6, 1)] == [0, 0.5, 1, 0.5, 0]


def test_what_has_lost_less_learns_more_slowly() -> None:
    full = Recipe().learning_rate
    assert [rate_for(lost) / full for lost in (5.0, 0.1, 0.025)] == pytest.approx([1, 1, 0.5])
    assert 0 < rate_for(0.0) == rate_for(1e-3) < rate_for(2e-3)


@pytest.mark.slow
def test_two_processes_learn_as_one_and_end_together(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    candidate = problem.judge.candidate(policy_of(problem, "2 bits"))
    recipe = replace(SHORT, epochs=4.0)
    several = [train(learning(candidate), lessons, recipe, processes=2) for _ in range(2)]
    assert several[0].network.weights_hash() == several[1].network.weights_hash()
    alone = train(learning(candidate), lessons, recipe)
    x, y = problem.splits.train()
    accuracies = [accuracy_of(judging_session(each), x, y) for each in (candidate, alone, several[0])]
    assert min(accuracies[1:]) > accuracies[0] - 0.02
    assert abs(accuracies[1] - accuracies[2]) < 0.1


@pytest.mark.slow
def test_two_processes_hold_the_same_bytes(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    candidate = problem.judge.candidate(policy_of(problem, "2 bits"))
    most, recipe = 0.95 * stored_bytes(lower(candidate)), replace(SHORT, epochs=4.0)
    several = [train(learning(candidate, most), lessons, recipe, processes=2) for _ in range(2)]
    assert several[0].network.weights_hash() == several[1].network.weights_hash()
    assert stored_bytes(lower(several[0])) <= most


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    candidate = problem.judge.candidate(policy_of(problem, "2 bits"))
    broken = replace(lessons, targets=lessons.targets[:1])
    with pytest.raises((RuntimeError, TrimtabError), match="IndexError"):
        train(learning(candidate), broken, SHORT, processes=2)


def test_ranges_are_those_of_the_trained_network(problem: Problem, lessons: Lessons, learning: Learning) -> None:
    trained = train(learning(problem.judge.candidate(policy_of(problem, "half the channels"))), lessons, SHORT)
    for op in trained.network:
        low, high = trained.ranges[op.name]
        assert low <= high
        if op.attrs.get("activation") == "relu":
            assert low == 0


def test_layers_may_have_the_names_of_methods(rng: np.random.Generator) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.values, self.pop = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.pop(torch.relu(self.values(torch.relu(self.keys(x)))))
            return y

    x = rng.standard_normal((64, 5)).astype(np.float32)
    space = build_space(Net(), torch.from_numpy(x[:1]), Options(channels=1, ranks=()), x)
    candidate = compress(space, space.int8(), Calibration.of(space, x))
    network = TrainedNetwork(candidate, space.normalised, torch.from_numpy(x))
    assert close(torch_logits(candidate, x), network.eval()(torch.from_numpy(x)).detach().numpy())
