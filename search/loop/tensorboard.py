"""The scalars of a run for TensorBoard: what each evaluation brought, by agent; the journal stays the truth."""

from __future__ import annotations

import time
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.files import file_name
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.loop import AgentRun
from trimtab.search.progress import Progress
from trimtab.search.setup.baseline import Baseline

__all__ = ["Scalars"]


class Scalars:
    """Writes the evaluations of a run's agents as event files, `folder`/AGENT: `tensorboard --logdir RUN` shows them.

    The step of a scalar is the number of the evaluation, from 1 on; costs are shares of those of the network as given,
    the latency as the table predicts it. What an earlier process wrote of an agent is written anew.
    """

    def __init__(self, folder: Path, baseline: Baseline) -> None:
        self.folder, self.base = folder, baseline.base
        self._writer: Any = None
        self._agent = ""
        self._written, self._best = 0, 0.0
        self._failed = False

    def follow(self, run: AgentRun, progress: Progress) -> None:
        """Add the evaluations that an agent was told of since the last time; where that fails, say so once."""
        if self._failed:
            return
        try:
            if run.agent != self._agent:
                self._open(run.agent)
            for number in range(self._written, len(run.evaluations)):
                self._write(number + 1, run.evaluations[number], time.time() - run.seconds + run.moments[number])
            self._written = len(run.evaluations)
            self._writer.flush()
        except OSError as error:
            self._failed = True
            progress.line(f"scalars for TensorBoard cannot be written ({error.strerror}); the run goes on without them")

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None and not self._failed:
            self._writer.close()

    def _open(self, agent: str) -> None:
        # Not its SummaryWriter: that hands events to a thread, and waits for it for ever once the disk is full.
        from tensorboardX.event_file_writer import EventsWriter

        self.close()
        place = self.folder / file_name(agent)
        rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self._writer, self._agent, self._written, self._best = EventsWriter(str(place / "events")), agent, 0, 0.0

    def _write(self, step: int, evaluation: Evaluation, moment: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if evaluation.feasible:
            self._best = max(self._best, evaluation.accuracy)
        scalars = {**self._scalars(evaluation), **({"best_accuracy": self._best} if self._best else {})}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.write_event(Event(wall_time=moment, step=step, summary=Summary(value=values)))

    def _scalars(self, evaluation: Evaluation) -> dict[str, float]:
        cost, base = evaluation.cost, self.base
        return {
            "accuracy": evaluation.accuracy,
            "loss": evaluation.loss,
            "latency": cost.latency / base.latency,
            "size": cost.size / base.size,
            "macs": cost.macs / base.macs,
            "feasible": float(evaluation.feasible),
            "seconds": sum(evaluation.seconds.values()),
        }
