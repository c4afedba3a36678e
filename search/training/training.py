"""A training: steps of one network towards what the network as given predicts, from any checkpoint on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.evaluators.data import Augmentation, Images, Labels
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.files import write_bytes
from trimtab.graph import Graph
from trimtab.search.training.images import Batch, Epoch
from trimtab.search.training.network import TrainedNetwork
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.team import Team
from trimtab.spaces.candidate import Candidate

__all__ = ["Lessons", "Progress", "Training", "distance"]

#: Images that norms and ranges are measured on.
MEASURED = 256

#: Batches that norms are measured on before they are held still, and the number of the epoch that they are of.
NORM_BATCHES, NORM_EPOCH = 32, 2**31

#: The first steps are slower.
UNTIMED = 4

#: Seconds after which there is a checkpoint within an epoch, too.
BETWEEN_CHECKPOINTS = 300.0

#: AdamW's decay of the moments. Trainings are short: the second moment forgets faster than is usual.
BETAS = (0.9, 0.99)

_KEY = "trimtab.training"


@dataclass(frozen=True, eq=False)
class Lessons:
    """Images (N, C, H, W) to learn from, their labels (N,), how they may be varied, and the program of the teacher."""

    images: Images
    labels: Labels
    augmentation: Augmentation
    teacher: Graph


@dataclass(frozen=True)
class Progress:
    """The place that a training is at: steps done, of how many, the last ones' mean loss, images per second by all."""

    done: int
    steps: int
    loss: float
    rate: float


class Training:
    """One process's part of a training of a candidate.

    `normalised` names the layers that had a batch norm (`Space.normalised`). `seconds` limit the training: how far it
    is, and so its rate, then follows from the time, where that is ahead of the steps. Where it is not, what a process
    does follows from candidate, recipe, lessons and team alone.
    """

    def __init__(
        self,
        candidate: Candidate,
        normalised: Collection[str],
        lessons: Lessons,
        recipe: Recipe,
        team: Team | None = None,
        seconds: float | None = None,
    ) -> None:
        self.lessons, self.recipe, self.team, self.seconds = lessons, recipe, team or Team(), seconds
        self.first = torch.from_numpy(lessons.images[:MEASURED].copy())
        self.network = TrainedNetwork(candidate, normalised, self.first)
        self.teacher = NativeEngine().compile(lessons.teacher, recipe.batch)
        self.optimiser = torch.optim.AdamW(self._groups(), betas=BETAS)
        self.per_epoch = self._epoch(0).steps(recipe.batch)
        self.done, self.steps = 0, round(recipe.epochs * self.per_epoch)
        #: Seconds that were spent by earlier processes, and when this one began.
        self.spent, self.began = 0.0, time.perf_counter()
        self.frozen = False

    def run(self, tell: Callable[[Progress], None], checkpoint: Path | None = None) -> None:
        """Train to the end; the first process writes checkpoints, after every epoch and every few minutes."""
        self.network.train()
        clock = _Clock(self.recipe.batch)
        while (share := self.share()) < 1:
            for batch in self.batches():
                if not self.frozen and share >= 1 - self.recipe.frozen:
                    self._freeze()
                clock.step(self.step(batch, share))
                share = self.share()
                if clock.due or share >= 1:
                    steps = self.done if share >= 1 else max(self.done + 1, round(self.done / share))
                    tell(Progress(self.done, steps, clock.taken(), clock.rate))
                ends = self.done % self.per_epoch == 0
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

    def candidate(self) -> Candidate:
        """Return the candidate as it is now."""
        return self.network.candidate(self.first)

    def save(self, path: Path) -> None:
        """Write what the training goes on from, whole or not at all."""
        state = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{i}.{name}": tensor for name, tensor in moments.items()}
        about = {"done": self.done, "spent": self._elapsed(), "frozen": self.frozen, "recipe": asdict(self.recipe)}
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        write_bytes(path, to_bytes(tensors, metadata={_KEY: json.dumps(about)}))

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; a checkpoint of another training is a `BadInput`."""
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        if about is None or about["recipe"] != asdict(self.recipe):
            raise BadInput(f"the checkpoint {path} is of another training: take it away to start again")
        own = "network."
        of_network = {name.removeprefix(own): each for name, each in tensors.items() if name.startswith(own)}
        self.network.load_state_dict(of_network)
        state: dict[int, dict[str, Tensor]] = {}
        for name in tensors.keys() - {own + each for each in of_network}:
            _, place, moment = name.split(".")
            state.setdefault(int(place), {})[moment] = tensors[name]
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.done, self.spent, self.frozen = about["done"], about["spent"], about["frozen"]

    def _groups(self) -> list[dict[str, Any]]:
        weights, steps, others = self.network.groups()
        return [
            {"params": weights, "weight_decay": self.recipe.weight_decay, "share": 1.0},
            {"params": others, "weight_decay": 0.0, "share": 1.0},
            {"params": steps, "weight_decay": 0.0, "share": self.recipe.step_rate},
        ]

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch that the training is in."""
        number, first = divmod(self.done, self.per_epoch)
        yield from self._epoch(number).batches(self.recipe.batch, self.team.part, self.team.parts, first)

    def _epoch(self, number: int) -> Epoch:
        return Epoch(self.lessons.images, self.lessons.augmentation, self.recipe.seed, number)

    def taught(self, batch: Batch) -> Tensor:
        """Return what the teacher makes of a batch, (N, classes)."""
        return torch.from_numpy(self.teacher.run(batch.x.numpy()))

    def step(self, batch: Batch, share: float) -> float:
        """Take a step of a training that is so far, from 0 to 1; return its loss."""
        rate = self.recipe.rate(share)
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * rate
        labels = torch.from_numpy(self.lessons.labels[batch.indices])
        loss = distance(self.network(batch.x), self.taught(batch), labels, self.recipe)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        learned = [each for group in self.optimiser.param_groups for each in group["params"]]
        self.team.average([each.grad for each in learned if each.grad is not None])
        self.optimiser.step()
        self.done += 1
        return float(loss.detach())

    def _freeze(self) -> None:
        batches = self._epoch(NORM_EPOCH).batches(self.recipe.batch, self.team.part, self.team.parts)
        self.network.freeze_norms(batch.x for _, batch in zip(range(NORM_BATCHES), batches, strict=False))
        self.team.average(self.network.statistics())
        self.frozen = True


def distance(outputs: Tensor, wanted: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss of outputs (N, classes) where the teacher says `wanted`, and people `labels` (N,).

    Hinton et al. 2015 (arXiv:1503.02531, section 2): softened predictions, at T^2, so that their gradients do not
    depend on the temperature T.
    """
    softened = F.log_softmax(outputs / recipe.temperature, 1), F.softmax(wanted / recipe.temperature, 1)
    learned = F.kl_div(*softened, reduction="batchmean") * recipe.temperature**2
    if not recipe.labels:
        return learned
    return (1 - recipe.labels) * learned + recipe.labels * F.cross_entropy(outputs, labels)


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
