"""The report: a run's `summary.json` as one HTML file that opens anywhere, with nothing fetched.

The charts are inline SVG with a few lines of script for tooltips, not plotly: its script alone is 4.8 MB in every
report, does not follow the reader's light or dark setting and prints badly. A whole report is 50 KB and half
a KB per evaluation so, and a policy that forbids every fetch is written into the file itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trimtab.errors import BadInput
from trimtab.files import write_text
from trimtab.search.loop.preference import rule
from trimtab.search.report.agent_rows import HEAD, AgentRow, agent_rows, form_rows, winning
from trimtab.search.report.charts import SERIES, pareto_figure, policy_figure, series, time_figure, trace_figure
from trimtab.search.report.headline import Gain, change, gains, points
from trimtab.search.report.summary import load_summary
from trimtab.search.setup.budgets import describe
from trimtab.search.setup.config import said_trials
from trimtab.search.setup.metric import ShownMetric

__all__ = [
    "duration",
    "kept_lines",
    "measuring_line",
    "page",
    "render",
    "section",
    "table",
    "training_line",
    "write_report",
]

Values = Mapping[str, Any]

NO_BREAK = "\N{NO-BREAK SPACE}"

#: Why a measurement ended.
STOPS = {
    "interval": "its interval was narrow enough",
    "decision": "it was decided that the budget is met, and its interval was narrow enough",
    "time": "its time was up",
}


def write_report(folder: Path) -> Path:
    """Write `report.html` from the `summary.json` of a run's folder; one that cannot be used is a `BadInput`."""
    summary = load_summary(folder)
    try:
        page = render(summary)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / 'summary.json'} is not a run's summary: {type(error).__name__}: {error}") from error
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render(summary: Values) -> str:
    """Return the page, in ASCII: whatever encoding it is written or served in, it reads the same."""
    title, named = f"{summary['network']} on {summary['data']}", ShownMetric.of(summary).name
    named = named[0].upper() + named[1:]
    body = "".join(
        (
            _headline(summary, title),
            section("Agents side by side", _agents(summary)),
            section(f"{escape(named)} against latency", pareto_figure(summary)),
            section("What each evaluation brought", trace_figure(summary)),
            section("What was decided for each layer", _policy(summary)),
            section("Where the time goes", _times(summary)),
            section("Exports, run back", _exports(summary["exports"], ShownMetric.of(summary))),
            section("How it was measured", _method(summary)),
        )
    )
    return page(title, body)


def page(title: str, body: str) -> str:
    """Return a whole page, in ASCII, that fetches nothing."""
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} – trimtab</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark"><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        f"'unsafe-inline'; script-src 'unsafe-inline'\"><style>{_style()}</style></head><body><main>{body}</main>"
        f'<div id="tip" hidden></div><script>{_SCRIPT}</script></body></html>\n'
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def section(title: str, content: str) -> str:
    """Return a headed part of a page."""
    return f"<section><h2>{title}</h2>{content}</section>"


def _headline(summary: Values, title: str) -> str:
    found = winning(summary)
    if found is None:
        tried = sum(agent["evaluations"] for agent in summary["agents"])
        fit = sum(agent["feasible"] for agent in summary["agents"])
        lead = (
            f"<strong>No winner:</strong> no network {_asked(summary)}. {tried} were evaluated, "
            f"{fit} of them were within every budget by the best knowledge of their cost."
        )
        best, cards = None, ""
    else:
        agent, best = found
        met = "Every" if all(violation <= 0 for violation in best["violations"].values()) else "Not every"
        lead = f"{met} budget is met, verified on the network that {escape(agent)} found{_then_trained(summary)}."
        cards = f'<div class="cards">{_cards(best, summary["base"], summary["int8"], ShownMetric.of(summary))}</div>'
    header = f'<header><h1>{escape(title)}</h1><p class="lead">{lead}</p>{cards}</header>'
    return header + _budgets(summary, best) + "".join(f"<p>{escape(line)}</p>" for line in kept_lines(summary))


def _asked(summary: Values) -> str:
    if summary.get("minimise") is None:
        return "met every budget when it was measured"
    return "was shown to keep the accuracy, within every other budget, when it was measured"


