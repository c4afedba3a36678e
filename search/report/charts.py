"""The report's pictures: inline SVG and HTML with every length in percent, so that text keeps its size on any screen.

They take the plain values of `summary.json` and return markup. Every string is escaped here; every number goes
through a numeric format, so that a wrong type is an error and never markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from trimtab.search.setup.metric import ACCURACY, ShownMetric
from trimtab.spaces.numbers.formats import FLOAT, LayerFormat
from trimtab.spaces.numbers.grids import UNIFORM

__all__ = [
    "SERIES",
    "Axis",
    "curves_figure",
    "pareto_figure",
    "policy_figure",
    "series",
    "time_figure",
    "tip",
    "trace_figure",
]

#: Colours that tell agents apart; with more agents they repeat.
SERIES = 8

Values = Mapping[str, Any]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] to [0, 100] percent, linearly or by logarithm; where it is `falling`, to [100, 0]."""

    low: float
    high: float
    log: bool = False
    falling: bool = False

    @classmethod
    def of(cls, values: Iterable[float], pad: float = 0.05, log: bool = False, falling: bool = False) -> Axis:
        """Return an axis that shows all finite values, with a share of its length free at both ends."""
        found = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [0.5, 1.0]
        low, high = min(found), max(found)
        if log:
            room = max((high / low) ** pad, 1.02)
            return cls(low / room, high * room, True, falling)
        room = max((high - low) * pad, abs(high) * 1e-3, 1e-6)
        return cls(low - room, high + room, False, falling)

    def at(self, value: float) -> float:
        """Return where a value stands, in percent; outside [0, 100] when it is out of view."""
        if self.log:
            return 100 * math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        share = (value - self.low) / (self.high - self.low)
        return 100 * (1 - share if self.falling else share)

    def shows(self, value: float) -> bool:
        """Whether a value is in view."""
        return self.low <= value <= self.high

    def ticks(self) -> list[float]:
        """Return round values in view, four to nine of them as a rule."""
        if self.log and self.high / self.low > 4:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = (1, 2, 5) if self.high / self.low > 30 else (1, 1.5, 2, 3, 5, 7)
            return [m * 10.0**d for d in decades for m in marks if self.shows(m * 10.0**d)]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def series(summary: Values) -> dict[str, int]:
    """Return each agent's colour; the chosen agent, where there is one, has the first."""
    agents = sorted(summary["agents"], key=lambda row: not row.get("chosen", False))
    return {row["agent"]: i % SERIES for i, row in enumerate(agents)}


def tip(*lines: str) -> str:
    """Return the attribute that holds a tooltip's lines."""
    return 'data-tip="' + "&#10;".join(escape(line) for line in lines) + '"'


def pareto_figure(summary: Values) -> str:
    """Accuracy against latency: all points, the front, the budget, base and int8; near the front, and everything."""
    near, whole = _views(summary)
    front = "feasible points" if summary.get("minimise") is None else "points within the budgets on costs"
    views = (
        '<div class="views" role="group" aria-label="View"><label><input type="radio" name="view" checked> near the '
        'front</label><label><input type="radio" name="view" class="all"> everything</label></div>'
    )
    marks = (
        _mark('<circle cx="8" cy="8" r="4" class="dot measured"/>', "measured end to end")
        + _mark('<circle cx="8" cy="8" r="4" class="dot"/>', "within budgets by prediction")
        + _mark('<circle cx="8" cy="8" r="3.5" class="dot out"/>', _out(summary))
        + _mark('<circle cx="8" cy="8" r="6" class="ring"/>', "winners as measured, with 95% intervals")
        + _mark('<path d="M1 12H8V4H15" class="front"/>', f"Pareto front of {front}")
    )
    return (
        f'<figure class="fig">{views}{_agents_legend(summary)}<div class="near">{_pareto(summary, *near)}</div>'
        f'<div class="whole">{_pareto(summary, *whole)}</div><p class="legend">{marks}</p></figure>'
    )


