"""Text that the commands print on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from trimtab.search.finish.export import IN_WORDS
from trimtab.search.progress import LINE_EVERY
from trimtab.search.report.agent_rows import HEAD, agent_rows, form_rows, winning
from trimtab.search.report.contest_report import feasible_line, ranking
from trimtab.search.report.headline import change, gains, headline
from trimtab.search.report.markdown import markdown_table
from trimtab.search.report.run_report import kept_lines, measuring_line, training_line
from trimtab.search.report.watch import RunState, line_of, rendered
from trimtab.search.setup.budgets import describe
from trimtab.search.setup.metric import ACCURACY, ShownMetric

__all__ = [
    "markdown_rows",
    "print_contest",
    "print_evaluation",
    "print_facts",
    "print_rows",
    "print_space",
    "print_summary",
    "show_states",
]


ONE_MAC = "1 MAC = 1 multiply-accumulate."


def _console() -> Console:
    """Standard output; where it is not a terminal nothing is folded to eighty columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the agents side by side, the budgets, the checks, and where everything lies."""
    console = _console()
    console.print(_agents(summary))
    console.print(_budgets(summary))
    if (found := winning(summary)) is not None:
        console.print(_winner(*found, summary))
    for line in kept_lines(summary):
        console.print(line)
    console.print(summary["verdict"])
    error = summary["table_error"]
    if error["networks"]:
        console.print(
            f"Table against end to end: median error {error['median']:.1%}, largest {error['largest']:.1%} over "
            f"{error['networks']} networks; noise floor {summary['noise_floor']:.2%}."
        )
    console.print(f"Measuring took {measuring_line(summary['measuring'], summary['seconds'])}.")
    rates = summary["candidates_per_second"]
    alone = ", ".join(f"{rate:.2f} by {name}" for name, rate in rates.items() if name != "search")
    console.print(f"Candidates per second: {rates['search']:.2f} in the search; the winner alone {alone}.")
    if (finished := summary.get("finished")) is not None:
        console.print(f"Finished: {training_line(finished, ShownMetric.of(summary))}.")
    if (metric := ShownMetric.of(summary)) != ACCURACY:
        console.print(f"Judged by {metric.said}.", soft_wrap=True)
    console.print(f"Chosen on {summary['provenance']}. Agents' networks are repaired, not trained. {ONE_MAC}")
    for check in summary["exports"]:
        latency = check["latency"]
        console.print(
            f"Export {check['engine']}: the same on {check['agreement']:.2%}, largest difference of an output "
            f"{check['largest_difference']:.2g}, {latency['seconds'] * 1e3:.4f} ms = {latency['ratio']:.4f}x fp32 "
            f"there [{latency['low']:.4f}, {latency['high']:.4f}]"
        )
        console.print(f"  {check['path']} ({check['file_bytes'] / 1024:.1f} KiB)", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    console.print(
        f"Policy: {folder / 'policy.json'}" if summary["winner"] else "No policy met every budget.", soft_wrap=True
    )


def print_contest(summary: Mapping[str, Any], folder: Path) -> None:
    """Print a contest's tables, its verdicts, and where everything lies."""
    console = _console()
    for budget in summary["budgets"]:
        head, rows = ranking(budget)
        table = Table(title=f"{summary['network']} on {summary['data']}: {budget['budget']}")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        for text in budget["verdicts"]:
            console.print(text)
    console.print(feasible_line(summary))
    for row in summary["failed"]:
        console.print(escape(f"Failed: {row['budget']}, {row['agent']}, seed {row['seed']}: {row['error']}"))
    console.print(f"Report: {folder / 'compare.html'}", soft_wrap=True)


def show_states(states: Iterable[RunState]) -> None:
    """Show the states of a run in the same place, until they end or Ctrl-C does.

    Where there is no terminal, a line now and then, and the last state whole.
    """
    console = _console()
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                for state in states:
                    live.update(rendered(state), refresh=True)
            return
        said, at = None, 0.0
        for state in states:
            now = state.stage, sum(each.done for each in state.agents)
            if state.ended:
                console.print(rendered(state))
            elif now != said or time.monotonic() - at >= LINE_EVERY:
                console.print(escape(line_of(state)), soft_wrap=True)
                said, at = now, time.monotonic()


def _agents(summary: Mapping[str, Any]) -> Table:
    table = Table(title=f"{summary['network']} on {summary['data']}, {summary['engine']}, seed {summary['seed']}")
    for column in HEAD:
        table.add_column(column, justify="left" if not column else "right")
    for row in form_rows(summary):
        table.add_row(row.name, *row.cells)
    table.add_section()
    for row in agent_rows(summary):
        table.add_row(f"{row.name} ({', '.join(row.remarks)})" if row.remarks else row.name, *row.cells)
    return table


