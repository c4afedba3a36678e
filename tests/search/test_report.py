from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import BadInput
from trimtab.search.report.charts import Axis
from trimtab.search.report.headline import headline
from trimtab.search.report.run_report import render, write_report

VOID = {"meta", "input", "br", "hr", "img", "link", "base", "source", "embed", "track", "wbr", "col", "area", "param"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&é"


def make_summary(
    agents: tuple[str, ...] = ("tpe", "uniform", "random", "greedy"),
    layers: int = 0,
    won: bool = True,
    trials: int = 60,
) -> dict[str, Any]:
    """A summary as a run of ResNet-20 on CIFAR-10 writes it; with `layers`, of a network with so many."""
    rng = random.Random(1)
    names = [f"features.{i}.conv" for i in range(layers)] or resnet20()
    base = {"latency": 1.2345e-3, "size": 1_079_848, "macs": 40_812_160, "memory": 131_072, "parameters": 269_034}
    int8 = {**base, "latency": 0.3951e-3, "size": 278_312, "memory": 32_768}
    rows, points = [], []
    for place, agent in enumerate(agents):
        found = make_points(rng, agent, place, trials)
        points += found
        best = make_best(agent, place, base["latency"]) if won else None
        feasible = [p["accuracy"] if p["feasible"] else 0.0 for p in found]
        trace = [max(feasible[: i + 1]) or None for i in range(trials)]
        row = {"agent": agent, "chosen": place == 0, "evaluations": trials, "best": best, "trace": trace}
        rows.append({**row, "feasible": sum(p["feasible"] for p in found)})
    front, top = [], 0.0
    for point in sorted((p for p in points if p["feasible"]), key=lambda p: (p["latency"], -p["accuracy"])):
        if point["accuracy"] > top:
            front.append(point["policy"])
            top = point["accuracy"]
    shown = [make_layer(rng, i, name, len(names)) for i, name in enumerate(names)] if won else []
    profile = {"base": make_profile(rng, names, 1.2345e-3, False)}
    if won:
        profile["winner"] = make_profile(rng, names, 0.2304e-3, True)
    return {
        "schema": 3,
        "network": "resnet20",
        "data": "cifar10",
        "provenance": "1000 images of one half of the test split; final: the other half, 5000 images",
        "selection_images": 1000,
        "engine": "native avx512-vnni threads=1",
        "cpu": "Example CPU @ 2.00GHz",
        "seed": 7,
        "trials": trials,
        "seconds": 754.2,
        "budgets": [
            {"name": "latency", "asked": "0.6x int8", "limit": 0.6 * int8["latency"]},
            {"name": "size", "asked": "0.6x int8", "limit": 0.6 * int8["size"]},
            {"name": "macs", "asked": "20 M", "limit": 2e7},
        ],
        "base": {**base, "accuracy": 0.925, "final_accuracy": 0.9262},
        "int8": {**int8, "accuracy": 0.924, "final_accuracy": 0.9248},
        "link": {
            "ratio": [0.19, 0.18, 0.2],
            "int8": [0.32, 0.3172, 0.3228],
            "to_int8": [0.6, 0.59, 0.61],
            "took": 12.3,
        },
        "noise_floor": 0.0041,
        "measuring": {"end_to_end": 61.4, "table": 14.2},
        "refused": [],
        "table_error": {"median": 0.0213, "largest": 0.0871, "networks": 37},
        "margin": 0.0312,
        "agents": rows,
        "winner": {"agent": agents[0], "policy": {"schema": 1}} if won else None,
        "verdict": f"{agents[0]} and others differ by 0.40 points of proxy accuracy (paired standard error 0.95): "
        "within the noise.",
        "candidates_per_second": {"search": 5.31, "native": 3.27, "simulated": 0.412},
        "exports": [make_export("native", "model.safetensors"), make_export("onnxruntime", "model.onnx")]
        if won
        else [],
        "profile": profile,
        "layers": shown,
        "points": points,
        "pareto": front,
    }


def resnet20() -> list[str]:
    blocks = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in range(3) for i in (1, 2)]
    return ["conv1", *blocks, "fc"]


def make_points(rng: random.Random, agent: str, place: int, trials: int) -> list[dict[str, Any]]:
    points = []
    for i in range(trials):
        skill = 0.03 * place + 0.1 * rng.random() ** 2 * (1 - 0.6 * i / trials)
        latency = rng.uniform(0.13e-3, 0.245e-3)
        accuracy = max(
            0.1, 0.93 - skill - 1.5e3 * max(0.0, 0.22e-3 - latency) - 0.5 * (rng.random() < 0.15) * rng.random()
        )
        points.append(
            {
                "agent": agent,
                "policy": f"{rng.getrandbits(64):016x}",
                "accuracy": round(accuracy, 4),
                "loss": 2 * (0.93 - accuracy),
                "latency": latency,
                "size": rng.randrange(100_000, 166_000),
                "macs": rng.randrange(8_000_000, 20_000_000),
                "feasible": latency < 0.237e-3,
                "measured": rng.random() < 0.25,
            }
        )
    return points


