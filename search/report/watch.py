"""The state of a run while it goes on, or after it, read from the files in its folder; nothing is written there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trimtab.errors import BadInput
from trimtab.search.finish.finishing import PROGRESS
from trimtab.search.loop.evaluation import Evaluation
from trimtab.search.loop.journal import Record, is_written, read_journal
from trimtab.search.loop.loop import Memory
from trimtab.search.loop.preference import preferred
from trimtab.search.report.agent_rows import winning
from trimtab.search.report.headline import change, headline
from trimtab.search.report.run_report import duration
from trimtab.search.report.summary import load_summary
from trimtab.search.setup.baseline import Baseline
from trimtab.search.setup.budgets import describe
from trimtab.search.setup.config import UNLIMITED
from trimtab.search.setup.metric import ShownMetric
from trimtab.spaces.policy import Policy

__all__ = ["AgentState", "BudgetState", "RunState", "follow", "line_of", "read_state", "rendered"]

#: What a run does in each stage that its journal names.
STAGES = {
    "search": "searching",
    "verification": "verifying the winners, and exporting",
    "finishing": "finishing",
}

#: Keys of a resolved configuration that are looked at.
KEYS = {"network", "data", "budgets", "agent", "baselines", "trials", "finish"}


@dataclass(frozen=True)
class AgentState:
    """An agent: the evaluations that are `done` and `asked` for (None: as many as there is time for), its seconds of
    search, and evaluations per second.

    `accuracy` is the metric of its preferred network within every budget, by the best knowledge of its cost, and `said`
    the same in words; None: there is none, or no `rate` yet. One that has `ended` with fewer evaluations had no more
    proposals, or no more time.
    """

    agent: str
    done: int
    asked: int | None
    seconds: float
    rate: float | None
    accuracy: float | None
    said: str | None
    ended: bool


@dataclass(frozen=True)
class BudgetState:
    """A budget, its `limit`, and what the best network takes of it, in seconds, bytes or MACs; None: there is none."""

    name: str
    asked: str
    limit: float
    best: float | None
    met: bool


@dataclass(frozen=True)
class RunState:
    """A run as its files show it.

    `words` say more of the stage. `left` is in seconds, and of this stage: while it searches an estimate by `rate`, the
    evaluations per second of the agent at work, and while it finishes the most that there is. `best` is the preferred
    network so far, which the agent `found_by` proposed; `result` is the headline of a run that is finished.
    """

    network: str
    stage: str
    words: str
    ended: bool
    agents: tuple[AgentState, ...]
    budgets: tuple[BudgetState, ...]
    rate: float | None
    left: float | None
    best: Evaluation | None
    found_by: str | None
    result: str | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; of the best network its policy's id, accuracy, loss and measured latency."""
        best = None
        if self.best is not None:
            ratio = None if self.best.latency is None else self.best.latency.ratio
            best = {"agent": self.found_by, "policy": self.best.policy.id, "accuracy": self.best.answers.value}
            best |= {"loss": self.best.loss, "latency_ratio": ratio}
        plain = {name: value for name, value in vars(self).items() if name != "found_by"}
        return plain | {name: [asdict(each) for each in plain[name]] for name in ("agents", "budgets")} | {"best": best}


def follow(folder: Path, every: float) -> Iterator[RunState]:
    """Yield the state of the run in a folder, again every so many seconds, until it has ended."""
    while True:
        state = read_state(folder)
        yield state
        if state.ended:
            return
        time.sleep(every)


def read_state(folder: Path, goes_on: bool | None = None) -> RunState:
    """Return the state of the run in a folder; a folder without one that has begun to search is a `BadInput`.

    Whether it `goes_on` is looked up on this machine, unless it is known from elsewhere.
    """
    config = _config(folder)
    # Asked before the journal is read: one that is closed after that is read to its end.
    goes_on = is_written(folder / "journal") if goes_on is None else goes_on
    records = read_journal(folder / "journal")
    setting = next((record.data for record in records if record.kind == "setting"), None)
    if setting is None or records[0].data.get("of") != "search":
        raise BadInput(f"{folder} is not the folder of a search that has begun")
    finished, baseline = records[-1].kind == "finished", Baseline.from_json(setting["baseline"])
    stage, since = _stage(records)
    memory = Memory(records)
    agents = _agents(config, memory, baseline, finished or stage != "search")
    found = {policy.id: name for name in reversed(memory.events) for policy in _asked(memory, name)}
    best = preferred(each for each in _evaluated(records, memory, baseline) if each.feasible)
    rate = next((each.rate for each in reversed(agents) if each.rate is not None), None)
    words, left = "", None
    if goes_on and not finished:
        if stage == "search":
            left = _left(_allowed(records), agents, rate)
        elif stage == "finishing":
            words, left = _training(folder, config, since)
    elif not finished:
        words = f"no process on this machine goes on with it; trimtab search --resume --out {folder} does"
    doing = STAGES.get(stage, stage)
    return RunState(
        network=f"{_network(config)} on {config['data']['name']}",
        stage="finished" if finished else doing if goes_on else f"stopped while {doing}",
        words=words,
        ended=finished or not goes_on,
        agents=agents,
        budgets=tuple(_budget(name, str(config["budgets"][name]), best, baseline) for name in baseline.limits),
        rate=rate,
        left=left,
        best=best,
        found_by=None if best is None else found.get(best.policy.id),
        result=_result(folder) if finished else None,
    )


