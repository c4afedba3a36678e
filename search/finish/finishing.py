"""Finishing: the last stage of a run, which trains the best networks that were found under their policies."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.evaluators.accuracy import Judge, graded
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.kernels import stored_bytes
from trimtab.search.finish.export import IN_WORDS, ExportCheck, export_candidate
from trimtab.search.finish.run_link import PATIENCE
from trimtab.search.loop.best_policy import write_policy
from trimtab.search.loop.candidates import CandidateFolder
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.preference import preferred
from trimtab.search.progress import Progress
from trimtab.search.setup.budgets import describe
from trimtab.search.setup.config import FinishConfig
from trimtab.search.setup.setting import Setting
from trimtab.search.training.recipe import Recipe
from trimtab.search.training.trainer import train
from trimtab.search.training.training import Lessons
from trimtab.search.training.training import Progress as Steps
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.candidate_file import Provenance, load_candidate, save_candidate

__all__ = ["FINISHED", "Finished", "finish", "judged"]

#: What a finished network is called among those whose final figure is read.
FINISHED = "finished"

#: Epochs where nothing else is asked; of data sets so small that these are fewer than STEPS steps, as many as those.
EPOCHS, STEPS = 15.0, 1500

#: The uniform int8 form, which predicts in half the time, is the teacher where it is no further, in nats, from the
#: network as given.
AS_GIVEN = 0.01

#: What is within so many nats of the network as given has nothing to learn from it.
NOTHING_TO_LEARN = 1e-3

#: A batch is so small that an epoch has at least so many steps.
STEPS_AT_LEAST = 8


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
    contenders: Sequence[Evaluation],
    candidates: CandidateFolder,
    folder: Path,
    progress: Progress,
    again: bool = False,
) -> Finished | None:
    """Train every contender for a short while and the one that is then preferred to the end, and export that one.

    Contenders were verified; the first one is the best so far. None where training made nothing better within the
    budgets: the run then stays as it was, and what was trained lies in the folder `finishing` to be measured again.
    What has been trained of an interrupted finishing is not trained again, nor, unless `again` asks for that, a
    contender that was finished before.
    """
    return _Finishing(setting, bench, candidates, folder, progress).run(contenders, again)


class _Finishing:
    """One finishing, in a folder of its own in the run's: a file for each network that was trained, and checkpoints."""

    def __init__(
        self, setting: Setting, bench: LatencyBench, candidates: CandidateFolder, folder: Path, progress: Progress
    ) -> None:
        self.setting, self.problem, self.bench = setting, setting.problem, bench
        self.candidates, self.run_folder, self.progress = candidates, folder, progress
        self.asked = self.problem.config.finish or FinishConfig()
        self.folder = folder / "finishing"
        self.processes = self.asked.processes or len(os.sched_getaffinity(0))

    def run(self, contenders: Sequence[Evaluation], again: bool) -> Finished | None:
        if not again and contenders[0].loss <= NOTHING_TO_LEARN:
            self.progress.line("the winner predicts what the network as given does: there is nothing to train")
            return None
        known = None if again else self._known(contenders)
        trained = self._trained_now(contenders) if known is None else known
        finished = self._accepted(trained, contenders[0])
        if finished is not None and known is None:
            policy, provenance = finished.evaluation.policy, Provenance("finished", trained.found)
            self.candidates.finish(policy, finished.candidate, provenance, self.problem.space)
        if finished is not None:
            write_policy(self.run_folder, finished.evaluation.policy)
            rmtree(self.folder, ignore_errors=True)
        return finished

    def _known(self, contenders: Sequence[Evaluation]) -> Finished | None:
        """The first contender that was finished before."""
        for each in contenders:
            candidate, provenance = self.candidates.current(self.problem.judge, each.policy)
            if provenance.stage == "finished":
                return Finished(judged(self.problem.judge, each, candidate), candidate, provenance.recipe)
        return None

    def _trained_now(self, contenders: Sequence[Evaluation]) -> Finished:
        """Train; what was found then says of the whole finishing how it went."""
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        trained, begun = self._best_trained(contenders)
        before = next(each for each in contenders if each.policy == trained.evaluation.policy)
        found = {
            **trained.found,
            "accuracy_before": before.accuracy,
            "loss_before": before.loss,
            "seconds": time.perf_counter() - started,
            "begun": [{**each.found, "policy": each.evaluation.policy.id} for each in begun],
        }
        return replace(trained, found=found)

    def _best_trained(self, contenders: Sequence[Evaluation]) -> tuple[Finished, list[Finished]]:
        """Return the network that was trained to the end, and what the short trainings before it gave."""
        if len(contenders) == 1:
            return self._trained(contenders[0], 1.0, "trained"), []
        share = self.asked.first / len(contenders)
        begun = [self._trained(each, share, "begun") for each in contenders]
        chosen = preferred(each.evaluation for each in begun)
        best = next(each for each in begun if each.evaluation is chosen)
        return self._trained(best.evaluation, 1 - self.asked.first, "trained", best.candidate), begun

    def _accepted(self, trained: Finished, best: Evaluation) -> Finished | None:
        """Return the network measured and exported, if it is better than the best so far, within every budget."""
        if preferred([best, trained.evaluation]) is best:
            self.progress.line("training made nothing that is preferred to what was found: it stays as it was")
            rmtree(self.folder, ignore_errors=True)
            return None
        return self._exported(replace(trained, evaluation=self._measured(trained)))

    @cached_property
    def _lessons(self) -> Lessons:
        judge, space, splits = self.problem.judge, self.problem.space, self.problem.splits
        teacher = judge.candidate(space.int8())
        if judge.loss(judge.logits(teacher, judge.images)) > AS_GIVEN:
            teacher = judge.candidate(space.base())
        return Lessons(*splits.train(), splits.augmentation, lower(teacher))

    @property
    def _kept(self) -> str:
        return (
            f"the winner stays as it was, and trimtab finish {self.run_folder} --resume measures the trained one again"
        )

    def _measured(self, trained: Finished) -> Evaluation:
        """The evaluation with what the trained network takes of every budget."""
        baseline, seconds = self.setting.baseline, PATIENCE * self.problem.config.measure.final_seconds
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
        target = self.run_folder / "export"
        rmtree(target, ignore_errors=True)
        place.rename(target)
        moved = [replace(check, path=str(target / Path(check.path).name)) for check in checks]
        return replace(trained, evaluation=evaluation, checks=moved)

    def _trained(self, of: Evaluation, share: float, stage: str, start: Candidate | None = None) -> Finished:
        """Train a candidate for a share of all that may be, or open what an interrupted finishing left of it."""
        file = self.folder / f"{of.policy.id}.{stage}.safetensors"
        if file.is_file():
            candidate, provenance = load_candidate(file, self.problem.space)
            return Finished(judged(self.problem.judge, of, candidate), candidate, dict(provenance.recipe))
        if start is None:
            start, _ = self.candidates.current(self.problem.judge, of.policy)
        recipe, begun, last = self._recipe(of, share), time.perf_counter(), Steps(0, 0, 0.0, 0.0)
        with self.progress.bar(f"{'finishing' if stage == 'trained' else 'trying'} {of.policy.id[:8]}") as bar:

            def tell(steps: Steps) -> None:
                nonlocal last
                last = steps
                bar.total(steps.steps)
                bar.update(steps.done, f"loss {steps.loss:.3f}, {steps.rate:.0f} images/s")

            candidate = train(
                start,
                self.problem.space.normalised,
                self._lessons,
                recipe,
                processes=self.processes,
                seconds=share * self.asked.time,
                checkpoint=self.folder / f"{of.policy.id}.{stage}.checkpoint",
                tell=tell,
            )
        now = judged(self.problem.judge, of, candidate)
        found = {
            "recipe": asdict(recipe),
            "steps": last.done,
            "epochs": last.done * recipe.batch / len(self._lessons.images),
            "images_per_second": last.rate,
            "processes": self.processes,
            "training": time.perf_counter() - begun,
            "accuracy": now.accuracy,
        }
        save_candidate(file, candidate, Provenance("begun", found), self.problem.space)
        return Finished(now, candidate, found)

    def _recipe(self, of: Evaluation, share: float) -> Recipe:
        """The recipe for a network of this loss: what lost much learns fast."""
        images = len(self._lessons.images)
        given = self.asked.model_dump(include=set(Recipe.__dataclass_fields__), exclude_none=True)
        batch = min(given.get("batch", Recipe.batch), max(2, images // STEPS_AT_LEAST))
        epochs = max(EPOCHS, STEPS * batch / images) if self.asked.epochs is None else self.asked.epochs
        usual = {"learning_rate": Recipe.learning_rate * min(1.0, of.loss) ** 0.5, "seed": self.problem.config.seed}
        return Recipe(**{**usual, **given, "batch": batch, "epochs": share * epochs})


def judged(judge: Judge, of: Evaluation, candidate: Candidate) -> Evaluation:
    """Return an evaluation with what a candidate of its policy answers to the selection images now."""
    logits = judge.logits(candidate, judge.images)
    return replace(of, answers=graded(logits, judge.labels), loss=judge.loss(logits))
