"""Training of a zoo network from nothing, into a checkpoint that a configuration's `network.checkpoint` takes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trimtab import __version__
from trimtab.errors import BadInput
from trimtab.evaluators.data import load
from trimtab.files import check_folder
from trimtab.search.progress import Progress
from trimtab.search.setup.networks import PROVENANCE, check_fits, save_checkpoint
from trimtab.search.training.labelled import LabelTraining, accuracy, training_device
from trimtab.search.training.recipe import LabelRecipe, batch_for
from trimtab.search.training.trainer import train
from trimtab.search.training.training import Lessons
from trimtab.search.training.training import Progress as Steps
from trimtab.spaces.zoo import build

__all__ = ["Order", "train_network", "usual_data"]

#: Name -> the data set that a zoo network is for, and its recipe, where they are not the usual ones.
USUAL_DATA, OWN_DATA = "cifar10", {"lenet5": "mnist"}
OWN_RECIPES = {"lenet5": LabelRecipe(epochs=15, learning_rate=0.05)}


@dataclass(frozen=True)
class Order:
    """The order of a training: what is trained, on what, and for how long.

    `network` is a zoo name, `options` its constructor's keyword arguments, `data` a data set's name, with its files
    under `root`, or TRIMTAB_DATA. `selection` of the training images are held out and watched: those that a search with
    the same `seed` chooses on. `epochs` None: the recipe's; `seconds` end the training earlier, the learning rate at 0
    by then. `processes` None: one for each core, or one alone where there is an accelerator.
    """

    network: str
    data: str
    options: Mapping[str, Any] = field(default_factory=dict)
    selection: int = 1000
    epochs: float | None = None
    seconds: float | None = None
    processes: int | None = None
    seed: int = 0
    root: str | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise BadInput(f"epochs are finite, and more than 0, not {self.epochs}")

    @property
    def about(self) -> dict[str, Any]:
        """What is trained, on what, in JSON."""
        return {
            "network": self.network,
            "options": dict(self.options),
            "data": self.data,
            "held_out": self.selection,
        }

    def recipe(self, images: int) -> LabelRecipe:
        """Return the recipe for so many training images."""
        usual = OWN_RECIPES.get(self.network, LabelRecipe())
        epochs = usual.epochs if self.epochs is None else self.epochs
        return replace(usual, epochs=epochs, batch=batch_for(images, usual.batch), seed=self.seed)

    @property
    def cores(self) -> int:
        """The number of processes."""
        if training_device().type != "cpu":
            return 1
        return self.processes or len(os.sched_getaffinity(0))


def usual_data(network: str) -> str:
    """Return the name of the data set that a zoo network is trained on where nothing else is asked."""
    return OWN_DATA.get(network, USUAL_DATA)


def train_network(
    order: Order, out: Path, progress: Progress, resume: bool = False, download: bool = False
) -> dict[str, Any]:
    """Train a network and write its checkpoint, `out`; return what its metadata say of it.

    Anything that cannot be used, the place of `out` included, is a `BadInput` before the training begins. Beside `out`
    lies a file to go on from, with `resume`, until the training has ended. The test images are read once, after it.
    """
    make = partial(build, order.network, **order.options)
    network, unfinished = make(), _unfinished(out, resume)
    splits = load(order.data, root=order.root, download=download, selection=order.selection, seed=order.seed)
    check_fits(network, splits)
    out.parent.mkdir(parents=True, exist_ok=True)
    lessons = Lessons(*splits.train(), splits.augmentation)
    recipe, begun, last = order.recipe(len(lessons.images)), time.perf_counter(), Steps(0, 0, 0.0, 0.0)
    with progress.bar(f"training {order.network}") as bar:

        def tell(steps: Steps) -> None:
            nonlocal last
            last = steps if steps.watched is not None else replace(steps, watched=last.watched)
            held_out = "" if last.watched is None else f", {last.watched:.2%} of held-out images"
            bar.total(last.steps)
            bar.update(last.done, f"loss {last.loss:.3f}, {last.rate:.0f} images/s{held_out}")

        state = train(
            partial(LabelTraining, make, splits.selection, order.about),
            lessons,
            recipe,
            processes=order.cores,
            seconds=order.seconds,
            checkpoint=unfinished,
            tell=tell,
        )
    network.load_state_dict({name: torch.from_numpy(each) for name, each in state.items()})
    network.to(training_device())
    found = {
        **order.about,
        "recipe": asdict(recipe),
        "epochs": last.done * recipe.batch / len(lessons.images),
        "images_per_second": last.rate,
        "seconds": time.perf_counter() - begun,
        "processes": order.cores,
        "device": training_device().type,
        "held_out_accuracy": accuracy(network, *splits.selection),
        "test_accuracy": accuracy(network, *splits.final()),
        "versions": {"trimtab": __version__, "torch": torch.__version__},
    }
    save_checkpoint(network, out, {PROVENANCE: json.dumps(found)})
    unfinished.unlink(missing_ok=True)
    return {"file": str(out), **found}


def _unfinished(out: Path, resume: bool) -> Path:
    """Return the file to go on from that lies beside `out`, which may be written; where `resume`, it is there."""
    if out.suffix != ".safetensors":
        raise BadInput(f"--out is a .safetensors file, not {out}")
    unfinished = out.with_name(out.name + ".unfinished")
    if out.exists():
        raise BadInput(f"{out} exists already: choose another --out")
    check_folder(out.parent)
    if resume and not unfinished.is_file():
        raise BadInput(f"there is no training to go on with: {unfinished} does not exist")
    if unfinished.exists() and not resume:
        raise BadInput(f"{unfinished} is of a training that was interrupted: pass --resume, or take it away")
    return unfinished