def make_best(agent: str, place: int, base_seconds: float) -> dict[str, Any]:
    ratio, limit = 0.1866 - 0.004 * place, 0.6 * 0.3951e-3
    latency = {"ratio": ratio, "low": ratio - 0.0011, "high": ratio + 0.0013, "seconds": 0.2299e-3}
    return {
        "policy": f"{place:016x}",
        "accuracy": 0.913 - 0.011 * place,
        "final_accuracy": 0.9088 - 0.012 * place,
        "final_change": {"value": -0.0174 - 0.012 * place, "error": 0.0019},
        "loss": 0.0418 + 0.05 * place,
        "latency": {**latency, "blocks": 16, "slices": 142, "dropped": 3, "took": 2.4, "stopped_by": "decision"},
        "latency_seconds": ratio * base_seconds,
        "limit_share": [0.971, 0.9631, 0.9788],
        "predicted_seconds": 0.2264e-3,
        **{"size": 158_931, "macs": 17_402_112, "memory": 24_576, "parameters": 86_214},
        "violations": {"latency": latency["high"] * base_seconds / limit - 1, "size": -0.0482, "macs": -0.1299},
    }


def make_layer(rng: random.Random, place: int, name: str, count: int) -> dict[str, Any]:
    width = 16 * 2 ** min(3 * place // count, 2)
    last = place == count - 1
    w_bits, a_bits = rng.choice([(8, 8)] * 5 + [(4, 8), (2, 2), (8, 32), (16, 32), (32, 32)])
    return {
        "layer": name,
        "kind": "linear" if last else "conv2d",
        "inputs": width // 2,
        "inputs_of": width,
        "outputs": 10 if last else width * rng.choice([4, 5, 6, 7, 8, 8]) // 8,
        "outputs_of": 10 if last else width,
        "kernel": [] if last else [3, 3],
        "w_bits": w_bits,
        "a_bits": a_bits,
        "rank": width // 4 if rng.random() < 0.2 else None,
        "runs_as": rng.choice(["w8a8 winograd", ""]),
    }


def make_profile(rng: random.Random, names: list[str], seconds: float, pairs: bool) -> list[dict[str, Any]]:
    steps = []
    for i, name in enumerate(names):
        steps.append({"layer": name, "kind": "conv2d", "seconds": rng.uniform(0.5, 1.5)})
        if pairs and i == 5:
            steps.append({"layer": name, "kind": "conv2d", "seconds": 0.3})
        if i % 2 and i < len(names) - 2:
            steps.append({"layer": f"add_{i // 2}", "kind": "add", "seconds": rng.uniform(0.02, 0.1)})
    total = sum(step["seconds"] for step in steps)
    return [{**step, "seconds": step["seconds"] * seconds / total} for step in steps]


def make_export(engine: str, file: str) -> dict[str, Any]:
    latency = {**make_best("", 0, 1.0)["latency"], "ratio": 0.2345, "low": 0.2311, "high": 0.2388, "seconds": 0.3217e-3}
    return {
        "engine": engine,
        "path": f"runs/example/export/{file}",
        "file_bytes": 171_264,
        "accuracy": 0.913,
        "agreement": 0.9990,
        "largest_difference": 0.0173,
        "verdict": "within" if engine == "native" else None,
        "latency": latency,
    }


class Page(HTMLParser):
    """Reads a page, fails on a tag that is not closed where it should be, and collects what matters."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} is given twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and set(kind.split()) <= set(a.get("class", "").split())]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def page(**options: Any) -> Page:
    return Page(render(make_summary(**options)))


def test_report_is_written_beside_the_summary_and_is_small(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(make_summary()))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 300_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "summary.json"]
    assert path.read_bytes().isascii()
    assert write_report(tmp_path).read_bytes() == path.read_bytes()


def test_nothing_outside_the_file_is_referred_to() -> None:
    html = render(make_summary())
    found = Page(html)
    assert "//" not in html.replace("</", "")
    assert not re.search(r"@import|url\(|@font-face|fetch\(|XMLHttpRequest|\beval\b", html)
    assert {tag for tag, _ in found.tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "base", "form"})
    assert not any({"src", "href", "xlink:href", "srcset"} & set(attrs) for _, attrs in found.tags)
    assert any("default-src 'none'" in attrs.get("content", "") for attrs in found.all("meta"))


def test_every_figure_is_there() -> None:
    words = page().words
    assert "Every budget is met, verified on the network that tpe found" in words
    figures = [
        *(
            "−1.74 ± 0.19 points of accuracy",
            "92.62% → 90.88% on the final images; −1.60 from int8",
            "5.4× faster",
            "1.234 → 0.2304 ms, 0.1866× [0.1855, 0.1879]; beside int8: 1.7× faster",
            "6.8× smaller",
            "1055 → 155.2 KiB; beside int8: 1.8× smaller",
            "2.3× fewer MACs",
            "40.81 → 17.4 MMAC in theory; measured: 5.4× faster",
            "3.1× fewer parameters",
            "269 → 86.21 thousand",
        ),  # the headline
        *(
            "0.6x int8",
            "0.2371 ms",
            "163.1 KiB",
            "20 MMAC",
            "0.2304 ms [96.3%, 97.9%] of the limit",
            "2.2%",
            "4.8%",
            "13.0%",
        ),
        *(
            "within the noise",
            "92.50%",
            "92.62%",
            "1.234",
            "1055",
            "1.000×",
            "0.426×",
            "0.3200×",
            "0.3951",
            "271.8",
            "92.48%",
        ),
        *(
            "0.1866× [0.1855, 0.1879]",
            "0.1746× [0.1735, 0.1759]",
            "155.2",
            "56 of 60",
            "−5.34 ± 0.19",
            "91.30%",
            "87.28%",
        ),
        *("model.safetensors", "167.2", "99.90%", "0.0173", "0.2345× [0.2311, 0.2388]", "0.3217"),
        *("0.41%", "median 2.13%, largest 8.71%, over 37 networks", "3.12%", "native avx512-vnni threads=1"),
        *(
            "Example CPU @ 2.00GHz",
            "5000 images",
            "of repaired networks, before any training",
            "5.31 over the whole search",
        ),
        *(
            "3.27 the winner alone, by native",
            "0.412 the winner alone, by simulated",
            "12 min 34 s",
            "0.2264 ms predicted (-1.7%)",
        ),
        *(
            "One multiply-accumulate counts as 1",
            "Absolute milliseconds differ",
            "16 blocks with 142 slices in all, 3 dropped",
        ),
        *("0.3200× the time of fp32 [0.3172, 0.3228], measured once for 12 s", "1 min 16 s, 10% of the run"),
    ]
    assert [figure for figure in figures if figure not in words] == []


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (100.0, "7.3× smaller"),
        (705.0, "1.04× smaller"),
        (730.0, "1× as large"),
        (733.0, "1× as large"),
        (1460.0, "2.0× larger"),
    ],
)
def test_a_gain_is_said_in_words(after: float, said: str) -> None:
    base = {"size": 730.0, "latency": 1.0, "macs": 1.0, "parameters": 1.0}
    best = {"size": after, "latency_seconds": 0.4, "macs": 0.5, "parameters": 2.0}
    assert headline(best, base) == f"{said}, 2.5× faster, 2.0× fewer MACs, 2.0× more parameters"


def test_sections_come_in_order() -> None:
    words = page().words
    titles = ["Agents side by side", "Accuracy against latency", "each evaluation", "decided for each layer"]
    titles += ["Where the time goes", "Exports", "How it was measured"]
    places = [words.index(title) for title in titles]
    assert places == sorted(places)


def test_every_point_is_drawn_once_and_says_its_numbers() -> None:
    summary = make_summary()
    html = render(summary)
    whole = html[html.index('<div class="whole">') : html.index("</figure>")]
    for point in summary["points"]:
        assert whole.count(point["policy"]) == 1
    assert whole.count("&#x27;s winner") + whole.count("&#39;s winner") == len(summary["agents"])
    assert f"proxy accuracy {summary['points'][0]['accuracy']:.2%}" in whole


@pytest.mark.parametrize("layers", [0, 1, 57])
def test_every_layer_has_a_bar(layers: int) -> None:
    summary = make_summary(layers=layers)
    found = Page(render(summary))
    bars = [attrs["style"] for attrs in found.all("span", "fill") if "b" in attrs["class"].split()[1][:1]]
    kept = [f"width:{100 * layer['outputs'] / layer['outputs_of']:.2f}%" for layer in summary["layers"]]
    assert bars == kept
    assert sum("runs as w8a8 winograd" in attrs.get("data-tip", "") for attrs in found.all("li")) == sum(
        layer["runs_as"] != "" for layer in summary["layers"]
    )
    low = [layer for layer in summary["layers"] if layer["rank"] is not None]
    assert len(found.all("span", "fill low")) == len(low)
    assert all(f"rank {layer['rank']}" in found.words for layer in low)


def test_forms_and_grids_of_layers_are_told() -> None:
    summary = make_summary(layers=2)
    summary["layers"][0] |= {"rank": None, "form": "2:4", "grid": "uniform", "w_bits": 4}
    summary["layers"][1] |= {"rank": None, "form": "dense", "grid": "codebook", "w_bits": 4}
    found = Page(render(summary))
    assert "2:4" in found.words
    assert len(found.all("span", "fill low")) == 1
    assert sum("4 bits (codebook)" in attrs.get("data-tip", "") for attrs in found.all("li")) == 1


def test_factors_of_a_layer_are_summed_and_totals_given() -> None:
    summary = make_summary()
    names = [step["layer"] for step in summary["profile"]["winner"]]
    twice = next(name for name in names if names.count(name) == 2)
    both = sum(step["seconds"] for step in summary["profile"]["winner"] if step["layer"] == twice)
    words = Page(render(summary)).words
    assert f"→ {both * 1e6:.2f} µs" in words
    assert "1234.50 → 230.40 µs" in words
    assert len(Page(render(summary)).all("span", "fill was")) == len(summary["profile"]["base"]) + 1


def test_strings_are_escaped_wherever_they_come_from() -> None:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return HOSTILE + value if isinstance(value, str) and key not in ("stopped_by", "name") else value

    summary = poison(make_summary())
    summary["candidates_per_second"] = {HOSTILE: 1.0}
    found = Page(render(summary))
    assert len(found.all("script")) == 1
    assert found.all("img") == []
    assert not any(key.startswith("on") for _, attrs in found.tags for key in attrs)
    assert HOSTILE in found.words


def test_a_run_without_a_winner_says_so() -> None:
    summary = make_summary(won=False)
    found = Page(render(summary))
    assert "No winner: no network met every budget when it was measured. 240 were evaluated" in found.words
    assert "Nothing was exported" in found.words
    assert "There is no winner to show" in found.words
    assert "tpe asked for, no winner" in found.words
    assert found.words.count("not met") == len(summary["budgets"])
    assert found.all("span", "fill now") == []


def test_nothing_feasible_nothing_evaluated_no_budget() -> None:
    summary = make_summary(won=False)
    summary["budgets"], summary["points"], summary["pareto"] = [], [], []
    summary["agents"] = [{**row, "evaluations": 0, "feasible": 0, "trace": [None, None]} for row in summary["agents"]]
    assert "No budget was asked for" in Page(render(summary)).words


def test_a_single_agent_and_more_agents_than_colours() -> None:
    assert len(page(agents=("greedy",)).all("tr")) == 1 + 3 + 1 + 3 + 1 + 2
    many = tuple(f"agent{i}" for i in range(11))
    assert all(name in page(agents=many, trials=5).words for name in many)


@pytest.mark.parametrize("error", [(None, None, 0), (math.inf, math.nan, 2), (0.01, math.inf, 2)])
def test_a_table_error_that_is_not_known(error: tuple[float | None, float | None, int], tmp_path: Path) -> None:
    summary = make_summary()
    summary["table_error"] = dict(zip(("median", "largest", "networks"), error, strict=True))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert "not known" in Page(write_report(tmp_path).read_text()).words


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"schema": 3}',
        '{"schema": 2}',
        b"\xff\xfe",
        '{"schema": 3, "network": "a", "data": 1}',
    ],
)
def test_a_summary_that_cannot_be_used_names_the_file(content: str | bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=re.escape(str(tmp_path / "summary.json"))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("base", "latency"), "fast"),
        (("agents", 0, "best", "latency"), None),
        (("points", 0, "accuracy"), "<b>"),
        (("layers", 0, "w_bits"), "<b>"),
        (("seed",), "<b>"),
        (("pareto",), ["no such policy"]),
        (("winner",), {"agent": "nobody"}),
    ],
)
def test_a_value_of_the_wrong_kind_is_bad_input(path: tuple[str | int, ...], value: Any, tmp_path: Path) -> None:
    summary = make_summary()
    place: Any = summary
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(BadInput, match="summary"):
        write_report(tmp_path)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[0.5], [0.1, 1.0], [0.91, 0.9101], [1e-3, 2.0], [], [math.nan, 0.2, math.inf]])
def test_an_axis_shows_its_values_between_round_ticks(values: list[float], log: bool) -> None:
    axis = Axis.of(values, log=log)
    assert all(0 < axis.at(v) < 100 for v in values if math.isfinite(v))
    assert 2 <= len(axis.ticks()) <= 14
    assert all(axis.shows(tick) for tick in axis.ticks())
