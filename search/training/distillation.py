"""The training of a candidate under its policy, towards what the network as given says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab import plugins
from trimtab.evaluators.engines.native import NativeEngine
from trimtab.graph import Graph
from trimtab.search.training.images import Batch
from trimtab.search.training.network import TrainedNetwork
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.training import Learner, Lessons
from trimtab.spaces.candidate import Candidate

__all__ = ["Distillation", "Objective", "distance"]

#: Images that norms and ranges are measured on.
MEASURED = 256

#: AdamW's decay of the moments. Trainings are short: the second moment forgets faster than is usual.
BETAS = (0.9, 0.99)


#: Where a teacher's outputs are all but the same, distances from them count in units of this variance.
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Objective:
    """The aim of a candidate: whether the teacher's outputs are logits of `classes` along axis 1, and the `loss` of
    (outputs, targets) that is learned beside them, None without targets."""

    classes: bool = True
    loss: Callable[[Tensor, Any], Tensor] | None = F.cross_entropy


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
        objective: Objective = Objective(),
        most: float | None = None,
    ) -> None:
        self.recipe, self.frozen, self.objective, self.most = recipe, recipe.frozen, objective, most
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
        """Return what the teacher makes of a batch, (N, ...)."""
        return torch.from_numpy(self.teacher.run(batch.x.numpy()))

    def loss(self, batch: Batch, targets: Any) -> Tensor:
        """Return the distance of a batch's outputs from the teacher's and from the targets."""
        return distance(self.network(batch.x), self.taught(batch), targets, self.recipe, self.objective)

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


def distance(
    outputs: Tensor,
    wanted: Tensor,
    targets: Any,
    recipe: Recipe,
    objective: Objective = Objective(),
) -> Tensor:
    """Return the loss of outputs (N, ...) where the teacher says `wanted`, and the data `targets`.

    Of logits (N, classes, ...), it is the divergence of softened predictions, a mean over images and places, at T^2, so
    that its gradients do not depend on the temperature T (Hinton et al. 2015, arXiv:1503.02531, section 2). Of other
    outputs, it is their mean squared distance, as a share of the teacher's variance in the batch, each output's about
    its own mean.
    """
    if objective.classes:
        softened = F.log_softmax(outputs / recipe.temperature, 1), F.softmax(wanted / recipe.temperature, 1)
        places = outputs.numel() // outputs.shape[1]
        learned = F.kl_div(*softened, reduction="sum") / places * recipe.temperature**2
    else:
        variance = wanted.var((0, *range(2, wanted.ndim)), correction=0).mean()
        learned = F.mse_loss(outputs, wanted) / variance.clamp_min(LEAST_VARIANCE)
    if objective.loss is None or not recipe.labels:
        return learned
    with plugins.running("the loss"):
        from_targets = objective.loss(outputs, targets)
    return (1 - recipe.labels) * learned + recipe.labels * from_targets
