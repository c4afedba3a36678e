"""The contest's report: Markdown for a repository, one HTML file for a browser, from its summary's plain values."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from trimtab.files import write_text
from trimtab.search.loop.preference import rule
from trimtab.search.report.charts import curves_figure, series
from trimtab.search.report.markdown import markdown_table
from trimtab.search.report.run_report import duration, page, section, table
from trimtab.search.setup.budgets import describe
from trimtab.search.setup.config import said_trials
from trimtab.search.setup.metric import ShownMetric

__all__ = ["feasible_line", "ranking", "write_contest"]

Values = Mapping[str, Any]

_NOISE = (
    "An agent wins by more than the seed noise where its worst seed is better than the best seed of every other agent; "
    "of two agents that are alike, one does so by chance in 1 of 10 contests with 3 seeds each. Ranges are from the "
    "lowest to the highest seed."
)

_SCALED = "; accuracies here are that on the scale of agents, from 0 to 1, where the network as given is at 0.5"


def write_contest(summary: Values, folder: Path) -> None:
    """Write `compare.md` and `compare.html` into a contest's folder."""
    write_text(folder / "compare.md", _markdown(summary))
    write_text(folder / "compare.html", _html(summary))


def feasible_line(summary: Values) -> str:
    """Say how many candidates and winners were feasible."""
    counts = summary["feasible"]
    text = (
        "Evaluated candidates within every budget, latency by the table: "
        f"{_share(counts, 'on_the_table', 'evaluated')}. "
        "Reported winners within every budget, measured end to end alone on the machine: "
        f"{_share(counts, 'measured', 'winners')}; in {counts['first_choices']} of them the first choice passed."
    )
    missing = counts["without_winner"]
    return f"{text} {missing} trials found no policy that passed." if missing else text


def _share(counts: Values, part: str, whole: str) -> str:
    of = counts[whole]
    return f"{counts[part]} of {of} ({counts[part] / of:.1%})" if of else "none"


def ranking(budget: Values) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of one budget's table, as plain text."""
    agents = sorted(budget["agents"], key=lambda row: -_median(list(row["after"].values())[-1]))
    head = [
        "agent",
        *(f"best after {n}" for n in agents[0]["after"]),
        "hypervolume",
        "ms per ask: median, late, most",
        "evaluations per s",
        "winner's latency / int8",
        "winner's size / int8",
        "winner's proxy",
        "its loss",
        "winner, finished",
    ]
    return head, [_row(row) for row in agents]


def _row(row: Values) -> list[str]:
    return [
        row["agent"],
        *(_range(spread, 100, "{:.2f}") for spread in row["after"].values()),
        _range(row["hypervolume"], 1, "{:.3f}"),
        ", ".join(_range(row["asking"][key], 1e3, "{:.3g}", False) for key in ("median", "late", "largest")),
        _range(row["per_second"], 1, "{:.3g}", False),
        _range(row["latency"], 1, "{:.3f}"),
        _range(row["size"], 1, "{:.3f}"),
        _range(row["proxy_accuracy"], 100, "{:.2f}"),
        _range(row["loss"], 1, "{:.3g}"),
        _range(row["accuracy"], 100, "{:.2f}"),
    ]


def _median(spread: Values | None) -> float:
    return spread["median"] if spread else 0.0


def _range(spread: Values | None, scale: float, form: str, wide: bool = True) -> str:
    """A median and, where seeds differ, its range."""
    if spread is None:
        return "–"
    low, middle, high = (form.format(scale * spread[key]) for key in ("low", "median", "high"))
    return f"{middle} [{low}, {high}]" if wide and low != high else middle


def _reach_rows(budget: Values) -> tuple[list[str], list[list[str]]]:
    head = ["agent", *(f"{level:.1%}" for level in budget["levels"])]
    return head, [[row["agent"], *map(_reach, row["reach"])] for row in budget["agents"]]


def _reach(found: Values) -> str:
    if found["evaluations"] is None:
        return "never"
    count = _range(found["evaluations"], 1, "{:.4g}")
    return f"{count}; {_range(found['seconds'], 1, '{:.3g}', False)} s ({found['seeds']} seeds)"


