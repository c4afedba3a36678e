"""The training of a network from nothing, towards labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.evaluators.accuracy import graded
from trimtab.evaluators.data import Images, Labels
from trimtab.graph import Array
from trimtab.search.training.images import Batch
from trimtab.search.training.recipe import LabelRecipe
from trimtab.search.training.team import Team
from trimtab.search.training.training import Learner, Lessons

__all__ = ["LabelTraining", "accuracy", "training_device"]

#: Images that are looked at together where nothing is learned from them.
AT_ONCE = 256


def training_device() -> torch.device:
    """Return where networks are trained: on the accelerator that torch sees, or on the processor."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


class LabelTraining(Learner[dict[str, Array]]):
    """A new network that learns from labels; what comes out is its state dict.

    `make` makes it of torch's random state, which follows from the recipe's seed. `held_out`, (images, labels), are
    watched. On an accelerator products are of bf16.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        held_out: tuple[Images, Labels],
        about: Mapping[str, Any],
        lessons: Lessons,
        recipe: LabelRecipe,
    ) -> None:
        self.recipe, self.about, self.held_out = recipe, about, held_out
        self.device = training_device()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make().to(self.device)
        decaying = [each for each in self.network.parameters() if each.ndim > 1]
        others = [each for each in self.network.parameters() if each.ndim <= 1]
        groups = [
            {"params": decaying, "weight_decay": recipe.weight_decay, "share": 1.0},
            {"params": others, "weight_decay": 0.0, "share": 1.0},
        ]
        self.optimiser = torch.optim.SGD(
            [group for group in groups if group["params"]],
            recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )

    def loss(self, batch: Batch, targets: Any) -> Tensor:
        """Return the cross-entropy with a batch's smoothed labels."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            outputs = self.network(batch.x.to(self.device))
        return F.cross_entropy(outputs.float(), targets.to(self.device), label_smoothing=self.recipe.smoothing)

    def statistics(self) -> Sequence[Tensor]:
        """Return the running means and variances of batch norms."""
        return [each for each in self.network.buffers() if each.is_floating_point()]

    def watched(self, team: Team) -> float | None:
        """Return the accuracy on the images that are held out."""
        images, labels = self.held_out
        right = torch.tensor(0.0, dtype=torch.float64)
        part = slice(team.part, None, team.parts)
        if len(images[part]):
            right += accuracy(self.network, images[part], labels[part]) * len(images[part])
        team.average([right])
        return float(right) * team.parts / len(images)

    def result(self) -> dict[str, Array]:
        """Return the state dict."""
        return {name: each.detach().cpu().numpy() for name, each in self.network.state_dict().items()}


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, labels: Labels) -> float:
    """Return a network's top-1 accuracy, in [0, 1], on images (N, C, H, W), as it is when it is not trained."""
    training, place = network.training, next(network.parameters()).device
    network.eval()
    parts = (images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE))
    logits = [network(torch.from_numpy(np.ascontiguousarray(part)).to(place)).cpu().numpy() for part in parts]
    network.train(training)
    return graded(np.concatenate(logits), labels).value
