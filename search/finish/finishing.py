"""Finishing: the last stage of a run, which trains the best networks that were found under their policies."""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.errors import BadInput
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.evaluators.targets import class_count
from trimtab.files import write_bytes, write_text
from trimtab.graph import Graph
from trimtab.kernels import stored_bytes
from trimtab.search.finish.export import IN_WORDS, ExportCheck, export_candidate
from trimtab.search.finish.run_link import PATIENCE
from trimtab.search.loop.best_policy import write_policy
from trimtab.search.loop.candidates import CandidateFolder
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.preference import best_in_reach, preferred
from trimtab.search.loop.verify import judged
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import describe
from trimtab.search.setup.config import FinishConfig
from trimtab.search.setup.setting import Setting
from trimtab.search.training.distillation import Distillation, Objective
from trimtab.search.training.recipe import NOTHING_TO_LEARN, Recipe, batch_for, rate_for
from trimtab.search.training.trainer import train
from trimtab.search.training.training import Lessons
from trimtab.search.training.training import Progress as Steps
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.candidate_file import Provenance, load_candidate, save_candidate

__all__ = ["FINISHED", "PROGRESS", "Finished", "finish"]

#: What a finished network is called among those whose final figure is read.
FINISHED = "finished"

#: The file in a finishing's folder that says how far it is.
PROGRESS = "progress.json"

#: Epochs where nothing else is asked; of data sets so small that these are fewer than STEPS steps, as many as those.
EPOCHS, STEPS = 15.0, 1500

#: The uniform int8 form, which predicts in half the time, is the teacher where it is no further, in nats, from the
#: network as given.
AS_GIVEN = 0.01


@dataclass(frozen=True, eq=False)
class Finished:
    """A network that was trained under its policy, and exported.

    `evaluation` is what it is worth now, by the selection images, its latency and its bytes measured again; `found`
    says how it was trained, in JSON.
    """

    evaluation: Evaluation
    candidate: Candidate
    found: Mapping[str, Any]
    checks: Sequence[ExportCheck] = ()


def finish(
    setting: Setting,
    bench: LatencyBench,
    contenders: Iterable[Evaluation],
    candidates: CandidateFolder,
    folder: Path,
    progress: Progress,
    again: bool = False,
    seconds: float = math.inf,
) -> Finished | None:
    """Train every contender for a short while and the one that is then preferred to the end, and export that one.

    Training takes `seconds` at most, and no longer than the configuration says.

    Contenders were verified; the first one is the best so far, and the others are asked for only if there is something
    to train. None where training made nothing better within the
    budgets: the run then stays as it was, and what was trained lies in the folder `finishing` to be measured again.
    A finishing of the same best contender that was interrupted is gone on with, as it was ordered then. A contender
    that was finished before is not trained, unless `again` asks for that; nor is anything where finishing is off.
    """
    return _Finishing(setting, bench, candidates, folder, progress, seconds).run(contenders, again)


@dataclass(frozen=True)
class _Order:
    """The order of a finishing: what is trained, and how."""

    contenders: tuple[Evaluation, ...]
    asked: FinishConfig

    def to_json(self) -> dict[str, Any]:
        return {"contenders": [each.to_json() for each in self.contenders], "asked": self.asked.model_dump()}

    @classmethod
    def recorded(cls, file: Path) -> _Order | None:
        """The order in a file, where there is one."""
        if not file.is_file():
            return None
        data = json.loads(file.read_text(encoding="utf-8"))
        contenders = tuple(Evaluation.from_json(each) for each in data["contenders"])
        return cls(contenders, FinishConfig.model_validate(data["asked"]))


