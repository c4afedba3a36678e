"""Training from nothing: it follows its formulas, learns, repeats, and can be gone on with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.errors import BadInput
from trimtab.evaluators.data import Splits, load
from trimtab.search.training.labelled import LabelTraining, accuracy
from trimtab.search.training.recipe import LabelRecipe
from trimtab.search.training.trainer import train
from trimtab.search.training.training import Lessons, Progress, Training
from trimtab.spaces.zoo import build

RECIPE = LabelRecipe(epochs=4.0, batch=100)

State = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load("digits", selection=397)


@pytest.fixture(scope="module")
def lessons(splits: Splits) -> Lessons:
    return Lessons(*splits.train(), splits.augmentation)


def learner(splits: Splits, width: int = 8) -> partial[LabelTraining]:
    make = partial(build, "resnet8", width=width, channels=1)
    return partial(LabelTraining, make, splits.selection, {"width": width})


def same(a: State, b: State) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a.keys() | b.keys())


def test_rates_follow_the_one_cycle_formula(splits: Splits, lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(learner(splits)(lessons, RECIPE), lessons, RECIPE)
    rates: list[float] = []
    monkeypatch.setattr(
        training.learner.optimiser,
        "step",
        lambda: rates.extend({group["lr"] for group in training.learner.optimiser.param_groups}),
    )
    training.run(lambda steps: None)
    done = np.arange(40) / 40
    np.testing.assert_allclose(rates, 0.1 * np.minimum(done / 0.2, (1 - done) / 0.8), atol=1e-12)


class Linear(nn.Module):
    """A linear layer on the flat images, with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x.flatten(1))
        return y


def test_steps_are_those_of_the_formulas(splits: Splits, lessons: Lessons) -> None:
    """Two steps in NumPy: smoothed cross-entropy, decay of weights alone, Nesterov's momentum."""
    recipe = LabelRecipe(epochs=1.0, batch=50, weight_decay=0.1, smoothing=0.2, momentum=0.8)
    made = LabelTraining(Linear, splits.selection, {}, lessons, recipe)
    training = Training(made, lessons, recipe)
    w, b = (each.astype(np.float64) for each in made.result().values())
    speed = [np.zeros_like(w), np.zeros_like(b)]
    for batch, share in zip(training.batches(), (0.05, 0.3)):  # noqa: B905  (two of all batches)
        x, labels = batch.x.numpy().reshape(50, 64).astype(np.float64), lessons.targets[batch.indices]
        wanted = np.full((50, 10), 0.02) + 0.8 * np.eye(10)[labels]
        logits = x @ w.T + b
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss = -(wanted * np.log(p)).sum(1).mean()
        gradients = [(p - wanted).T @ x / 50 + 0.1 * w, (p - wanted).mean(0)]
        speed = [0.8 * v + g for v, g in zip(speed, gradients, strict=True)]
        w, b = (each - recipe.rate(share) * (g + 0.8 * v) for each, g, v in zip((w, b), gradients, speed, strict=True))
        assert training.step(batch, share) == pytest.approx(loss, rel=1e-5)
    for found, formula in zip(made.result().values(), (w, b), strict=True):
        np.testing.assert_allclose(found, formula, rtol=1e-4, atol=1e-5)


def test_digits_are_learned_from_nothing_and_watched(splits: Splits, lessons: Lessons) -> None:
    told: list[Progress] = []
    state = train(learner(splits), lessons, replace(RECIPE, epochs=12.0), tell=told.append)
    network = build("resnet8", width=8, channels=1)
    network.load_state_dict({name: torch.from_numpy(each) for name, each in state.items()})
    assert accuracy(network, *splits.final()) > 0.93
    watched = [each.watched for each in told if each.watched is not None]
    assert len(watched) == 12
    assert watched[-1] == accuracy(network, *splits.selection) > 0.93
    x, y = splits.selection
    with torch.no_grad():
        assert watched[-1] == (network.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean()


def test_it_is_repeatable_and_goes_on_as_if_nothing_had_been(
    splits: Splits, lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    whole = train(learner(splits), lessons, RECIPE)
    assert torch.rand(1) == drawn  # of the caller's random state nothing is taken
    assert not same(whole, train(learner(splits), lessons, replace(RECIPE, seed=1)))

    class Stopped(Exception):
        pass

    checkpoint, save = tmp_path / "checkpoint", Training.save

    def save_and_stop(training: Training[State], path: Path) -> None:
        save(training, path)
        if training.done == 20:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", save_and_stop)
        with pytest.raises(Stopped):
            train(learner(splits), lessons, RECIPE, checkpoint=checkpoint)
    halfway = checkpoint.read_bytes()
    assert same(train(learner(splits), lessons, RECIPE, checkpoint=checkpoint), whole)

    checkpoint.write_bytes(halfway)
    for other, recipe in ((learner(splits, width=4), RECIPE), (learner(splits), replace(RECIPE, seed=1))):
        with pytest.raises(BadInput, match="of another training"):
            train(other, lessons, recipe, checkpoint=checkpoint)
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(BadInput, match="cannot be read"):
        train(learner(splits), lessons, RECIPE, checkpoint=checkpoint)


@pytest.mark.slow
def test_two_processes_hold_one_network(splits: Splits, lessons: Lessons) -> None:
    told: list[Progress] = []
    several = [train(learner(splits), lessons, RECIPE, processes=2, tell=told.append) for _ in range(2)]
    assert same(*several)
    network = build("resnet8", width=8, channels=1)
    network.load_state_dict({name: torch.from_numpy(each) for name, each in several[0].items()})
    # The processes' halves of what is watched, with the statistics of both.
    assert told[-1].watched == pytest.approx(accuracy(network, *splits.selection), abs=1e-9)
