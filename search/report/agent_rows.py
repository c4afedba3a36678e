"""The table of a run's agents, as text: the console and the page show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.search.report.headline import change
from trimtab.search.setup.metric import ShownMetric

__all__ = ["HEAD", "AgentRow", "agent_rows", "form_rows", "winning"]

HEAD = ("", "feasible", "proxy", "loss", "final", "change", "latency / fp32", "MACs / fp32", "ms", "KiB")


@dataclass(frozen=True)
class AgentRow:
    """A row: its name, remarks on it, and the cells under all of HEAD but the first."""

    name: str
    remarks: tuple[str, ...]
    cells: tuple[str, ...]


def form_rows(summary: Mapping[str, Any]) -> list[AgentRow]:
    """Return the rows of the network as given and of its uniform int8 form."""
    base, metric = summary["base"], ShownMetric.of(summary)
    rows = []
    for name, form in (("as given", base), ("uniform int8", summary["int8"])):
        accuracies = (metric.figure(form["accuracy"]), "", metric.figure(form["final_accuracy"]), "")
        ratio = f"{form['latency'] / base['latency']:.4f}×"
        rows.append(AgentRow(name, (), ("", *accuracies, ratio, *_costs(form, "latency", base))))
    return rows


def agent_rows(summary: Mapping[str, Any]) -> list[AgentRow]:
    """Return the row of every agent, with the figures of the best network that it found, before any training; and of
    the one that was finished."""
    found, base, metric = winning(summary), summary["base"], ShownMetric.of(summary)
    rows = [_agent_row(row, base, metric, found is not None and row["best"] is found[1]) for row in summary["agents"]]
    if found is not None and (finished := summary.get("finished")) is not None:
        rows.append(
            AgentRow("finished", (f"{found[0]}'s, trained", "winner"), ("", *_measured(finished, base, metric)))
        )
    return rows


def winning(summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Return who found the winner, and its figures: those after training, where it was trained. None: there is none."""
    if summary["winner"] is None:
        return None
    agent = summary["winner"]["agent"]
    rows = {row["agent"]: row for row in summary["agents"]}
    return agent, summary.get("finished") or rows[agent]["best"]


def _agent_row(row: Mapping[str, Any], base: Mapping[str, Any], metric: ShownMetric, wins: bool) -> AgentRow:
    best = row["best"]
    remarks = ("asked for",) * row["chosen"] + ("no winner",) * (best is None) + ("winner",) * wins
    feasible = f"{row['feasible']:d} of {row['evaluations']:d}"
    if best is None:
        return AgentRow(row["agent"], remarks, (feasible, *["–"] * (len(HEAD) - 2)))
    return AgentRow(row["agent"], remarks, (feasible, *_measured(best, base, metric)))


def _measured(network: Mapping[str, Any], base: Mapping[str, Any], metric: ShownMetric) -> tuple[str, ...]:
    """The cells of a network that was measured."""
    latency = network["latency"]
    accuracies = (
        metric.figure(network["accuracy"]),
        f"{network['loss']:.3g}",
        metric.figure(network["final_accuracy"]),
    )
    ratio = f"{latency['ratio']:.4f}× [{latency['low']:.4f}, {latency['high']:.4f}]"
    return (*accuracies, change(network), ratio, *_costs(network, "latency_seconds", base))


def _costs(values: Mapping[str, Any], latency: str, base: Mapping[str, Any]) -> tuple[str, ...]:
    macs = f"{values['macs'] / base['macs']:.3f}×"
    return macs, f"{values[latency] * 1e3:.4g}", f"{values['size'] / 1024:.4g}"