def kept_lines(summary: Values) -> list[str]:
    """Say of a run that minimised a cost what the winner loses, there and on the final images, or else the nearest
    network; and what is known of the least cost. Nothing of another run."""
    if summary.get("minimise") is None:
        return []
    lines, found = [], winning(summary)
    if found is not None:
        selection, final = found[1]["kept"]["selection"], found[1]["kept"]["final"]
        lines.append(f"On the selection images, on which it was chosen, the winner {selection['said']} points.")
        held = "the bound holds" if final["kept"] else "the bound is not shown to hold"
        lines.append(f"On the final images, which no choice has seen, it {final['said']} points; {held} there.")
    elif summary["nearest"] is not None:
        nearest = summary["nearest"]
        lines.append(
            f"The nearest network, {nearest['policy']}, takes {nearest['share'][0]:.3f}x of the {summary['minimise']}, "
            f"and {nearest['kept']['said']} points."
        )
    return [*lines, summary["certificate"]]


def _then_trained(summary: Values) -> str:
    finished = summary.get("finished")
    return "" if finished is None else f" and that was then trained: {training_line(finished, ShownMetric.of(summary))}"


def training_line(finished: Values, metric: ShownMetric) -> str:
    """Say what training made of the network that was finished, and what it took."""
    training = finished["training"]
    before = finished["final_before"]
    final = f"{metric.figure(finished['final_accuracy'])} on the final images"
    return (
        f"{metric.figure(training['accuracy_before'])} → {metric.figure(finished['accuracy'])} on the selection "
        "images, "
        + (f"{metric.figure(before)} → {final}" if before is not None else final)
        + f", in {training['epochs']:.1f} epochs ({training['images_per_second']:.0f} images/s by "
        f"{training['processes']} process{'es' * (training['processes'] != 1)}); {duration(training['seconds'])}, "
        f"{max(0, len(training['tried']) - 1)} others tried for a while"
    )


def _cards(best: Values, base: Values, int8: Values, metric: ShownMetric) -> str:
    """What the winner gained and lost of each kind, beside the base and its int8 form."""
    of_base, of_int8 = gains(best, base), gains(best, int8)
    time, latency = of_base["latency_seconds"], best["latency"]
    final, interval = best["final_accuracy"], f"[{latency['low']:.4f}, {latency['high']:.4f}]"
    accuracy = (
        f"{metric.figure(base['final_accuracy'])} → {metric.figure(final)} on the final images; "
        f"{points(metric.scale.gain(final, int8['final_accuracy']))} from int8"
    )
    unit = f"points of {metric.name}" if metric.scale.given is None else f"% of the {metric.name} as given"
    took = f"{_span(time, 1e3)} ms, {latency['ratio']:.4f}× {interval}; beside int8: {of_int8['latency_seconds']}"
    cards = (
        (change(best), escape(unit), accuracy),
        (time.factor, time.words, took),
        *(
            (of_base[cost].factor, of_base[cost].words, f"{_span(of_base[cost], scale)} {detail}")
            for cost, scale, detail in (
                ("size", 1 / 1024, f"KiB; beside int8: {of_int8['size']}"),
                ("macs", 1e-6, f"MMAC in theory; measured: {time}"),
                ("parameters", 1e-3, "thousand"),
            )
        ),
    )
    return "".join(
        f'<div class="card"><strong>{figure}</strong><span>{words}</span><small>{detail}</small></div>'
        for figure, words, detail in cards
    )


def _span(gain: Gain, scale: float) -> str:
    return f"{gain.before * scale:.4g} → {gain.after * scale:.4g}"


def _budgets(summary: Values, best: Values | None) -> str:
    if not summary["budgets"]:
        return "<p>No budget was asked for.</p>"
    rows = [_budget(budget, best) for budget in summary["budgets"]]
    note = _met(summary["exports"]) if best else ""
    return table(("budget", "asked", "limit", "winner", "headroom", ""), rows) + f'<p class="note">{note}</p>'


def _met(exports: Sequence[Values]) -> str:
    measured = "exported file" if any(check["verdict"] for check in exports) else "finished network"
    return (
        f"A latency is met where the {measured} was measured within the limit at an error rate of 2.5%, however often "
        "it was looked at; headroom counts from the upper end of that interval."
    )