def _views(summary: Values) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
    """Return the axes near the front and around everything."""
    base, int8, points, scale = summary["base"], summary["int8"], summary["points"], ShownMetric.of(summary).scale
    best = [row["best"] for row in summary["agents"] if row["best"]]
    if (finished := summary.get("finished")) is not None:
        best.append(finished)
    limits = [b["limit"] for b in summary["budgets"] if b["name"] == "latency"]
    marks = [base["accuracy"], int8["accuracy"], *(b["accuracy"] for b in best)]
    slow = [*limits, *(b["latency"]["high"] * base["latency"] for b in best)] or [int8["latency"]]
    good = sorted(p["accuracy"] for p in points if p["feasible"])
    half = len(good) // 2
    worst = min([*marks, *good[half:]]) if scale.higher else max([*marks, *good[: len(good) - half]])
    close = [p for p in points if scale.gain(p["accuracy"], worst) >= 0 and p["latency"] <= 1.3 * max(slow)]
    unit = base["latency"]
    near_x = Axis.of([v / unit for v in [*slow, *(p["latency"] for p in close)]], 0.06)
    near_y = Axis.of([*marks, *(p["accuracy"] for p in close)], 0.08, falling=not scale.higher)
    whole_x = Axis.of(
        [1.0, *(v / unit for v in [*slow, int8["latency"], *(p["latency"] for p in points)])], 0.04, log=True
    )
    whole_y = Axis.of([*marks, *(p["accuracy"] for p in points)], 0.06, falling=not scale.higher)
    return (near_x, near_y), (whole_x, whole_y)


def _pareto(summary: Values, x: Axis, y: Axis) -> str:
    unit, colours, metric = summary["base"]["latency"], series(summary), ShownMetric.of(summary)
    shown = [p for p in summary["points"] if x.shows(p["latency"] / unit) and y.shows(p["accuracy"])]
    shown.sort(key=lambda p: (p["feasible"], -colours[p["agent"]], p["measured"]))
    dots = "".join(_dot(p, unit, colours[p["agent"]], x, y, _out(summary), metric) for p in shown)
    rings = "".join(
        _ring(f"{row['agent']}'s winner", row["best"], f"s{colours[row['agent']]}", x, y, metric)
        for row in summary["agents"]
        if row["best"]
    )
    if (finished := summary.get("finished")) is not None:
        rings += _ring("finished", finished, "finished", x, y, metric)
    body = (
        _budget_line(summary, x)
        + _kept_line(summary, y)
        + _line(_front(summary), x, y, "front", steps=True)
        + dots
        + rings
    )
    for name, form in (("fp32 base", summary["base"]), ("int8", summary["int8"])):
        body += _level(name, form, unit, x, y, metric) + _reference(name, form, unit, x, y, metric)
    count = f"{len(shown)} of {len(summary['points'])} points in view"
    label = f"latency predicted from the table, relative to the fp32 base · {count}"
    return _plot(x, y, body, ("{:.3g}×", label), f"{metric.name} against latency of every evaluated network", metric)


def _out(summary: Values) -> str:
    """What is said of a point that is not feasible."""
    kept = " or not shown to keep the accuracy" if summary.get("minimise") is not None else ""
    return f"over a budget{kept}"


def _dot(point: Values, unit: float, colour: int, x: Axis, y: Axis, out: str, metric: ShownMetric) -> str:
    ratio, accuracy = point["latency"] / unit, point["accuracy"]
    kind = ("measured" if point["measured"] else "") if point["feasible"] else "out"
    state = "within every budget" if point["feasible"] else out
    text = tip(
        f"{point['agent']} · {point['policy']}",
        f"proxy {metric.name} {metric.figure(accuracy)}",
        f"predicted {ratio:.4f}× fp32 = {point['latency'] * 1e3:.4g} ms",
        f"{point['size'] / 1024:.4g} KiB, {point['macs'] / 1e6:.4g} MMAC",
        state + (", measured end to end" if point["measured"] else ", not measured"),
    )
    radius = 4 if point["feasible"] else 3
    place = f'cx="{x.at(ratio):.2f}%" cy="{100 - y.at(accuracy):.2f}%"'
    return f'<circle class="dot s{colour} {kind}" {place} r="{radius}" {text}/>'