def rendered(state: RunState) -> RenderableType:
    """Return what a terminal shows of a run."""
    lines = [_heading(state), _best(state), _pace(state)]
    shown = [Text(line) for line in lines if line]
    return Group(*shown, _budget_table(state.budgets), _agent_table(state.agents))


def line_of(state: RunState) -> str:
    """Return the same in a line."""
    done, asked = sum(each.done for each in state.agents), _all_asked(state.agents)
    parts = (_heading(state), f"{_done(done, asked)} evaluations", _best(state), _pace(state))
    return "; ".join(filter(None, parts))


def _heading(state: RunState) -> str:
    return f"{state.network}: {state.stage}" + (f", {state.words}" if state.words else "")


def _pace(state: RunState) -> str:
    rate = "" if state.rate is None or state.stage != STAGES["search"] else f"{state.rate:.2f} evaluations per second"
    most = "at most" if state.stage == STAGES["finishing"] else "about"
    return ", ".join(filter(None, (rate, "" if state.left is None else f"{most} {duration(state.left)} left")))


def _best(state: RunState) -> str:
    best = state.best
    if state.result is not None:
        return state.result
    if best is None:
        return "no network within every budget yet"
    latency, known = best.cost.latency, "predicted"
    if best.latency is not None:
        latency, known = best.latency.seconds, "measured"
    return (
        f"best so far: {best.answers.said()}, loss {best.loss:.3g}, {describe('latency', latency)} {known}, "
        f"{describe('size', best.cost.size)}, {describe('macs', best.cost.macs)} ({state.found_by})"
    )


def _budget_table(budgets: Sequence[BudgetState]) -> Table:
    table = Table("budget", "asked", "limit", "best", "met")
    for each in budgets:
        best, met = "–", "–"
        if each.best is not None:
            best, met = describe(each.name, each.best), "yes" if each.met else "no"
        table.add_row(each.name, each.asked, describe(each.name, each.limit), best, met)
    return table


def _agent_table(agents: Sequence[AgentState]) -> Table:
    table = Table("agent", "evaluations", "best", "seconds", "")
    for each in agents:
        best = each.said or "–"
        at = "done" if each.ended else "at work" if each.done else ""
        table.add_row(escape(each.agent), _done(each.done, each.asked), best, f"{each.seconds:.0f}", at)
    return table