def _budget(budget: Values, best: Values | None) -> list[str]:
    name, limit = budget["name"], budget["limit"]
    row = [escape(name), escape(budget["asked"]), describe(name, limit)]
    if best is None:
        return [*row, "–", "–", '<b class="bad">not met</b>']
    violation = best["violations"][name]
    value = describe(name, limit * (1 + violation))
    if name == "latency":
        _, low, high = best["limit_share"]
        value = f"{describe(name, best['latency_seconds'])} <small>[{low:.1%}, {high:.1%}] of the limit</small>"
    met = '<b class="good">met</b>' if violation <= 0 else '<b class="bad">not met</b>'
    return [*row, value, f"{-violation:.1%}", met]


def _agents(summary: Values) -> str:
    colours, metric = series(summary), ShownMetric.of(summary)
    rows = [[row.name, *row.cells] for row in form_rows(summary)]
    rows += [[_agent_name(row, colours.get(row.name)), *map(_interval, row.cells)] for row in agent_rows(summary)]
    return (
        f'<p class="verdict">{escape(summary["verdict"])}</p>{table(HEAD, rows)}<p class="note">Figures are of '
        "each agent's best network that met every budget, repaired, not trained: <em>proxy</em> is its "
        f"{escape(metric.name)} on the selection images, <em>final</em> on images that no choice has seen; "
        f"<em>loss</em> is {metric.loss}; <em>change</em> is in {metric.points}, with the standard error of that "
        "paired difference. MACs are the theory, latency is measured. Absolute milliseconds differ from run to run; "
        "the ratios are what to compare. One multiply-accumulate counts as 1 MAC.</p>"
    )


def _interval(cell: str) -> str:
    """A cell whose interval, if it has one, is small and stays in one line."""
    value, bracket, bounds = cell.partition(" [")
    return f"{value} <small>[{bounds.replace(' ', NO_BREAK)}</small>" if bracket else cell


def _agent_name(row: AgentRow, colour: int | None) -> str:
    key = "" if colour is None else f'<i class="key s{colour}"></i>'
    return f"{key}{escape(row.name)} <small>{escape(', '.join(row.remarks))}</small>"


def _policy(summary: Values) -> str:
    if not summary["layers"]:
        return "<p>There is no winner to show.</p>"
    return policy_figure(summary["layers"])


def _times(summary: Values) -> str:
    if not summary["profile"].get("base"):
        return "<p>No profile was taken.</p>"
    note = "Times of single layers come from the latency table, scaled to the time predicted for the whole network."
    return f'{time_figure(summary["profile"])}<p class="note">{note}</p>'


def _exports(checks: Sequence[Values], metric: ShownMetric) -> str:
    if not checks:
        return "<p>Nothing was exported: there is no winner.</p>"
    same = "same class" if metric.classes else "the same"
    head = ("engine", "file", "KiB", same, "outputs differ by", escape(metric.name), "latency / fp32", "ms")
    share = "the share given the same class" if metric.classes else "the share of values that are all but the same"
    note = (
        "Each file was opened as anybody would who has nothing else, and compared with the network that was measured, "
        f"on selection images: {share}, and the largest difference of an output. "
        "Latency is relative to the fp32 base on the same engine."
    )
    return table(head, [_export(check, metric) for check in checks]) + f'<p class="note">{note}</p>'


def _export(check: Values, metric: ShownMetric) -> list[str]:
    latency = check["latency"]
    return [
        escape(check["engine"]),
        f"<code>{escape(Path(check['path']).name)}</code>",
        f"{check['file_bytes'] / 1024:.4g}",
        f"{check['agreement']:.2%}",
        f"{check['largest_difference']:.3g}",
        metric.figure(check["accuracy"]),
        _interval(f"{latency['ratio']:.4f}× [{latency['low']:.4f}, {latency['high']:.4f}]"),
        f"{latency['seconds'] * 1e3:.4g}",
    ]


