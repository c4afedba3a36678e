"""A training: steps of a network that learns, from any checkpoint on; what is learned, and how, its learner says."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from trimtab.errors import BadInput
from trimtab.evaluators.data import Augmentation, Images
from trimtab.evaluators.targets import Targets, as_tensors, taken
from trimtab.files import write_bytes
from trimtab.search.training.images import Batch, Epoch
from trimtab.search.training.recipe import OneCycle
from trimtab.search.training.team import Team

__all__ = ["Learner", "Lessons", "Progress", "Training"]

Result_co = TypeVar("Result_co", covariant=True)

#: Batches that norms are measured on before they are held still, and the number of the epoch that they are of.
NORM_BATCHES, NORM_EPOCH = 32, 2**31

#: The first steps are slower.
UNTIMED = 4

#: After so many steps what is learned is held within its limits again.
BETWEEN_ADJUSTMENTS = 50

#: Seconds after which there is a checkpoint within an epoch, too.
BETWEEN_CHECKPOINTS = 300.0

_KEY = "trimtab.training"


@dataclass(frozen=True, eq=False)
class Lessons:
    """Images (N, C, H, W) to learn from, their targets, or None, and how they may be varied."""

    images: Images
    targets: Targets
    augmentation: Augmentation


@dataclass(frozen=True)
class Progress:
    """The place that a training is at: steps done, of how many, the last ones' mean loss, images per second by all,
    and, where images are watched and an epoch has ended, the share of them that is answered rightly."""

    done: int
    steps: int
    loss: float
    rate: float
    watched: float | None = None


class Learner(ABC, Generic[Result_co]):
    """A network that is trained, with its optimiser, its loss and what comes out of it: all in which trainings differ.

    Every group of the optimiser has a `share`, the times of the recipe's learning rate that it learns at. `about` says,
    in JSON, what is trained on what: a checkpoint of another one is refused. Norms are held still for the last `frozen`
    of all steps.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    about: Mapping[str, Any] = {}
    frozen: float = 0.0

    @abstractmethod
    def loss(self, batch: Batch, targets: Any) -> Tensor:
        """Return the loss, of no dimension, of a batch with its targets, tensors; None where there are none."""

    @abstractmethod
    def result(self) -> Result_co:
        """Return what has been trained, as it is now; it can be pickled."""

    def statistics(self) -> Sequence[Tensor]:
        """Return what forward passes change: its mean over all processes is taken after every step."""
        return ()

    def freeze(self, batches: Iterable[Batch]) -> Sequence[Tensor]:
        """Measure norms on some batches, and hold them still from now on; return what was measured."""
        return ()

    def adjust(self) -> None:
        """Hold the network within its limits, the same in every process; called every few steps."""

    def watched(self, team: Team) -> float | None:
        """Return the share of some images, of which each process takes a part, that is answered rightly."""
        return None