def _ring(name: str, best: Values, kind: str, x: Axis, y: Axis, metric: ShownMetric) -> str:
    latency = best["latency"]
    if not (x.shows(latency["ratio"]) and y.shows(best["accuracy"])):
        return ""
    height = f"{100 - y.at(best['accuracy']):.2f}%"
    left, middle, right = (f"{x.at(latency[key]):.2f}%" for key in ("low", "ratio", "high"))
    text = tip(
        f"{name} · {best['policy']}",
        f"{metric.name} {metric.figure(best['accuracy'])}, on the final images {metric.figure(best['final_accuracy'])}",
        f"measured {latency['ratio']:.4f}× fp32 [{latency['low']:.4f}, {latency['high']:.4f}]",
        f"predicted {best['predicted_seconds'] * 1e3:.4g} ms, measured {best['latency_seconds'] * 1e3:.4g} ms",
    )
    return (
        f'<g class="{kind}" {text}><line class="whisker" x1="{left}" x2="{right}" y1="{height}" y2="{height}"/>'
        f'<circle class="ring" cx="{middle}" cy="{height}" r="8"/></g>'
    )


def _front(summary: Values) -> Points:
    places = {p["policy"]: (p["latency"] / summary["base"]["latency"], p["accuracy"]) for p in summary["points"]}
    return sorted(places[policy] for policy in summary["pareto"])


def _budget_line(summary: Values, x: Axis) -> str:
    for budget in summary["budgets"]:
        if budget["name"] == "latency":
            ratio = budget["limit"] / summary["base"]["latency"]
            at = min(max(x.at(ratio), 0.0), 100.0)
            side = 'text-anchor="end" dx="-6"' if at > 60 else 'dx="6"'
            return (
                f'<rect class="over" x="{at:.2f}%" y="0" width="{100 - at:.2f}%" height="100%"/>'
                f'<line class="budget" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="100%"/>'
                f'<text class="note" x="{at:.2f}%" y="100%" dy="-8" {side}>budget {ratio:.3g}×</text>'
            )
    return ""


def _kept_line(summary: Values, y: Axis) -> str:
    """The accuracy below which more is lost than may be."""
    metric = ShownMetric.of(summary)
    for budget in summary["budgets"]:
        lost = budget["limit"] * metric.scale.unit * (1 if metric.scale.higher else -1)
        if budget["name"] == "accuracy" and y.shows(kept := summary["base"]["accuracy"] - lost):
            at = f"{100 - y.at(kept):.2f}%"
            return (
                f'<line class="budget" x1="0" x2="100%" y1="{at}" y2="{at}"/><text class="note" x="100%" y="{at}" '
                f'text-anchor="end" dx="-6" dy="15">{budget["limit"] * 100:.3g} {escape(metric.points)} '
                "worse than the base</text>"
            )
    return ""


def _level(name: str, form: Values, unit: float, x: Axis, y: Axis, metric: ShownMetric) -> str:
    """The accuracy of the base or its int8 form as a line, where the form itself is out of view."""
    ratio, accuracy = form["latency"] / unit, form["accuracy"]
    if x.shows(ratio) or not y.shows(accuracy):
        return ""
    at = f"{100 - y.at(accuracy):.2f}%"
    below = 15 if name == "int8" else -6
    return (
        f'<line class="level" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
        f'<text class="note" x="0" y="{at}" dx="6" dy="{below}">{name} {metric.figure(accuracy)}, '
        f"at {ratio:.3g}×</text>"
    )


def _reference(name: str, form: Values, unit: float, x: Axis, y: Axis, metric: ShownMetric) -> str:
    ratio, accuracy = form["latency"] / unit, form["accuracy"]
    if not (x.shows(ratio) and y.shows(accuracy)):
        return ""
    left, top = f"{x.at(ratio):.2f}%", f"{100 - y.at(accuracy):.2f}%"
    # Below it: what else is near has its marks on the same height, and the level's own text is above.
    side = "end" if x.at(ratio) > 94 else "start" if x.at(ratio) < 6 else "middle"
    figure = f"proxy {metric.name} {metric.figure(accuracy)}"
    text = tip(name, figure, f"measured {ratio:.4f}× fp32 = {form['latency'] * 1e3:.4g} ms")
    return (
        f'<svg class="ref" x="{left}" y="{top}" overflow="visible" {text}><path d="M0-7L7 0 0 7-7 0Z"/></svg>'
        f'<text class="note strong" x="{left}" y="{top}" dy="20" text-anchor="{side}">{name}</text>'
    )