def _config(folder: Path) -> dict[str, Any]:
    """The configuration, read as plain values: nothing that it names is imported to look at a run."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{folder} is not a run: its config.yaml cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{folder} is not a run: its config.yaml is not YAML") from error
    sections = ("network", "data", "budgets", "finish")
    if not (isinstance(config, dict) and config.keys() >= KEYS and all(isinstance(config[s], dict) for s in sections)):
        raise BadInput(f"{folder} is not a run: its config.yaml is not one that a run has written")
    return config


def _network(config: Mapping[str, Any]) -> str:
    network = config["network"]
    return str(network.get("zoo") or network.get("torchvision") or network.get("import"))


def _stage(records: Sequence[Record]) -> tuple[str, float]:
    """The stage that the run is in, or was, and when it began."""
    return next(
        ((r.data["stage"], r.time) for r in reversed(records) if r.kind == "stage"), ("search", records[-1].time)
    )


def _all_asked(agents: Sequence[AgentState]) -> int | None:
    return None if any(each.asked is None for each in agents) else sum(each.asked or 0 for each in agents)


def _done(done: int, asked: int | None) -> str:
    """How many of the evaluations that were asked for are done; of as many as there is time for, how many."""
    return str(done) if asked is None else f"{done} of {asked}"


def _asked(memory: Memory, agent: str) -> list[Policy]:
    return [policy for batch in memory.batches(agent) for policy in batch.policies]


def _agents(config: Mapping[str, Any], memory: Memory, baseline: Baseline, over: bool) -> tuple[AgentState, ...]:
    names = list(dict.fromkeys((*config["baselines"], config["agent"])))
    begun = [i for i, name in enumerate(names) if name in memory.events]
    return tuple(
        _agent(name, config["trials"], memory, baseline, over or any(later > i for later in begun))
        for i, name in enumerate(names)
    )


def _agent(name: str, trials: int, memory: Memory, baseline: Baseline, over: bool) -> AgentState:
    judged = [each.id for each in _asked(memory, name) if each.id in memory.judged]
    best = preferred(e for e in (memory.measured_evaluation(id_, baseline.limit) for id_ in judged) if e.feasible)
    told = memory.run(name)
    return AgentState(
        agent=name,
        done=len(judged),
        asked=trials if trials < UNLIMITED else None,
        seconds=told.seconds,
        rate=len(told.evaluations) / told.seconds if told.seconds else None,
        accuracy=None if best is None else best.answers.value,
        said=None if best is None else best.answers.said(),
        ended=over or len(judged) >= trials,
    )


def _evaluated(records: Sequence[Record], memory: Memory, baseline: Baseline) -> Iterable[Evaluation]:
    """What every judged policy is worth, by the best knowledge: of networks that were verified, what was found then."""
    known = {name: memory.measured_evaluation(name, baseline.limit) for name in memory.judged}
    verified = [Evaluation.from_json(record.data["evaluation"]) for record in records if record.kind == "verified"]
    return (known | {each.policy.id: each for each in verified}).values()


def _allowed(records: Sequence[Record]) -> float | None:
    """The seconds that a time limit leaves the search; None without one."""
    stages = [record.data for record in records if record.kind == "stage" and record.data["stage"] == "search"]
    return stages[-1].get("seconds") if stages else None


def _left(allowed: float | None, agents: Sequence[AgentState], rate: float | None) -> float | None:
    """Seconds of search that are left, where a rate is known or a time limit ends it."""
    most = None if allowed is None else max(0.0, allowed - sum(each.seconds for each in agents))
    if rate is None or _all_asked(agents) is None:
        return most
    estimate = sum(((each.asked or 0) - each.done) / (each.rate or rate) for each in agents if not each.ended)
    return estimate if most is None else min(estimate, most)


def _training(folder: Path, config: Mapping[str, Any], since: float) -> tuple[str, float | None]:
    """How far the training is, and the most seconds that are left of it."""
    asked, contenders = config["finish"], 1
    with suppress(OSError, ValueError):
        order = json.loads((folder / "finishing" / "order.json").read_text())
        asked, contenders = order["asked"], len(order["contenders"])
    left = max(0.0, asked["time"] - (time.time() - since))
    try:
        at = json.loads((folder / "finishing" / PROGRESS).read_text())
    except (OSError, ValueError):
        return "", left
    which = "the winner"
    if at["stage"] == "tried":
        before = [file for file in (folder / "finishing").glob("*.tried.safetensors") if at["policy"] not in file.name]
        which = f"network {1 + len(before)} of {contenders} on trial"
    elif at["done"]:
        left = min(left, at["seconds"] * (at["steps"] / at["done"] - 1))
    return (
        f"training {which}: step {at['done']} of {at['steps']}, loss {at['loss']:.3f}, {at['rate']:.0f} images/s",
        left,
    )


def _budget(name: str, asked: str, best: Evaluation | None, baseline: Baseline) -> BudgetState:
    limit = baseline.limits[name]
    if best is None:
        return BudgetState(name, asked, limit, None, False)
    takes = best.cost.get(name)
    if name == "latency" and best.latency is not None:
        takes = best.latency.ratio * baseline.base.latency
    return BudgetState(name, asked, limit, takes, best.violations[name] <= 0)


def _result(folder: Path) -> str | None:
    """The headline of a finished run; None where its summary is of another version."""
    try:
        summary = load_summary(folder)
    except BadInput:
        return None
    found = winning(summary)
    if found is None:
        return "no winner: no network was measured within every budget"
    metric = ShownMetric.of(summary)
    return (
        f"winner: {metric.name} {change(found[1])} {metric.points}, {headline(found[1], summary['base'])} ({found[0]})"
    )