class Training(Generic[Result_co]):
    """One process's part of a training.

    `seconds` limit the training: how far it is, and so its rate, then follows from the time, where that is ahead of the
    steps. Where it is not, what a process does follows from learner, recipe, lessons and team alone.
    """

    def __init__(
        self,
        learner: Learner[Result_co],
        lessons: Lessons,
        recipe: OneCycle,
        team: Team | None = None,
        seconds: float | None = None,
    ) -> None:
        self.learner, self.lessons, self.recipe = learner, lessons, recipe
        self.team, self.seconds = team or Team(), seconds
        self.per_epoch = self._epoch(0).steps(recipe.batch)
        self.done, self.steps = 0, round(recipe.epochs * self.per_epoch)
        #: Seconds that were spent by earlier processes, and when this one began.
        self.spent, self.began = 0.0, time.perf_counter()
        self.frozen = False

    def run(self, tell: Callable[[Progress], None], checkpoint: Path | None = None) -> None:
        """Train to the end; the first process writes checkpoints, after every epoch and every few minutes."""
        self.learner.network.train()
        clock = _Clock(self.recipe.batch)
        if self.share() >= 1:
            tell(Progress(self.done, self.done, 0.0, 0.0))
        while (share := self.share()) < 1:
            for batch in self.batches():
                if not self.frozen and share >= 1 - self.learner.frozen:
                    self._freeze()
                clock.step(self.step(batch, share))
                if self.done % BETWEEN_ADJUSTMENTS == 0:
                    self.learner.adjust()
                share = self.share()
                ends = self.done % self.per_epoch == 0
                watched = self.learner.watched(self.team) if ends or share >= 1 else None
                if clock.due or watched is not None or share >= 1:
                    steps = self.done if share >= 1 else max(self.done + 1, round(self.done / share))
                    tell(Progress(self.done, steps, clock.taken(), clock.rate, watched))
                if checkpoint is not None and self.team.part == 0 and (ends or clock.unsaved > BETWEEN_CHECKPOINTS):
                    self.save(checkpoint)
                    clock.saved = time.perf_counter()
                if share >= 1:
                    break

    def share(self) -> float:
        """Return how far the training is, from 0 to 1, by its steps or by its time."""
        by_steps = self.done / self.steps if self.steps else 1.0
        if self.seconds is None:
            return by_steps
        return max(by_steps, self.team.agreed(self._elapsed() / self.seconds))

    def _elapsed(self) -> float:
        return self.spent + time.perf_counter() - self.began

    def save(self, path: Path) -> None:
        """Write what the training goes on from, whole or not at all."""
        state = {f"network.{name}": tensor for name, tensor in self.learner.network.state_dict().items()}
        for i, moments in self.learner.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{i}.{name}": tensor for name, tensor in moments.items()}
        about = {"done": self.done, "spent": self._elapsed(), "frozen": self.frozen, **self._about}
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        write_bytes(path, to_bytes(tensors, metadata={_KEY: json.dumps(about)}))

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; a checkpoint of another training is a `BadInput`."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, ValueError) as error:
            raise BadInput(f"the checkpoint {path} cannot be read: {error}") from error
        if any(about.get(key, {}) != value for key, value in self._about.items()):
            raise BadInput(f"the checkpoint {path} is of another training: take it away to start again")
        own = "network."
        of_network = {name.removeprefix(own): each for name, each in tensors.items() if name.startswith(own)}
        self.learner.network.load_state_dict(of_network)
        state: dict[int, dict[str, Tensor]] = {}
        for name in tensors.keys() - {own + each for each in of_network}:
            _, place, moment = name.split(".")
            state.setdefault(int(place), {})[moment] = tensors[name]
        self.learner.optimiser.load_state_dict({**self.learner.optimiser.state_dict(), "state": state})
        self.done, self.spent, self.frozen = about["done"], about["spent"], about["frozen"]

    @property
    def _about(self) -> dict[str, Any]:
        return {"recipe": asdict(self.recipe), "learner": dict(self.learner.about)}

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch that the training is in."""
        number, first = divmod(self.done, self.per_epoch)
        yield from self._epoch(number).batches(self.recipe.batch, self.team.part, self.team.parts, first)

    def _epoch(self, number: int) -> Epoch:
        return Epoch(self.lessons.images, self.lessons.augmentation, self.recipe.seed, number)

    def step(self, batch: Batch, share: float) -> float:
        """Take a step of a training that is so far, from 0 to 1; return its loss."""
        optimiser, rate = self.learner.optimiser, self.recipe.rate(share)
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * rate
        targets = self.lessons.targets
        loss = self.learner.loss(batch, None if targets is None else as_tensors(taken(targets, batch.indices)))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        gradients = [each.grad for group in optimiser.param_groups for each in group["params"] if each.grad is not None]
        self.team.average([*gradients, *self.learner.statistics()])
        optimiser.step()
        self.done += 1
        return float(loss.detach())

    def _freeze(self) -> None:
        batches = self._epoch(NORM_EPOCH).batches(self.recipe.batch, self.team.part, self.team.parts)
        self.team.average(self.learner.freeze(islice(batches, NORM_BATCHES)))
        self.frozen = True


class _Clock:
    """The speed of a training in this process, and when to say or to save something of it."""

    def __init__(self, batch: int) -> None:
        self.batch, self.steps, self.losses = batch, 0, list[float]()
        self.started = self.said = self.saved = time.perf_counter()

    def step(self, loss: float) -> None:
        self.steps += 1
        self.losses.append(loss)
        if self.steps == UNTIMED:
            self.started = time.perf_counter()

    def taken(self) -> float:
        """Return the mean loss of the steps since this was last called."""
        losses, self.losses, self.said = self.losses, [], time.perf_counter()
        return sum(losses) / max(1, len(losses))

    @property
    def due(self) -> bool:
        """Whether something has not been said for a second."""
        return time.perf_counter() - self.said > 1

    @property
    def unsaved(self) -> float:
        """Seconds since something was saved."""
        return time.perf_counter() - self.saved

    @property
    def rate(self) -> float:
        """Images per second."""
        return max(1, self.steps - UNTIMED) * self.batch / max(1e-9, time.perf_counter() - self.started)