def trace_figure(summary: Values) -> str:
    """Best feasible proxy accuracy after each evaluation, or the least of the cost that is minimised; one line per
    agent."""
    colours, cost = series(summary), summary.get("minimise")
    known = sorted(v for row in summary["agents"] for v in row["trace"] if v is not None)
    x = Axis(0, max([1, *(len(row["trace"]) for row in summary["agents"])]))
    few = len(known) // 20  # the first steps of all are far from the others
    metric = ShownMetric.of(summary)
    rising = cost is None and metric.scale.higher
    falling = cost is None and not rising
    y = Axis.of(known[few:] if rising else known[: len(known) - few], 0.08, falling=falling)
    best = (
        f"best proxy {escape(metric.name)} among networks within every budget"
        if cost is None
        else f"least {escape(cost)}, as a share of the base's, among networks that keep the accuracy"
    )
    rows = sorted(summary["agents"], key=lambda row: -colours[row["agent"]])
    shown = metric if cost is None else ACCURACY
    body = "".join(_trace(row, colours[row["agent"]], x, y, best, shown) for row in rows)
    plot = _plot(
        x, y, body, ("{:.4g}", f"evaluations · {best}"), f"{best[0].upper()}{best[1:]}, against evaluations", shown
    )
    return f'<figure class="fig">{_agents_legend(summary)}<div>{plot}</div></figure>'


def _trace(row: Values, colour: int, x: Axis, y: Axis, caption: str, metric: ShownMetric) -> str:
    points = [(i + 1, v) for i, v in enumerate(row["trace"]) if v is not None]
    marks, before = "", math.nan
    for i, value in points:
        if value != before and y.shows(value):
            text = tip(f"{row['agent']}, evaluation {i}", f"{metric.figure(value)}: {caption}")
            place = f'cx="{x.at(i):.2f}%" cy="{100 - y.at(value):.2f}%"'
            marks += f'<circle class="dot measured s{colour}" {place} r="3" {text}/>'
        before = value
    return _line(points, x, y, f"trace s{colour}", steps=True) + marks