class _Finishing:
    """One finishing, in a folder of its own in the run's: its order, a file for each network that was trained, and
    checkpoints."""

    def __init__(
        self,
        setting: Setting,
        bench: LatencyBench,
        candidates: CandidateFolder,
        folder: Path,
        progress: Progress,
        seconds: float,
    ) -> None:
        self.setting, self.problem, self.bench = setting, setting.problem, bench
        self.candidates, self.run_folder, self.progress = candidates, folder, progress
        asked = self.problem.config.finish
        self.asked = asked.model_copy(update={"time": min(asked.time, seconds)})
        self.folder = folder / "finishing"

    def run(self, contenders: Iterable[Evaluation], again: bool) -> Finished | None:
        left = iter(contenders)
        best = next(left)
        if not again and self._known([best]) is None and not self._worth_it(best):
            return None
        given: Sequence[Evaluation] = [best, *left]
        known = None if again else self._known(given)
        if known is None:
            given = self._ordered(given)
        finished = self._accepted(self._trained_now(given) if known is None else known, given[0])
        return None if finished is None else self._published(finished, known is None)

    def _worth_it(self, best: Evaluation) -> bool:
        if not self.asked.enabled:
            return False
        # Where a cost is minimised, the others are cheaper, and have lost more.
        if self.setting.baseline.minimise is None and self._damage(best) <= NOTHING_TO_LEARN:
            self.progress.line("the winner predicts what the network as given does: there is nothing to train")
            return False
        return True

    def _damage(self, of: Evaluation) -> float:
        """What a network has lost: in nats or, where that is more, as a share of the images."""
        return max(of.loss, self.setting.baseline.base_answers.accuracy - of.accuracy)

    def _ordered(self, contenders: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """The contenders of the finishing that was interrupted, if its best one is the best one still; else these."""
        file = self.folder / "order.json"
        order = _Order.recorded(file)
        if order is None or order.contenders[0].policy != contenders[0].policy:
            rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            order = _Order(tuple(contenders), self.asked)
            write_text(file, json.dumps(order.to_json()) + "\n")
        self.asked = order.asked
        return order.contenders

    def _known(self, contenders: Sequence[Evaluation]) -> Finished | None:
        """The first contender that was finished before."""
        for each in contenders:
            candidate, provenance = self.candidates.current(self.problem.judge, each.policy)
            if provenance.stage == "finished":
                return Finished(judged(self.setting, each, candidate), candidate, provenance.recipe)
        return None

    def _published(self, finished: Finished, is_new: bool) -> Finished:
        """Put the network, its exports and its policy in the places of the run's."""
        policy, target = finished.evaluation.policy, self.run_folder / "export"
        if is_new:
            provenance = Provenance("finished", finished.found)
            self.candidates.finish(policy, finished.candidate, provenance, self.problem.space)
        rmtree(target, ignore_errors=True)
        (self.folder / "export").rename(target)
        write_policy(self.run_folder, policy)
        rmtree(self.folder, ignore_errors=True)
        moved = [replace(check, path=str(target / Path(check.path).name)) for check in finished.checks]
        return replace(finished, checks=moved)

    def _trained_now(self, contenders: Sequence[Evaluation]) -> Finished:
        """Train; what was found then says of the whole finishing how it went."""
        started = time.perf_counter()
        trained, tried = self._best_trained(contenders)
        before = next(each for each in contenders if each.policy == trained.evaluation.policy)
        own = [each for each in (*tried, trained) if each.evaluation.policy == before.policy]
        found = {
            **trained.found,
            "epochs": sum(each.found["epochs"] for each in own),
            "accuracy_before": before.answers.value,
            "loss_before": before.loss,
            "seconds": time.perf_counter() - started,
            "tried": [{**each.found, "policy": each.evaluation.policy.id} for each in tried],
        }
        return replace(trained, found=found)

    def _best_trained(self, contenders: Sequence[Evaluation]) -> tuple[Finished, list[Finished]]:
        """Return the network that was trained to the end, and what the short trainings before it gave."""
        if len(contenders) == 1:
            return self._trained(contenders[0], 1.0, "trained"), []
        share = self.asked.first / len(contenders)
        tried = [self._trained(each, share, "tried") for each in contenders]
        chosen = best_in_reach(each.evaluation for each in tried)
        best = next(each for each in tried if each.evaluation is chosen)
        return self._trained(best.evaluation, 1 - self.asked.first, "trained", best.candidate), tried

    def _accepted(self, trained: Finished, best: Evaluation) -> Finished | None:
        """Return the network measured and exported, if it is better than the best so far, within every budget."""
        if self._wins(trained, best):
            measured = replace(trained, evaluation=self._measured(trained))
            # A trained network of another policy than the best one's may turn out not to be the cheaper one.
            if not measured.evaluation.feasible or self._wins(measured, best):
                return self._exported(measured)
        kept = self.setting.baseline.kept
        said = "" if kept is None else f" (the trained one {kept.said(trained.evaluation.answers)})"
        self.progress.line(f"training made nothing that is preferred to what was found: it stays as it was{said}")
        return None

    def _wins(self, trained: Finished, best: Evaluation) -> bool:
        return preferred(e for e in (best, trained.evaluation) if e.feasible) is trained.evaluation

    @cached_property
    def _lessons(self) -> Lessons:
        space, splits = self.problem.space, self.problem.splits
        images, targets = splits.train()
        outputs = space.network.shapes[space.network.output][0]
        if self.problem.judge.metric.classes and class_count(targets) > outputs:
            raise BadInput(
                f"training images have labels up to {class_count(targets) - 1}, the network has {outputs} outputs"
            )
        return Lessons(images, targets, splits.augmentation)

    @cached_property
    def _objective(self) -> Objective:
        """What is learned: from the network as given, and from the targets as far as there are some."""
        taught = self._lessons.targets is not None
        return Objective(bool(self.problem.judge.metric.classes), self.problem.loss if taught else None)

    @cached_property
    def _teacher(self) -> Graph:
        judge, space = self.problem.judge, self.problem.space
        teacher = judge.candidate(space.int8())
        if judge.loss(judge.outputs(teacher, judge.images)) > AS_GIVEN:
            teacher = judge.candidate(space.base())
        return lower(teacher)

    @cached_property
    def _processes(self) -> int:
        try:
            pickle.dumps(self._objective)
        except (AttributeError, TypeError, pickle.PicklingError):
            return 1  # a loss that no other process can import
        return self.asked.processes or len(os.sched_getaffinity(0))

    @property
    def _kept(self) -> str:
        return (
            f"the winner stays as it was, and trimtab finish {self.run_folder} --resume measures the trained one again"
        )

    def _measured(self, trained: Finished) -> Evaluation:
        """The evaluation with what the trained network takes of every budget."""
        baseline, seconds = self.setting.baseline, PATIENCE * self.problem.config.measuring.final_seconds
        latency = self.bench.measure(trained.candidate, baseline.link, seconds, baseline.limit)
        size = stored_bytes(lower(trained.candidate))
        return trained.evaluation.measured(latency, baseline.limit).with_size(size, baseline.limits)

    def _exported(self, trained: Finished) -> Finished | None:
        """Export a network, if it is within every budget and its exported file then is too."""
        evaluation, baseline = trained.evaluation, self.setting.baseline
        over = {name: each for name, each in evaluation.violations.items() if each > 0}
        if over:
            said = ", ".join(
                f"{name} by {each:.1%} of {describe(name, baseline.limits[name])}" for name, each in over.items()
            )
            self.progress.line(f"the trained network is over its budgets ({said}): {self._kept}")
            return None
        self.progress.line("exporting the finished network, and running the exports back")
        place = self.folder / "export"
        checks = export_candidate(self.problem, trained.candidate, place, baseline.link, baseline.limit)
        exported = next((check for check in checks if check.verdict is not None), None)
        if exported is not None and exported.verdict is not None:
            evaluation = evaluation.measured(exported.latency, baseline.limit)
            if not evaluation.feasible:
                self.progress.line(f"the trained network's file is {IN_WORDS[exported.verdict]}: {self._kept}")
                return None
        return replace(trained, evaluation=evaluation, checks=checks)

    def _trained(self, of: Evaluation, share: float, stage: str, start: Candidate | None = None) -> Finished:
        """Train a candidate for a share of all that may be, or open what an interrupted finishing left of it."""
        file = self.folder / f"{of.policy.id}.{stage}.safetensors"
        if file.is_file():
            candidate, provenance = load_candidate(file, self.problem.space)
            return Finished(judged(self.setting, of, candidate), candidate, dict(provenance.recipe))
        if start is None:
            start, _ = self.candidates.current(self.problem.judge, of.policy)
        recipe, begun, last = self._recipe(of, share), time.perf_counter(), Steps(0, 0, 0.0, 0.0)
        with self.progress.bar(f"{'finishing' if stage == 'trained' else 'trying'} {of.policy.id[:8]}") as bar:

            def tell(steps: Steps) -> None:
                nonlocal last
                last = steps
                bar.total(steps.steps)
                bar.update(steps.done, f"loss {steps.loss:.3f}, {steps.rate:.0f} images/s")
                self._say(of, stage, steps, time.perf_counter() - begun)

            candidate = train(
                partial(
                    Distillation,
                    start,
                    self.problem.space.normalised,
                    self._teacher,
                    objective=self._objective,
                    most=self.setting.baseline.limits.get("size"),
                ),
                self._lessons,
                recipe,
                processes=self._processes,
                seconds=share * self.asked.time,
                checkpoint=self.folder / f"{of.policy.id}.{stage}.checkpoint",
                tell=tell,
            )
        now = judged(self.setting, of, candidate)
        found = {
            "recipe": asdict(recipe),
            "steps": last.done,
            "epochs": last.done * recipe.batch / len(self._lessons.images),
            "images_per_second": last.rate,
            "processes": self._processes,
            "training": time.perf_counter() - begun,
            "accuracy": now.answers.value,
        }
        save_candidate(file, candidate, Provenance(stage, found), self.problem.space)
        return Finished(now, candidate, found)

    def _say(self, of: Evaluation, stage: str, steps: Steps, seconds: float) -> None:
        """Leave word for whoever watches how far the training of a network is, after so many seconds of it."""
        said = {"policy": of.policy.id, "stage": stage, **asdict(steps), "seconds": seconds}
        with suppress(OSError):  # no training ends for it
            write_bytes(self.folder / PROGRESS, json.dumps(said).encode(), durable=False)

    def _recipe(self, of: Evaluation, share: float) -> Recipe:
        """The recipe for a network: what has lost much learns fast."""
        images = len(self._lessons.images)
        given = self.asked.model_dump(include=set(Recipe.__dataclass_fields__), exclude_none=True)
        batch = batch_for(images, given.get("batch", Recipe.batch))
        epochs = max(EPOCHS, STEPS * batch / images) if self.asked.epochs is None else self.asked.epochs
        usual = {"learning_rate": rate_for(self._damage(of)), "seed": self.problem.config.seed}
        return Recipe(**{**usual, **given, "batch": batch, "epochs": share * epochs})
