"""The problem of a run: the space of one network, the data, and the judge; what can be wrong is found here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.evaluators.accuracy import Judge
from trimtab.evaluators.data import Splits, data_root, load
from trimtab.evaluators.metrics import TOP_1, Metric, usual_metric
from trimtab.evaluators.price.cost import count_macs
from trimtab.evaluators.price.plan import StepPlan
from trimtab.files import cache_dir
from trimtab.search.progress import Progress
from trimtab.search.setup.config import Config, make_config
from trimtab.search.setup.networks import load_network
from trimtab.spaces.repairs.database import LayerDatabase
from trimtab.spaces.repairs.repair import Calibration
from trimtab.spaces.space import Removal, Space, build_space
from trimtab.spaces.tracing import plain_module
from trimtab.threads import torch_threads

__all__ = ["Loss", "Problem", "load_problem", "make_problem", "open_database", "with_database"]

#: A loss of (outputs, targets): a tensor of no dimension.
Loss: TypeAlias = Callable[[Tensor, Any], Tensor]

#: Images on which a stitched candidate is settled: with twice as many it ranks no better.
SETTLING = 32


@dataclass(frozen=True, eq=False)
class Problem:
    """A traced network with its data and its judge. `loss` of (outputs, targets), a tensor of no dimension, is what the
    winner is trained on beside the network as given, where there is one."""

    config: Config
    space: Space
    splits: Splits
    judge: Judge
    loss: Loss | None = None

    @property
    def chance(self) -> float:
        """The accuracy of a network that guesses, in [0, 1]; 0 of a metric that has none."""
        return 1 / self.splits.classes if self.judge.metric.name == TOP_1.name and self.splits.classes else 0.0

    @cached_property
    def layer_database(self) -> LayerDatabase:
        """The layer database, one for all agents: what they derive from it, they share."""
        return open_database(self.space, self.judge.calibration)

    def under(self, budgets: Mapping[str, Any]) -> Problem:
        """Return the problem under other budgets; what is wrong with them is a `BadInput`."""
        if dict(budgets) == self.config.budgets:
            return self
        settings = self.config.model_dump(by_alias=True, exclude_none=True)
        return replace(self, config=make_config({**settings, "budgets": dict(budgets)}, "--budgets"))

    def without(self, removed: Iterable[Removal]) -> Problem:
        """Return the problem with some choices taken out of its space."""
        space = self.space.without(removed)
        return replace(self, space=space, judge=replace(self.judge, space=space))


def load_problem(config: Config, progress: Progress, download: bool = False) -> Problem:
    """Load the data and the network that a configuration names; what is wrong with them is a `BadInput`.

    The problem's configuration has absolute paths, so that what is written of it is read from any folder and shell.
    """
    config = _located(config)
    data = config.data
    splits = load(
        data.name,
        root=data.root,
        download=download,
        split=data.split,
        calibration=data.calibration,
        selection=data.selection,
        mean=data.mean,
        std=data.std,
        size=data.size,
        seed=config.seed,
    )
    epochs = config.network.training.epochs if config.network.training else None
    with progress.bar("training the network", epochs) as bar:
        model = load_network(config, splits, lambda done, _: bar.update(done))
    return make_problem(config, model, splits)


def _located(config: Config) -> Config:
    root, checkpoint = data_root(config.data.name, config.data.root), config.network.checkpoint
    data = config.data.model_copy(update={"root": None if root is None else str(root)})
    if checkpoint is None:
        return config.model_copy(update={"data": data})
    network = config.network.model_copy(update={"checkpoint": str(Path(checkpoint).expanduser().absolute())})
    return config.model_copy(update={"data": data, "network": network})


@torch_threads(1)
def make_problem(
    config: Config, model: nn.Module, splits: Splits, metric: Metric | None = None, loss: Loss | None = None
) -> Problem:
    """Trace a model, agree on its MACs and record its untouched activations.

    Without a `metric`, the configuration's, or the usual one, judges; without a `loss`, the winner is trained on the
    cross-entropy with labels, where there are some.
    """
    model = plain_module(model)
    example = torch.from_numpy(splits.example)
    space = build_space(model, example, config.space, splits.calibration)
    metric = _metric(config, metric, space.network.shapes[space.network.output], splits)
    count_macs(model, example, StepPlan(space).steps(space.base()))
    calibration = Calibration.of(space, splits.calibration, config.repairs, config.quantisation)
    judge = Judge(space, calibration, *splits.selection, by=config.accuracy_engine, metric=metric)
    if loss is None and metric.classes and splits.classes:
        loss = F.cross_entropy
    return Problem(config, space, splits, with_database(judge) if config.proxy == "layers" else judge, loss)


def _metric(config: Config, given: Metric | None, outputs: tuple[int, ...], splits: Splits) -> Metric:
    """The metric for outputs of a shape (without N): what is given, what is configured, or the usual one."""
    asked, targets = config.network.metric, splits.selection[1]
    if given is None:
        given = usual_metric(outputs) if targets is None else TOP_1
        given = given if asked is None else Metric.of(asked, config.network.better)
    return given.fitting(outputs, targets)


@torch_threads(1)
def with_database(judge: Judge) -> Judge:
    """Return a judge of what is stitched from the layer database."""
    calibration = judge.calibration
    repairs = replace(calibration.repairs, samples=1, block_steps=0)
    few = Calibration.of(judge.space, calibration.images[:SETTLING].numpy(), repairs, calibration.quantisation)
    return replace(judge, database=open_database(judge.space, calibration), few=few)


def open_database(space: Space, calibration: Calibration) -> LayerDatabase:
    """Return the layer database, in the cache, of a network and the images and quantisation of a calibration."""
    return LayerDatabase(space, calibration.images.numpy(), cache_dir() / "layers", calibration.quantisation)