def _method(summary: Values) -> str:
    error, rates, metric = summary["table_error"], summary["candidates_per_second"], ShownMetric.of(summary)
    pairs = [
        (
            "noise floor",
            f"{_share(summary['noise_floor'])}: the largest deviation of the yardstick measured against itself",
        ),
        ("error of the table", _table_error(error)),
        (
            "margin",
            f"{_share(summary['margin'])} of the latency limit was kept free for what the table, the yardstick's tie "
            "and the deciding measurement may be off by",
        ),
        ("yardstick", _link(summary["link"])),
        (
            "latency",
            "in turn with the yardstick's (A B A B …), in blocks, both compiled anew in each; the ratio is that of "
            "Hodges and Lehmann with a 95% interval, times the yardstick's to fp32",
        ),
        ("measuring", measuring_line(summary["measuring"], summary["seconds"])),
        ("engine", escape(summary["engine"])),
        ("processor", escape(summary["cpu"])),
        ("images", escape(f"chosen on {summary['provenance']}")),
        ("selection images", f"{summary['selection_images']:d}"),
        ("metric", escape(metric.said)),
        ("proxy", "the metric of repaired networks, before any training"),
        ("winner", rule(summary.get("minimise"), metric.loss)),
        ("candidates per second", "; ".join(f"{rate:.3g} {_judge(name)}" for name, rate in rates.items())),
        ("evaluations per agent", said_trials(summary["trials"])),
        ("seed", f"{summary['seed']:d}"),
        ("wall time", duration(summary["seconds"])),
    ]
    found = winning(summary)
    if found is not None:
        pairs.insert(4, ("the winner's latency", _measured_latency(found[1])))
    if summary["refused"]:
        count = len(summary["refused"])
        pairs.append(("refused", f"{count} preferred to the winner, whose files were not within the latency budget"))
    return '<dl class="method">' + "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in pairs) + "</dl>"


def _measured_latency(best: Values) -> str:
    latency, predicted, measured = best["latency"], best["predicted_seconds"], best["latency_seconds"]
    return (
        f"{latency['seconds'] * 1e3:.4g} ms when it was measured, {measured * 1e3:.4g} ms by its ratio to fp32, "
        f"{predicted * 1e3:.4g} ms predicted ({predicted / measured - 1:+.1%}); {latency['blocks']:d} blocks with "
        f"{latency['slices']:d} slices in all, {latency['dropped']:d} dropped, stopped because "
        f"{STOPS[latency['stopped_by']]}"
    )


def _link(link: Values) -> str:
    text = "uniform int8 takes {:.4f}× the time of fp32 [{:.4f}, {:.4f}]".format(*link["int8"])
    text += f", measured once for {link['took']:.0f} s"
    if link["to_int8"][0] == 1:
        return text
    return text + "; the yardstick, a uniform network near the budget, {:.4f}× of int8's [{:.4f}, {:.4f}]".format(
        *link["to_int8"]
    )


def _table_error(error: Values) -> str:
    if not error["networks"]:
        return "not known: no network was measured end to end"
    median, largest = _share(error["median"]), _share(error["largest"])
    return f"median {median}, largest {largest}, over {error['networks']:d} networks measured end to end"


def _judge(name: str) -> str:
    return "over the whole search" if name == "search" else f"the winner alone, by {escape(name)}"


def _share(value: float | None) -> str:
    return "not known" if value is None or not math.isfinite(value) else f"{value:.2%}"


def measuring_line(measuring: Mapping[str, float], seconds: float) -> str:
    """Say how long a run measured end to end and for its latency table, and which share of its `seconds` that is."""
    whole = sum(measuring.values())
    return (
        f"{duration(whole)}, {whole / seconds:.0%} of the run: {duration(measuring['end_to_end'])} end to end, "
        f"{duration(measuring['table'])} for the latency table"
    )


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are markup already; a narrow screen shows each row under its name, every cell with
    its head."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td data-head="{name}">{cell}</td>' for name, cell in zip(head[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _style() -> str:
    """The style sheet; an agent's box unticked hides its marks in the same figure."""
    hide = "".join(f".fig:has(.t{i}:not(:checked)) .plot .s{i}{{display:none}}" for i in range(SERIES))
    colours = "".join(f".s{i}{{--c:var(--s{i})}}" for i in range(SERIES))
    return " ".join((_STYLE + colours + hide).split())