def curves_figure(summary: Values, curves: Mapping[str, Sequence[Sequence[float]]], caption: str, name: str) -> str:
    """A line of medians in a band from the lowest to the highest, for every agent: (place, median, low, high)."""
    colours = series(summary)
    places = [row[0] for rows in curves.values() for row in rows]
    medians = sorted(row[1] for rows in curves.values() for row in rows)
    x = Axis(0, max([*places, 1e-9]))
    tops = [row[3] for rows in curves.values() for row in rows[-1:]]
    y = Axis.of([*medians[len(medians) // 10 :], *tops], 0.08)
    body = ""
    for agent, rows in sorted(curves.items(), key=lambda item: -colours[item[0]]):
        kind = f"s{colours[agent]}"
        # What is best stays best to the end of the picture.
        ended = [*rows, [x.high, *rows[-1][1:]]] if rows else []
        body += _band([(r[0], r[2]) for r in ended], [(r[0], r[3]) for r in ended], x, y, f"band {kind}")
        body += _line([(r[0], r[1]) for r in ended], x, y, f"trace {kind}", steps=True)
        body += "".join(_curve_mark(agent, row, kind, x, y) for row in rows if y.shows(row[1]))
    plotted = _plot(x, y, body, ("{:.4g}", caption), name)
    return f'<figure class="fig">{_agents_legend(summary)}<div>{plotted}</div></figure>'


def _curve_mark(agent: str, row: Sequence[float], kind: str, x: Axis, y: Axis) -> str:
    place, median, low, high = row
    text = tip(agent, f"at {place:.4g}: median {median:.2%}", f"{low:.2%} to {high:.2%} over the seeds")
    where = f'cx="{x.at(place):.2f}%" cy="{100 - y.at(median):.2f}%"'
    return f'<circle class="dot measured {kind}" {where} r="2" {text}/>'


def _line(points: Points, x: Axis, y: Axis, kind: str, steps: bool = False) -> str:
    """A line through points, cut off at the edge of the plot."""
    return _lines(f'<polyline class="{kind}" points="{_path(_corners(points) if steps else points, x, y)}"/>')


def _band(lower: Points, upper: Points, x: Axis, y: Axis, kind: str) -> str:
    """The area between two step curves."""
    around = [*_corners(lower), *reversed(_corners(upper))]
    return _lines(f'<polygon class="{kind}" points="{_path(around, x, y)}"/>')


def _corners(points: Points) -> list[tuple[float, float]]:
    """The points of a step curve, and the corners between them."""
    corners: list[tuple[float, float]] = []
    for place in points:
        if corners:
            corners.append((place[0], corners[-1][1]))
        corners.append(place)
    return corners


def _path(points: Points, x: Axis, y: Axis) -> str:
    return " ".join(f"{min(x.at(a), 999):.2f},{100 - max(y.at(b), -999):.2f}" for a, b in points)


def _lines(shapes: str) -> str:
    return (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%" class="lines">{shapes}</svg>'
    )


def _plot(x: Axis, y: Axis, body: str, x_label: tuple[str, str], name: str, metric: ShownMetric = ACCURACY) -> str:
    """Axes, grid and labels (format and caption of x) around a body."""
    digits = 0 if y.high - y.low > 0.05 else 1
    grid = ""
    for value in y.ticks():
        at, label = f"{100 - y.at(value):.2f}%", f"{value:.{digits}%}" if metric.scale.given is None else f"{value:.3g}"
        grid += f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
        grid += f'<text x="0" y="{at}" dx="-8" dy="4" text-anchor="end">{label}</text>'
    for value in x.ticks():
        at = f"{x.at(value):.2f}%"
        grid += f'<line class="tick" x1="{at}" x2="{at}" y1="0" y2="100%"/>'
        grid += f'<text x="{at}" y="100%" dy="18" text-anchor="middle">{x_label[0].format(value)}</text>'
    return (
        f'<div class="plot"><svg role="img" aria-label="{escape(name)}" width="100%" height="100%">{grid}{body}</svg>'
        f'</div><p class="axis">{x_label[1]}</p>'
    )


def _agents_legend(summary: Values) -> str:
    items = "".join(
        f'<label><input type="checkbox" class="t{colour}" checked> <i class="key s{colour}"></i>{escape(name)}</label>'
        for name, colour in series(summary).items()
    )
    return f'<div class="agents" role="group" aria-label="Agents shown">{items}</div>'


def _mark(shape: str, text: str) -> str:
    return f'<span><svg class="mark s0" width="16" height="16">{shape}</svg>{text}</span>'


def policy_figure(layers: Sequence[Values]) -> str:
    """A bar per layer: its length is the share of channels kept, its colour the bits, hatching a low rank."""
    key = "".join(
        f'<span><i class="swatch {kind}"></i>{text}</span>'
        for kind, text in (
            ("b8", "integers: 8-bit weights"),
            ("b4", "3- to 6-bit weights"),
            ("b2", "1- and 2-bit weights"),
            ("bmix", "8- or 16-bit weights, float activations"),
            ("b32", "fp32"),
            ("b8 low", "hatched: factorised, sparse, or of shared weights"),
            ("", "channels removed"),
        )
    )
    rows = "".join(_layer(layer) for layer in layers)
    return f'<figure class="fig"><p class="legend">{key}</p><ol class="rows policy">{rows}</ol></figure>'


def _layer(layer: Values) -> str:
    kept, before, form = int(layer["outputs"]), int(layer["outputs_of"]), _form(layer)
    numbers = LayerFormat.of(int(layer["w_bits"]), int(layer["a_bits"]), str(layer.get("grid", UNIFORM)))
    weight, activation_bits = numbers.weight, numbers.activation_bits
    grid = "" if weight.grid == UNIFORM else f" ({escape(weight.grid)})"
    kernel = "×".join(f"{int(k)}" for k in layer["kernel"])
    text = tip(
        f"{layer['layer']} · {layer['kind']}" + (f" {kernel}" if kernel else ""),
        f"outputs {kept} of {before} ({kept / before:.1%}), inputs {int(layer['inputs'])} of {int(layer['inputs_of'])}",
        f"weights {weight.bits} bits{grid}, activations {activation_bits} bits",
        form,
        *([f"runs as {layer['runs_as']}"] if layer["runs_as"] else []),
    )
    look = _look(numbers) + (" low" if form != "dense" else "")
    return (
        f'<li tabindex="0" {text}><span class="name">{escape(layer["layer"])}'
        + (f" <small>{escape(form)}</small>" if form != "dense" else "")
        + f'</span><span class="track"><span class="fill {look}" style="width:{100 * kept / before:.2f}%"></span>'
        f'</span><span class="num">{kept} of {before}</span>'
        f'<span class="bits">{weight.bits}/{activation_bits}</span></li>'
    )


def _form(layer: Values) -> str:
    """A layer's form; summaries of older runs know ranks only."""
    rank = layer["rank"]
    return str(layer.get("form", "dense" if rank is None else f"rank {int(rank)}"))


#: The most bits of integer weights -> their colour class.
_LOOKS = {2: "b2", 6: "b4", 8: "b8"}


def _look(numbers: LayerFormat) -> str:
    """The colour class of a layer's numbers."""
    if not numbers.is_integer:
        return "b32" if numbers == FLOAT else "bmix"
    return next(look for most, look in _LOOKS.items() if numbers.weight.bits <= most)


def time_figure(profile: Mapping[str, Sequence[Values]]) -> str:
    """Paired bars of every layer's time in the base and in the winner, in network order, and their totals."""
    base, winner = (_by_layer(profile.get(name, [])) for name in ("base", "winner"))
    names = [*base, *(name for name in winner if name not in base)]
    longest = max([*base.values(), *winner.values(), 1e-12])
    unit = (1e3, "ms") if longest >= 1e-3 else (1e6, "µs")
    rows = "".join(_paired(name, base.get(name), winner.get(name), longest, unit, bool(winner)) for name in names)
    total = _paired("all layers", sum(base.values()), sum(winner.values()), sum(base.values()), unit, bool(winner))
    key = '<span><i class="swatch was"></i>fp32 base</span>'
    key += '<span><i class="swatch now"></i>winner</span>' if winner else ""
    return (
        f'<figure class="fig"><p class="legend">{key}</p><ol class="rows times total">{total}</ol>'
        f'<ol class="rows times">{rows}</ol></figure>'
    )


def _by_layer(steps: Sequence[Values]) -> dict[str, float]:
    """Seconds per layer, in order of first appearance; both factors of a layer carry its name."""
    seconds: dict[str, float] = {}
    for step in steps:
        seconds[step["layer"]] = seconds.get(step["layer"], 0.0) + step["seconds"]
    return seconds


def _paired(
    name: str, was: float | None, now: float | None, longest: float, unit: tuple[float, str], both: bool
) -> str:
    scale, word = unit
    before = "–" if was is None else f"{was * scale:.2f}"
    after = "–" if now is None else f"{now * scale:.2f}"
    ratio = f"{now / was:.2f}×" if both and was and now is not None else ""
    text = tip(name, f"fp32 base {before} {word}", *([f"winner {after} {word}", ratio] if both else []))
    bars = f'<span class="fill was" style="width:{100 * (was or 0) / (longest or 1):.2f}%"></span>'
    bars += f'<span class="fill now" style="width:{100 * (now or 0) / (longest or 1):.2f}%"></span>' if both else ""
    figures = f"{before} → {after} {word}" if both else f"{before} {word}"
    return (
        f'<li tabindex="0" {text}><span class="name">{escape(name)}</span><span class="pair">{bars}</span>'
        f'<span class="num">{figures}</span><span class="bits">{ratio}</span></li>'
    )