def _winner(agent: str, best: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What the winner is beside the network as given, and beside its int8 form."""
    base, trained = summary["base"], ", trained" if summary.get("finished") else ""
    metric = ShownMetric.of(summary)
    beside = gains(best, summary["int8"])
    return (
        f"Winner ({agent}'s{trained}) beside the network as given: {headline(best, base)}, {metric.name} "
        f"{change(best)} {metric.points} (paired standard error); beside its int8 form: {beside['size']}, "
        f"{beside['latency_seconds']}."
    )


def _budgets(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Budgets")
    for column in ("", "asked", "limit", "winner", "met"):
        table.add_column(column, justify="left" if not column else "right")
    found = winning(summary)
    best = None if found is None else found[1]
    for budget in summary["budgets"]:
        name = budget["name"]
        if best is None:
            value, met = "–", "–"
        else:
            reached = budget["limit"] * (1 + best["violations"][name])
            value = describe(name, best["latency_seconds"] if name == "latency" else reached)
            met = "yes" if best["violations"][name] <= 0 else "no"
        table.add_row(name, budget["asked"], describe(name, budget["limit"]), value, met)
    return table


def _verdict(found: Mapping[str, Any]) -> str | None:
    if found["verdict"] is None:
        return None
    share = "takes {:.1%} of it [{:.1%}, {:.1%}]".format(*found["budget_share"])
    return f"{IN_WORDS[found['verdict']]} of {found['budget']}: {share}"


def print_evaluation(found: Mapping[str, Any]) -> None:
    """Print one policy's figures."""
    latency, metric = found["latency"], ShownMetric.of(found)
    print_facts(
        {
            "policy": found["policy"],
            "engine": found["engine"],
            "metric": metric.said,
            f"proxy {metric.name}": metric.figure(found["accuracy"]),
            "loss": f"{found['loss']:.3g}: {metric.loss}",
            f"final {metric.name}": metric.figure(found["final_accuracy"]),
            **{f"{name} images": f"{kept['said']} points" for name, kept in (found["kept"] or {}).items()},
            "chosen on": found["provenance"],
            "latency": f"{latency['seconds'] * 1e3:.4f} ms = {latency['ratio']:.4f}x fp32 "
            f"[{latency['low']:.4f}, {latency['high']:.4f}], {latency['blocks']} blocks in {latency['took']:.1f} s, "
            f"stopped by {latency['stopped_by']}",
            "latency vs int8": "{:.4f}x [{:.4f}, {:.4f}]".format(*found["to_int8"]),
            "latency budget": _verdict(found),
            "noise floor": f"{found['noise_floor']:.2%}",
            "size": describe("size", found["size"]),
            "macs": describe("macs", found["macs"]) + " (one multiply-accumulate = 1)",
            "memory": describe("memory", found["memory"]),
            "kernels": ", ".join(f"{count} {name}" for name, count in found["kernels"].items()) or None,
        }
    )


def print_space(found: Mapping[str, Any]) -> None:
    """Print layers, groups, and every choice with its price, and why some are not offered."""
    console = _console()
    layers = Table("layer", "kind", "weight", "channel group", title="Layers")
    for row in found["layers"]:
        layers.add_row(
            row["layer"] + (" (fixed)" if row["fixed"] else ""),
            row["kind"],
            "x".join(map(str, row["shape"])),
            row["group"] or "-",
        )
    console.print(layers)
    base = found["base"]
    table = Table("knob", "choice", "latency", "size", "time off what it changes", "not offered", title="Choices")
    for knob, offers in groupby(found["choices"], key=itemgetter("knob")):
        for i, offer in enumerate(offers):
            seconds, size = offer["seconds"] / base["seconds"], offer["size"] / base["size"]
            gain = f"{offer['gain']:.1%}"
            table.add_row(
                knob if i == 0 else "", offer["choice"], f"{seconds:.3f}x", f"{size:.3f}x", gain, offer["why"]
            )
        table.add_section()
    console.print(table)
    gone = sum(bool(offer["why"]) for offer in found["choices"])
    digits = found["digits"]
    console.print(
        f"{len(found['choices'])} choices, {gone} of them gain nothing on {found['engine']} "
        f"{_priced_for(found)}" + ("." if found["dropped"] else ", but are kept (space.drop_pointless: false).")
    )
    console.print(
        f"Policies: 10^{digits['all']:.1f}; offered: 10^{digits['offered']:.1f}. Costs are relative to the "
        "network as given; each choice is priced with all other layers at the uniform int8 form."
    )


def _priced_for(found: Mapping[str, Any]) -> str:
    budgets = ", ".join(f"{name} {value}" for name, value in found["budgets"].items())
    asked = [f"for the least {found['minimise']}"] * (found["minimise"] is not None)
    return ", ".join([*asked, *[f"under the budgets {budgets}"] * bool(budgets)])


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, a line each."""
    console = Console(highlight=False)
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        shown = ", ".join(map(str, shown)) if isinstance(shown, list) else shown
        console.print(f"{name:<{width}}{'–' if shown is None else shown}", soft_wrap=True)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of the same keys as a table."""
    if not rows:
        return
    table = Table()
    for name, number in _columns(rows).items():
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*[_cell(row, name) for name in _columns(rows)])
    _console().print(table)


def markdown_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same keys as a Markdown table."""
    columns = _columns(rows)
    head = [name.replace("_", " ") for name in columns]
    cells = [[_cell(row, name) for name in columns] for row in rows]
    return markdown_table(head, cells, list(columns.values()))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Column -> whether it holds numbers. Those that are empty in every row are left out, and X_low and X_high belong
    to X."""
    bounds = {f"{name}_{end}" for name in rows[0] for end in ("low", "high")} if rows else set()
    filled = [
        name for name in (rows[0] if rows else ()) if name not in bounds and any(r[name] is not None for r in rows)
    ]
    return {name: not any(isinstance(row[name], str | Mapping) for row in rows) for name in filled}


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if row.get(f"{name}_low") is not None:
        return f"{value:.4g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part:.4g}" for key, part in value.items())
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