def _facts(summary: Values) -> list[tuple[str, str]]:
    limit, metric = summary["time_limit"], ShownMetric.of(summary)
    facts = [
        ("images", f"chosen on {summary['provenance']}"),
        ("selection images", f"{summary['selection_images']:d}"),
        ("proxy", f"{summary['proxy']}, before any fine-tuning"),
        ("evaluations per trial", said_trials(summary["trials"])),
        ("time per trial", "not limited" if limit is None else duration(limit)),
        ("seeds", f"{summary['seeds']:d} of the agent; everything else is the same in all trials of a budget"),
        ("engine", summary["engine"]),
        ("processor", summary["cpu"]),
        ("feasible", feasible_line(summary)),
        ("seed noise", _NOISE),
        (
            "hypervolume",
            "of the feasible points of cost and accuracy, seen from the limit and the accuracy of chance: 1 would be a "
            "perfect network for nothing. The cost is the latency, or the first budget where latency has no limit",
        ),
        ("metric", f"{metric.said}{_SCALED * (metric.scale.given is not None)}"),
        ("best after", "the highest proxy accuracy, by the latency table"),
        ("winner", f"{rule(None, metric.loss)}; the first in this order whose finished network passed the measurement"),
        ("late", "the last tenth of a trial's evaluations"),
        ("winner, finished", "accuracy on the selection images of the network that was built and measured"),
    ]
    facts += [
        ("failed", f"{row['budget']}, {row['agent']}, seed {row['seed']}: {row['error']}") for row in summary["failed"]
    ]
    return facts


def _baseline(budget: Values) -> str:
    limits = ", ".join(f"{name} {describe(name, limit)}" for name, limit in budget["limits"].items())
    base, int8 = budget["base"], budget["int8"]
    return (
        f"Limits: {limits}; {budget['margin']:.1%} of the latency limit kept free for what prices and "
        "measurements may be off by. As given: "
        f"{base['accuracy']:.2%}, {base['latency'] * 1e3:.4g} ms, {base['size'] / 1024:.4g} KiB; uniform int8: "
        f"{int8['accuracy']:.2%}, {int8['latency'] * 1e3:.4g} ms, {int8['size'] / 1024:.4g} KiB."
    )


def _markdown(summary: Values) -> str:
    parts = [f"# Contest: {summary['network']} on {summary['data']}"]
    for budget in summary["budgets"]:
        parts += [f"## {budget['budget']}", "\n".join(f"- {text}" for text in budget["verdicts"]), _baseline(budget)]
        parts += [markdown_table(*ranking(budget))]
        if budget["levels"]:
            parts += ["Evaluations and seconds to reach a proxy accuracy:", markdown_table(*_reach_rows(budget))]
    parts += ["## How", "\n".join(f"- {term}: {text}" for term, text in _facts(summary))]
    return "\n\n".join(parts) + "\n"


def _html(summary: Values) -> str:
    title = f"Contest: {summary['network']} on {summary['data']}"
    lead = f'<p class="lead">{escape(feasible_line(summary))}</p>'
    body = f"<header><h1>{escape(title)}</h1>{lead}</header>"
    body += "".join(section(escape(budget["budget"]), _budget(budget)) for budget in summary["budgets"])
    facts = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _facts(summary))
    return page(title, body + section("How it was compared", f'<dl class="method">{facts}</dl>'))


def _budget(budget: Values) -> str:
    verdicts = "".join(f'<p class="verdict">{escape(text)}</p>' for text in budget["verdicts"])
    curves = {kind: {a["agent"]: a["curves"][kind] for a in budget["agents"]} for kind in ("evaluations", "seconds")}
    caption = "best proxy accuracy within every budget: median over seeds, and range"
    colours = series(budget)
    head, rows = ranking(budget)
    marked = [[f'<i class="key s{colours[row[0]]}"></i>{escape(row[0])}', *map(escape, row[1:])] for row in rows]
    parts = [
        verdicts,
        table(head, marked),
        f'<p class="note">{escape(_baseline(budget))}</p>',
        curves_figure(budget, curves["evaluations"], f"evaluations · {caption}", "Best accuracy against evaluations"),
        curves_figure(budget, curves["seconds"], f"seconds of search · {caption}", "Best accuracy against seconds"),
    ]
    if budget["levels"]:
        head, rows = _reach_rows(budget)
        parts.append("<p>Evaluations and seconds to reach a proxy accuracy:</p>")
        parts.append(table(head, [list(map(escape, row)) for row in rows]))
    return "".join(parts)
