"""The Python interface: compress a module of one's own with data of one's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from trimtab.agents.base import Agent
from trimtab.errors import BadInput, in_one_line
from trimtab.evaluators.data import Augmentation, Images, Splits
from trimtab.evaluators.metrics import Better, Metric
from trimtab.evaluators.targets import Targets, as_labels, class_count, joined, read_targets, taken
from trimtab.files import check_folder
from trimtab.search.finish.export import ExportCheck, export_candidate
from trimtab.search.finish.run_link import measured_link
from trimtab.search.loop.candidates import candidate_of
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.experiment import prepare_folder
from trimtab.search.progress import ConsoleProgress, Progress
from trimtab.search.run import Outcome, finish_run, run_search
from trimtab.search.setup.config import GIVEN_DATA, GIVEN_NETWORK, make_config
from trimtab.search.setup.metric import ShownMetric
from trimtab.search.setup.problem import Loss, Problem, make_problem
from trimtab.search.setup.setting import bench_of
from trimtab.spaces.policy import Policy
from trimtab.threads import torch_threads

__all__ = ["Result", "Task", "compress"]

#: The most bytes of training images that are held in memory.
TRAINED_ON = 4 << 30

#: The most images that are kept of what can be read once only, and may have no end.
ONCE = 1 << 18

#: Of training images alone, one in so many is held out to choose on, and as many for the final figure.
HELD_OUT = 5

#: Images, and their targets, if there are any.
Part: TypeAlias = tuple[Images, Targets]

_GIVEN = {"network": {"import": GIVEN_NETWORK}, "data": {"name": GIVEN_DATA}}


@dataclass(frozen=True)
class Task:
    """The purpose of a network: data, and by what it is judged.

    Each part is a DataLoader or any iterable of (images, targets) batches, or a pair of arrays; or of images alone.
    Images are (N, C, H, W) float32 as the network sees them, signals (N, C, L), vectors (N, F); all parts are of one
    shape. On `train`, as it yields it, the winner is trained (up to TRAINED_ON bytes of images), and `calibration`
    images of it are for repairs; policies are chosen on `selection`, and `final` is read once, for the reported figure;
    without it the figure comes from `selection`, and the summary says so. Without either, a fifth of `train` each is
    held out for them, drawn by a seed. In training, images may be moved by `shift` pixels, and, with `mirror`, left and
    right exchanged, where targets are labels (N,).

    `metric` is a name ("top-1", "top-5", "mean-iou", "mean-recall", "worst-class-recall", "mean-average-precision",
    "rmse", "explained-variance") or any callable of (outputs, targets), tensors of all images, of which `better` is
    "higher" or "lower": it returns a value for each image, (N,), whose mean counts, or one number for all, which is
    then bootstrapped, in 200 calls. Without one, targets are labels (N,), and the largest output has to be at them.
    Targets are whatever is yielded: arrays or tensors (N, ...), tuples and dicts of them, or lists of N things. What
    has no targets is held to what the untouched network says of it. `loss`, of (outputs, targets), is what the winner
    is trained on beside the network as given; the cross-entropy, where targets are labels and nothing else is said.
    """

    train: Any
    selection: Any = None
    final: Any = None
    calibration: int = 256
    shift: int = 0
    mirror: bool = False
    metric: Any = None
    better: Better | None = None
    loss: Loss | None = None

    @property
    def judged_by(self) -> Metric | None:
        """The metric, where one is given; what is none is a `BadInput`."""
        return None if self.metric is None else Metric.of(self.metric, self.better)

    def splits(self) -> Splits:
        """Collect the parts into arrays; anything that is not images and their targets is a `BadInput`."""
        train, metric = self.train, self.judged_by
        labelled = metric is None or bool(metric.classes)
        if isinstance(train, Iterator) or self.selection is None:  # it can be read once only, or is divided
            train = _collect(train, "train", labelled, ONCE)
        if self.selection is None:
            return self._divided(train, labelled)
        fitted = _collect(train, "train", labelled, self.calibration)
        shape = fitted[0].shape[1:]
        selection = _collect(self.selection, "selection", labelled, shape=shape)
        final = selection if self.final is None else _collect(self.final, "final", labelled, shape=shape)
        said = "the selection images themselves" if self.final is None else f"{len(final[0])} images given as final"
        limit = max(1, TRAINED_ON // fitted[0][0].nbytes)
        provenance = f"{len(selection[0])} images given by the user; final: {said}"
        return self._parts(lambda: _collect(train, "train", labelled, limit), fitted, selection, final, provenance)

    def _divided(self, given: Part, labelled: bool) -> Splits:
        """The parts of what is all in one: a fifth to choose on, and one for the final figure, if none is given."""
        images, targets = given
        order = np.random.default_rng(0).permutation(len(images))
        count = len(order) // HELD_OUT
        if not count:
            raise BadInput(f"task.train: {len(order)} images are too few to hold some of them out: give task.selection")
        cuts = np.split(order, [count, count if self.final is not None else 2 * count])
        chosen, last, fitted = ((images[cut], None if targets is None else taken(targets, cut)) for cut in cuts)
        said = f"{count} others of them"
        if self.final is not None:
            last = _collect(self.final, "final", labelled, shape=images.shape[1:])
            said = f"{len(last[0])} images given as final"
        first = fitted[0][: self.calibration], None
        return self._parts(
            lambda: fitted, first, chosen, last, f"{count} of the user's images, held out; final: {said}"
        )

    def _parts(self, train: Callable[[], Part], fitted: Part, selection: Part, final: Part, provenance: str) -> Splits:
        dense = any(isinstance(targets, np.ndarray) and targets.ndim > 1 for _, targets in (selection, final))
        if dense and (self.shift or self.mirror):
            raise BadInput("task.shift and task.mirror move images, and not their targets: vary both in the loader")
        classes = max(class_count(targets) for _, targets in (selection, final))
        return Splits(
            train=lambda: _as_images(train()),
            calibration=_as_images(fitted)[0],
            selection=_as_images(selection),
            final=lambda: _as_images(final),
            signals=fitted[0].ndim == 3,
            augmentation=Augmentation(self.shift, self.mirror),
            classes=classes,
            provenance=provenance,
        )


class Result:
    """The result of `compress`. `best` is None where no candidate met every budget, or kept the accuracy, when it was
    measured."""

    def __init__(self, problem: Problem, outcome: Outcome) -> None:
        self._problem = problem
        self._outcome = outcome

    @property
    def best(self) -> Evaluation | None:
        """The winner, measured on its finished network."""
        return self._outcome.winner.evaluation if self._outcome.winner else None

    @property
    def pareto(self) -> tuple[Evaluation, ...]:
        """The evaluations within the budgets on costs that none beats in both latency and accuracy, fastest first."""
        return self._outcome.front

    def finish(self, time: str | float | None = None, epochs: float | None = None) -> Mapping[str, Any]:
        """Train the winner under its policy, for the first time or on from where it is, and export it again.

        At most for `time` ("20m", or seconds) and so many `epochs`, else as the configuration says. Returns the
        summary; where training made nothing better within the budgets, everything stays as it was.
        """
        config = self._problem.config
        given = {name: value for name, value in (("time", time), ("epochs", epochs)) if value is not None}
        asked = {**config.finish.model_dump(exclude_none=True), **given, "enabled": True}
        settings = {**config.model_dump(by_alias=True, exclude_none=True), "finish": asked}
        problem = replace(self._problem, config=make_config(settings, "finish"))
        with torch_threads(1):
            outcome = finish_run(problem, self.folder, Progress())
        self._outcome = replace(outcome, front=self._outcome.front)
        return self.summary

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self._outcome.folder

    @property
    def summary(self) -> Mapping[str, Any]:
        """Every figure of the run, as in `summary.json`."""
        return self._outcome.summary

    def export(self, path: str | Path, policy: Policy | None = None) -> list[ExportCheck]:
        """Write policy.json, model.safetensors and model.onnx of the winner (or of another policy) into a folder.

        Both models are run back; the checks say how they agree with what was measured.
        """
        if policy is None:
            if self.best is None:
                raise BadInput("there is no winner to export: no candidate met every budget when it was measured")
            policy = self.best.policy
        check_folder(Path(path))
        candidate = candidate_of(self._problem, policy, self.folder)
        link, limit = measured_link(self._problem, bench_of(self._problem), self.folder, Progress())
        return export_candidate(self._problem, candidate, Path(path), link, limit)

    def __repr__(self) -> str:
        if self.best is None or self.best.latency is None:
            return "Result(no network met every budget)"
        latency = self.best.latency
        name, said = ShownMetric.of(self.summary).name, self.best.answers.said()
        return f"Result({name} {said}, {latency.ratio:.3f}x latency, {self.best.cost.size} bytes)"


def compress(
    model: nn.Module,
    task: Task | tuple[Any, Any],
    budgets: Mapping[str, str | float] | None = None,
    agent: str | Mapping[str, Any] | type[Agent] = "milp",
    trials: int | None = None,
    *,
    minimise: str | None = None,
    keep: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Result:
    """Search for the most accurate form of `model` within the budgets, on this machine; or for that of the least cost.

    `model` is any module that torch.fx can trace, with its trained weights; `task` its data, a `Task` or a pair
    (train, selection). `budgets` maps latency, size, macs and memory to values like "0.2x", "0.6x int8" or "3 ms".
    With `minimise`, one of these costs, and `keep`, like {"accuracy": -1.0, "confidence": 0.95}, the network of the
    least cost is looked for that loses at most so many points, within budgets on other costs, if there are any.
    `agent` decides: a name, one with parameters like `{"name": "evolution", "population": 64}`, or a class of your own.
    It makes `trials` evaluations: 200 where neither they nor the setting `time_limit` ("20m", of all of it) is given.
    `settings` are further keys of the configuration (engine, space, workers, seed, measure, baselines, finish).
    The run is written to `out`, or to a temporary folder.
    Raises `trimtab.errors.BadInput` and `trimtab.errors.InfeasibleBudget`.
    """
    if taken := sorted(set(settings) & set(_GIVEN)):
        raise BadInput(f"compress takes the network and the data as objects, not as the setting {taken[0]!r}")
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a torch.nn.Module, not {type(model).__name__}")
    if resume and out is None:
        raise BadInput("resume needs out, the folder of the run to go on with")
    asked = {"budgets": {} if budgets is None else budgets, "minimise": minimise, "keep": keep}
    given = task if isinstance(task, Task) else _pair(task)
    metric = given.judged_by
    network = {**_GIVEN["network"], **({} if metric is None else {"metric": metric.name, "better": metric.better})}
    own = {**_GIVEN, "network": network, **asked, "agent": agent, **({} if trials is None else {"trials": trials})}
    config = make_config({**own, **settings}, "compress")
    if out is not None:
        prepare_folder(Path(out), resume)
    shown: Progress = ConsoleProgress() if progress else Progress()
    folder = Path(out if out is not None else tempfile.mkdtemp(prefix="trimtab-"))
    try:
        problem = make_problem(config, model, given.splits(), metric, given.loss)
        with torch_threads(1):
            return Result(problem, run_search(problem, folder, shown, resume))
    finally:
        if out is None and not any(folder.iterdir()):
            folder.rmdir()


def _pair(task: object) -> Task:
    if isinstance(task, tuple) and len(task) == 2:
        return Task(*task)
    raise BadInput(f"task is a trimtab.Task or a pair (train, selection), not {type(task).__name__}")


def _as_images(part: Part) -> Part:
    """A part whose signals are images of one column."""
    images, targets = part
    return images[..., None] if images.ndim == 3 else images, targets


def _collect(
    part: Any, name: str, labelled: bool, limit: int | None = None, shape: tuple[int, ...] | None = None
) -> Part:
    """Return images (N, C, H, W) float32, signals (N, C, L) or vectors (N, F), and their targets, labels where they are
    `labelled`, or None; at most about `limit` of them, each of `shape` where that is given."""
    if isinstance(part, tuple) and len(part) == 2 and hasattr(part[0], "shape"):
        batches: Iterable[Any] = [part]
    elif hasattr(part, "shape"):
        batches = [(part,)]
    elif isinstance(part, Iterable):
        batches = part
    else:
        raise BadInput(f"task.{name} is a DataLoader, an iterable of (images, targets), or a pair of arrays")
    images: list[Images] = []
    targets: list[Targets] = []
    count = 0
    for batch in batches:
        try:
            x, *given = (batch,) if hasattr(batch, "shape") else batch
            images.append(np.asarray(torch.as_tensor(x).detach().cpu(), dtype=np.float32))
            if len(given) > 1:
                raise ValueError(f"{len(given) + 1} things in a batch")
            if given and given[0] is not None:
                targets.append(read_targets(given[0], len(images[-1])))
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"task.{name} does not yield (images, targets): {error}") from error
        if images[-1].ndim not in (2, 3, 4):
            raise BadInput(
                f"task.{name}: expected batches of images (N, C, H, W), signals (N, C, L) or vectors (N, F), and "
                f"their targets, found {images[-1].shape}"
            )
        if shape is not None and images[-1].shape[1:] != shape:
            raise BadInput(f"task.{name}: its images are of shape {images[-1].shape[1:]}, those of task.train {shape}")
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise BadInput(f"task.{name}: images of one shape are needed in every batch")
        if len(targets) not in (0, len(images)):
            raise BadInput(f"task.{name}: some batches have targets, and others have none")
        if targets and labelled:
            targets[-1] = as_labels(targets[-1], f"task.{name}")
        if endless := int((~np.isfinite(images[-1])).any(axis=tuple(range(1, images[-1].ndim))).sum()):
            raise BadInput(f"task.{name}: {endless} images of a batch have values that are not finite")
        count += len(images[-1])
        if limit is not None and count >= limit:
            break
    if not count:
        raise BadInput(f"task.{name} yields no images")
    try:
        found = joined(targets) if targets else None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"task.{name}: the targets of its batches do not go together: {in_one_line(error)}") from error
    return np.concatenate(images)[:limit], None if found is None else taken(found, slice(limit))
