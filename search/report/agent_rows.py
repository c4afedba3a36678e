"""The table of a run's agents, as text: the console and the page show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["HEAD", "AgentRow", "agent_rows", "form_rows"]

HEAD = ("", "evaluated", "feasible", "proxy", "loss", "final", "latency / fp32", "ms", "KiB", "MMAC")


@dataclass(frozen=True)
class AgentRow:
    """A row: its name, remarks on it, and the cells under all of HEAD but the first."""

    name: str
    remarks: tuple[str, ...]
    cells: tuple[str, ...]


def form_rows(summary: Mapping[str, Any]) -> list[AgentRow]:
    """Return the rows of the network as given and of its uniform int8 form."""
    base = summary["base"]
    rows = []
    for name, form in (("as given", base), ("uniform int8", summary["int8"])):
        accuracies = (f"{form['accuracy']:.2%}", "", f"{form['final_accuracy']:.2%}")
        ratio = f"{form['latency'] / base['latency']:.4f}×"
        rows.append(AgentRow(name, (), ("", "", *accuracies, ratio, *_costs(form, "latency"))))
    return rows


def agent_rows(summary: Mapping[str, Any]) -> list[AgentRow]:
    """Return the row of every agent, with the figures of the best network that it found."""
    winner = summary["winner"]
    return [_agent_row(row, winner is not None and winner["agent"] == row["agent"]) for row in summary["agents"]]


def _agent_row(row: Mapping[str, Any], wins: bool) -> AgentRow:
    best = row["best"]
    remarks = ("asked for",) * row["chosen"] + ("no winner",) * (best is None) + ("winner",) * wins
    counts = (f"{row['evaluations']:d}", f"{row['feasible']:d}")
    if best is None:
        return AgentRow(row["agent"], remarks, (*counts, *["–"] * (len(HEAD) - 3)))
    latency = best["latency"]
    accuracies = (f"{best['accuracy']:.2%}", f"{best['loss']:.3g}", f"{best['final_accuracy']:.2%}")
    ratio = f"{latency['ratio']:.4f}× [{latency['low']:.4f}, {latency['high']:.4f}]"
    return AgentRow(row["agent"], remarks, (*counts, *accuracies, ratio, *_costs(best, "latency_seconds")))


def _costs(values: Mapping[str, Any], latency: str) -> tuple[str, ...]:
    return f"{values[latency] * 1e3:.4g}", f"{values['size'] / 1024:.4g}", f"{values['macs'] / 1e6:.4g}"