_STYLE = """
:root{--paper:#fbfbf8;--ink:#1c2328;--soft:#5c6770;--rule:#dfe2de;--grid:#eceeea;--card:#f3f4f0;--accent:#0d6b78;
--over:#f3ece4;--good:#26734d;--bad:#b3402a;--was:#aab4b8;--i8:#0d6b78;--mix:#d49a3a;--fp:#8791a8;
--s0:#0d6b78;--s1:#c8632b;--s2:#6a5aa8;--s3:#5a8f3c;--s4:#b04a78;--s5:#937a1d;--s6:#3f7fc4;--s7:#6b6f75}
@media (prefers-color-scheme:dark){:root{--paper:#14181a;--ink:#e3e7e8;--soft:#98a4aa;--rule:#2f373b;--grid:#232a2d;
--card:#1b2124;--accent:#5cc0cb;--over:#211d1a;--good:#6cc299;--bad:#ec8b74;--was:#5b666c;--i8:#3fa5b1;--mix:#c8933f;
--fp:#7d88a3;--s0:#5cc0cb;--s1:#ef935f;--s2:#a99ae6;--s3:#93c772;--s4:#e58bb3;--s5:#d3b856;--s6:#7fb2ec;--s7:#a9aeb4}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:68rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.015em;margin:0;font-weight:650;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .75rem;font-weight:650} section{margin-top:3.25rem} p{margin:.5rem 0;max-width:46rem}
.lead{font-size:1.1rem;color:var(--soft);margin:.4rem 0 1.5rem} .verdict{font-size:1.05rem;margin-bottom:1rem}
small,.note{color:var(--soft);font-size:.8125rem} p.note{margin:.6rem 0 0} code{font:.9em ui-monospace,Menlo,monospace}
.cards{display:grid;grid-template-columns:repeat(5,1fr);gap:.75rem;margin-bottom:1.75rem}
.card{background:var(--card);border-radius:10px;padding:.9rem 1rem;display:flex;flex-direction:column}
.card span{font-size:.95rem;margin-bottom:.35rem} .card small{line-height:1.4}
.card strong{font-size:1.7rem;line-height:1.25;letter-spacing:-.015em;white-space:nowrap}
.wide{overflow-x:auto} table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:.42rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
th:first-child{text-align:left;padding-left:0} th:last-child,td:last-child{padding-right:0}
tbody th{white-space:normal;overflow-wrap:anywhere;min-width:8rem}
thead th{color:var(--soft);font-weight:400;font-size:.8125rem} tbody th{font-weight:500}
.good{color:var(--good)} .bad{color:var(--bad)} .good:before{content:"\\2713\\a0"} .bad:before{content:"\\2717\\a0"}
figure{margin:0} .plot{height:22rem;margin:.75rem .9rem 1.7rem 3.1rem} .plot>svg{display:block;overflow:visible}
.axis{text-align:center;color:var(--soft);font-size:.8125rem;margin:0 auto .5rem;max-width:none}
text{font-size:12px;fill:var(--soft)} text.strong{fill:var(--ink)} .grid{stroke:var(--grid)} .tick{stroke:var(--grid)}
text.note,.dot,.ring,.whisker,.ref{paint-order:stroke} text.note{stroke:var(--paper);stroke-width:3px}
.dot{fill:var(--c);fill-opacity:.32} .dot.measured{fill-opacity:1;stroke:var(--paper);stroke-width:1}
.dot.out{fill:none;stroke:var(--c);stroke-opacity:.55}
.ring{fill:none;stroke:var(--c);stroke-width:2;pointer-events:all}
.whisker{stroke:var(--c);stroke-width:2} .over{fill:var(--over)} .budget{stroke:var(--bad);stroke-dasharray:5 4}
.level{stroke:var(--soft);stroke-dasharray:1 4} .ref path{fill:var(--ink)} .lines{overflow:hidden;pointer-events:none}
polyline{fill:none;vector-effect:non-scaling-stroke} .front{fill:none;stroke:var(--ink);stroke-width:1.3;opacity:.75}
.trace{stroke:var(--c);stroke-width:2} .band{fill:var(--c);fill-opacity:.14}
.agents,.legend,.views{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.8125rem;color:var(--soft);max-width:none}
.agents label,.views label,.legend span{display:inline-flex;align-items:center;gap:.35rem}
.views{margin-bottom:.4rem} input{accent-color:var(--accent);margin:0} .mark{overflow:visible}
.key{display:inline-block;width:.65rem;height:.65rem;border-radius:50%;background:var(--c)} th .key{margin-right:.45rem}
.fig:has(.all:checked) .near,.fig:has(.all:not(:checked)) .whole{display:none}
.swatch{display:inline-block;width:1.1rem;height:.75rem;border-radius:2px;background-color:var(--rule)}
.rows{list-style:none;margin:.75rem 0 0;padding:0;columns:27rem;column-gap:2.5rem;font-size:.8125rem}
.rows li{display:grid;grid-template-columns:minmax(0,12rem) 1fr 5.2rem 2.6rem;gap:.6rem;align-items:center;
break-inside:avoid;padding:.14rem 0;border-radius:3px} .rows li:hover{background:var(--card)}
.rows .name{overflow-wrap:anywhere;line-height:1.25} .rows small{display:block}
.rows .num{text-align:right;white-space:nowrap} .rows .bits{color:var(--soft);white-space:nowrap}
.track{background:var(--rule);height:.85rem;border-radius:2px}
.times li{grid-template-columns:minmax(0,9.5rem) 1fr 9rem 2.8rem}
.total{columns:auto} .total li{font-weight:600;grid-template-columns:minmax(0,9.5rem) 1fr 11rem 3.2rem}
.fill{display:block;height:100%;border-radius:2px;min-width:1px} .pair .fill{height:.42rem}
.total .pair .fill{height:.7rem}
.b8{background-color:var(--i8)} .bmix{background-color:var(--mix)} .b32{background-color:var(--fp)}
.b4{background-color:color-mix(in srgb,var(--i8) 62%,var(--ink))}
.b2{background-color:color-mix(in srgb,var(--i8) 25%,var(--ink))}
.low{background-image:repeating-linear-gradient(135deg,transparent 0 4px,var(--paper) 4px 5.5px)}
.was{background-color:var(--was)} .now{background-color:var(--accent)}
.method{display:grid;grid-template-columns:minmax(8rem,13rem) 1fr;gap:.3rem 1.5rem;font-size:.9rem;margin:0}
dt{color:var(--soft)} dd{margin:0;overflow-wrap:anywhere}
#tip{position:fixed;z-index:9;background:var(--ink);color:var(--paper);font-size:.8125rem;line-height:1.45;
padding:.45rem .7rem;border-radius:6px;white-space:pre-line;pointer-events:none;max-width:22rem}
@media screen and (max-width:64rem){.cards{grid-template-columns:repeat(auto-fit,minmax(13rem,1fr))}
table,tbody,td{display:block} thead,td:empty{display:none}
tbody tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.2rem,1fr));gap:.35rem 1rem;padding:.65rem 0;
border-bottom:1px solid var(--rule)} tbody th{grid-column:1/-1;padding:0;border:0;font-weight:600}
td{padding:0;border:0;text-align:left;white-space:normal;overflow-wrap:anywhere}
td small{display:block;font-size:.75rem}
td:before{content:attr(data-head);display:block;color:var(--soft);font-size:.75rem}}
@media (max-width:40rem){main{padding-top:1.5rem} h1{font-size:1.6rem} .plot{height:18rem}
.cards{grid-template-columns:1fr 1fr} .card:first-child{grid-column:1/-1}
.rows li{grid-template-columns:minmax(0,8.5rem) 1fr 4.9rem 2.4rem;gap:.45rem}
.times li{grid-template-columns:minmax(0,6.5rem) 1fr 8.6rem 2.6rem}
.total li{grid-template-columns:1fr auto auto} .total .pair{grid-column:1/-1;grid-row:2}
.method{grid-template-columns:1fr;gap:0} dd{margin-bottom:.6rem}}
@media print{@page{margin:13mm} :root{font-size:11px;--paper:#fff} body{font-size:1rem} main{padding:0;max-width:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact} .views,input{display:none} .wide{overflow:visible}
section{margin-top:2rem} .cards,tr,section:has(.plot){break-inside:avoid}
h2{break-after:avoid}}
"""

_SCRIPT = """
(function(){var t=document.getElementById("tip");
function show(e){var n=e.target.closest&&e.target.closest("[data-tip]");t.hidden=!n;if(!n)return;
t.textContent=n.getAttribute("data-tip");var b=n.getBoundingClientRect(),k=e.type=="focusin";
var x=k?b.left+40:e.clientX,y=k?b.bottom:e.clientY;
t.style.left=Math.max(8,Math.min(x+14,innerWidth-t.offsetWidth-8))+"px";
t.style.top=(y+18+t.offsetHeight>innerHeight?y-t.offsetHeight-12:y+18)+"px"}
["pointermove","pointerdown","focusin"].forEach(function(k){document.addEventListener(k,show)});
["scroll","focusout"].forEach(function(k){document.addEventListener(k,function(){t.hidden=true},true)})})();
"""
