"""The recipes of trainings."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from trimtab.errors import BadInput

__all__ = ["NOTHING_TO_LEARN", "LabelRecipe", "OneCycle", "Recipe", "batch_for", "rate_for"]

#: What has lost no more, in nats or as a share of the images, has nothing to learn; what has lost MUCH or more, learns
#: at the full rate.
NOTHING_TO_LEARN, MUCH = 1e-3, 0.1

#: A batch is so small that an epoch has at least so many steps.
STEPS_AT_LEAST = 8


@dataclass(frozen=True)
class OneCycle:
    """A one-cycle training (Smith 2018, arXiv:1803.09820): the numbers that every training has.

    `epochs`: over all training images, not necessarily whole ones. The learning rate rises over `warm_up` of all steps
    to `learning_rate` and falls to 0 along a line.
    """

    epochs: float = 10.0
    batch: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    warm_up: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise BadInput(f"epochs are at least 0, not {self.epochs}")
        if self.batch < 2:
            raise BadInput(f"a batch is of at least 2 images, not {self.batch}")

    def rate(self, done: float) -> float:
        """Return the learning rate when a share `done`, in [0, 1], of all steps is behind."""
        rising = done / self.warm_up if self.warm_up else 1.0
        return self.learning_rate * min(rising, (1 - done) / (1 - self.warm_up))


def batch_for(images: int, most: int = OneCycle.batch) -> int:
    """Return how many of so many training images a batch has: `most`, or fewer where the images are few."""
    return min(most, max(2, images // STEPS_AT_LEAST))


@dataclass(frozen=True)
class Recipe(OneCycle):
    """The recipe of a training under a policy, towards the network as given.

    The learning rate is AdamW's (Loshchilov and Hutter 2019, arXiv:1711.05101), of weights whose length per channel is
    about 1, and of everything else in units of what it was at first. Steps of quantisers learn at `step_rate` times
    that. The loss is the divergence from the given network's softened predictions at `temperature` (Hinton et al. 2015,
    arXiv:1503.02531, section 2), and, `labels` of it, the cross-entropy with the labels. Norms are held still for the
    last `frozen` of all steps.
    """

    step_rate: float = 2.5
    temperature: float = 4.0
    labels: float = 0.1
    frozen: float = 0.3


def rate_for(lost: float) -> float:
    """Return the learning rate for a candidate that has lost so much, in nats or as a share of the images: the full one
    from MUCH on, below it less by the root, for what has less far to go."""
    return Recipe.learning_rate * sqrt(min(max(lost, NOTHING_TO_LEARN), MUCH) / MUCH)


@dataclass(frozen=True)
class LabelRecipe(OneCycle):
    """The recipe of a training from nothing, towards labels.

    The optimiser is SGD with Nesterov's `momentum` (Sutskever et al. 2013, PMLR 28(3), section 2); weights of layers
    decay, biases and the parameters of norms do not. The loss is the cross-entropy with labels of which `smoothing` is
    spread over all classes (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """

    epochs: float = 30.0
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warm_up: float = 0.2
    momentum: float = 0.9
    smoothing: float = 0.1
