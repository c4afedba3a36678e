"""The training of a candidate under its policy, towards what the network as given predicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.evaluators.engines.native import NativeEngine
from trimtab.graph import Graph
from trimtab.search.training.images import Batch
from trimtab.search.training.network import TrainedNetwork
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.training import Learner, Lessons
from trimtab.spaces.candidate import Candidate

__all__ = ["Distillation", "distance"]

#: Images that norms and ranges are measured on.
MEASURED = 256

#: AdamW's decay of the moments. Trainings are short: the second moment forgets faster than is usual.
BETAS = (0.9, 0.99)


class Distillation(Learner[Candidate]):
    """A candidate that learns from the program of a teacher; what comes out is the candidate as it then is.

    `normalised` names the layers that had a batch norm (`Space.normalised`). `most` are the bytes that may be stored of
    it, where they are limited: weights are then rounded to what takes fewer, as soon and as far as that is needed.
    """

    def __init__(
        self,
        candidate: Candidate,
        normalised: Collection[str],
        teacher: Graph,
        lessons: Lessons,
        recipe: Recipe,
        most: float | None = None,
    ) -> None:
        self.recipe, self.frozen, self.most = recipe, recipe.frozen, most
        self.about = {"most": most}
        self.first = torch.from_numpy(lessons.images[:MEASURED].copy())
        self.network: TrainedNetwork = TrainedNetwork(candidate, normalised, self.first)
        self.teacher = NativeEngine().compile(teacher, recipe.batch)
        weights, steps, others = self.network.groups()
        groups = [
            {"params": weights, "weight_decay": recipe.weight_decay, "share": 1.0},
            {"params": others, "weight_decay": 0.0, "share": 1.0},
            {"params": steps, "weight_decay": 0.0, "share": recipe.step_rate},
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=BETAS)

    def taught(self, batch: Batch) -> Tensor:
        """Return what the teacher makes of a batch, (N, classes)."""
        return torch.from_numpy(self.teacher.run(batch.x.numpy()))

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        """Return the distance of a batch's outputs from the teacher's and from the labels."""
        return distance(self.network(batch.x), self.taught(batch), labels, self.recipe)

    def freeze(self, batches: Iterable[Batch]) -> Sequence[Tensor]:
        """Measure the norms on some batches, and hold them still from now on."""
        self.network.freeze_norms(batch.x for batch in batches)
        return self.network.statistics()

    def adjust(self) -> None:
        """Hold what is stored within the bytes that it may take."""
        if self.most is not None:
            self.network.hold(self.most)

    def result(self) -> Candidate:
        """Return the candidate as it is now, within the bytes that it may take if rounding can do that."""
        self.adjust()
        return self.network.candidate(self.first)


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
