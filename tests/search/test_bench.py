"""Benchmarks on tiny networks for hundredths of seconds: what their rows say, not how fast anything is."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput, TrimtabError
from trimtab.evaluators.engines import ENGINES as ENGINE_MAKERS
from trimtab.evaluators.engines import make_engine
from trimtab.evaluators.engines.onnxruntime import OnnxRuntimeEngine
from trimtab.evaluators.measure.intervals import Interval, block_interval
from trimtab.kernels import Graph, levels
from trimtab.search.bench import coverage as coverage_bench
from trimtab.search.bench import layers as layer_bench
from trimtab.search.bench import networks as network_bench
from trimtab.search.bench import widths as width_bench
from trimtab.search.bench.child import caps, run_in_child
from trimtab.search.bench.choices import bench_choices, choice_rows
from trimtab.search.bench.coverage import LENGTHS, bench_coverage, coverage_rows
from trimtab.search.bench.layers import FLOAT, KINDS, LAYERS, Kind, Layer, layer_graph, layer_model, work_of
from trimtab.search.bench.load import bursts
from trimtab.search.bench.start import bench_start
from trimtab.search.bench.table import bench_table
from trimtab.search.report.console import markdown_rows

ENGINES = ["native", "onnxruntime"]


def intervals_hold(row: dict[str, Any]) -> int:
    names = [name.removesuffix("_low") for name in row if name.endswith("_low") and row[name] is not None]
    for name in names:
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    return len(names)


# whole networks


@pytest.fixture(scope="module")
def rows(with_shared_cache: None) -> list[dict[str, Any]]:
    return network_bench.network_rows("resnet8", ENGINES, ["int8", "half"], 1, 0.01, None)


def test_every_form_and_engine_has_a_row(rows: list[dict[str, Any]]) -> None:
    assert [(row["form"], row["engine"].split()[0]) for row in rows] == [
        (form, engine) for form in ("int8", "half") for engine in ENGINES
    ]
    for row in rows:
        assert intervals_hold(row) == (4 if row["form"] == "half" else 3)
        assert 0 < row["call_ms"] < row["ms"]
        assert row["exact"]
        assert row["best_other"] in ENGINES
        assert row["best_other"] not in row["engine"]
        assert row["thread_speedup"] is None
        assert row["held_to"] is None


def test_speedups_are_the_inverse_of_each_other(rows: list[dict[str, Any]]) -> None:
    native, onnxruntime = rows[:2]
    assert native["speedup"] * onnxruntime["speedup"] == pytest.approx(1, rel=0.05)


def test_a_network_alone_has_nothing_to_be_compared_with() -> None:
    (row,) = network_bench.network_rows("resnet8", ["native"], ["fp32"], 1, 0.01, None)
    assert (row["best_other"], row["speedup"], row["exact_speedup"], row["exact"]) == (None, None, None, None)
    assert row["engine"] == make_engine("native").signature.removesuffix(" threads=1")


def test_several_threads_are_compared_with_one() -> None:
    (row,) = network_bench.network_rows("resnet8", ["native"], ["int8"], 2, 0.01, None)
    assert row["threads"] == 2
    assert row["thread_speedup_low"] <= row["thread_speedup"] <= row["thread_speedup_high"]


def test_an_engine_without_integers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class FloatOnly(OnnxRuntimeEngine):
        def compile(self, graph: Graph, *arguments: Any) -> Any:
            if graph.quant:
                raise BadInput("no integers here")
            return super().compile(graph, *arguments)

    monkeypatch.setitem(ENGINE_MAKERS, "onnxruntime", SimpleNamespace(make=FloatOnly, obeys_level=False))
    rows = network_bench.network_rows("resnet8", ENGINES, ["fp32", "int8"], 1, 0.01, None)
    assert [row["lacking"] for row in rows] == [None, None, None, "no integers here"]
    assert [row["ms"] is None for row in rows] == [False, False, False, True]
    assert (rows[2]["best_other"], rows[2]["speedup"], rows[3]["speedup"]) == (None, None, None)


def test_widths_are_sixteenths_of_the_first_engine_s_full_width(with_shared_cache: None) -> None:
    rows = width_bench.width_rows("resnet8", "int8", ENGINES, [4, 15, 16], 1, 0.01, None)
    assert [(row["engine"], row["width"]) for row in rows] == [(e, w) for e in ENGINES for w in (4, 15, 16)]
    assert [row["macs"] for row in rows[:3]] == [row["macs"] for row in rows[3:]]
    assert rows[0]["macs"] == pytest.approx(1 / 16, rel=0.3)
    assert rows[0]["macs"] < rows[1]["macs"] < rows[2]["macs"] == 1
    assert rows[2]["ratio"] == 1
    assert all(0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rows)
    for odd in ([], [0], [17]):
        with pytest.raises(BadInput, match="1 to 16 of 16 parts"):
            width_bench.bench_widths(["resnet8"], ["native"], ["int8"], odd, 0.01, None)


def test_choices_are_held_to_the_other_kernels() -> None:
    rows = choice_rows("3x3 16@", ["fp32", "8/8"], 1, 0.001, None)
    assert [(row["form"], row["zeros"]) for row in rows] == [(f, z) for f in ("fp32", "8/8") for z in (0, 0.125, 0.5)]
    assert all(row["lost"] >= 1 or row["chosen"] == row["best"] for row in rows)
    with pytest.raises(BadInput, match="unknown form '9/9'"):
        bench_choices("", ["9/9"], 0.1, None)


def test_the_start_of_exported_networks() -> None:
    rows = bench_start(["resnet8"], ENGINES, ["int8"], 1)
    assert [row["engine"] for row in rows] == ENGINES
    assert all(0 < row["open_ms"] < row["start_ms"] and 10 < row["resident_mb"] < 500 for row in rows)
    assert rows[0]["file_mb"] < rows[1]["file_mb"]
    assert rows[0]["start_ratio"] == 1
    with pytest.raises(BadInput, match="torch does not say how its files are read"):
        bench_start(["resnet8"], ["torch"], ["int8"], 1)


def test_activations_are_spread() -> None:
    space, images = network_bench.load_network("resnet8")
    for form in network_bench.FORMS:
        candidate = network_bench.calibrated(space, network_bench.policy_of(space, form), images)
        session = make_engine("native").compile(network_bench.lower(candidate), 1, candidate.ranges)
        logits = session.run(images)
        assert np.isfinite(logits).all()
        assert (logits.std(axis=0) > 0).all()


def test_saturating_products_are_found() -> None:
    assert network_bench.exact_products(make_engine("native"))
    assert network_bench.exact_products(make_engine("onnxruntime"))

    class Saturating:
        name = "saturating"

        def compile(self, *arguments: Any) -> Any:
            return self

        def run(self, x: np.ndarray) -> np.ndarray:
            return np.full((1, 16), 144 / 2 * 32767, np.float32)

    assert not network_bench.exact_products(Saturating())  # type: ignore[arg-type]


# single layers


@pytest.fixture
def tiny_layers(monkeypatch: pytest.MonkeyPatch) -> tuple[Layer, ...]:
    made = (
        Layer("3x3 8-8 @6", 8, 8, 6, 3),
        Layer("3x3 8-12 @7 /2", 8, 12, 7, 3, stride=2),
        Layer("depthwise 3x3 8 @6", 8, 8, 6, 3, depthwise=True),
        Layer("linear 24-10, batch 3", 24, 10, 1, 0, batch=3),
        Layer("linear 64-64, cold", 64, 64, 1, 0, cold=True),
    )
    monkeypatch.setattr(layer_bench, "LAYERS", made)
    monkeypatch.setattr(layer_bench, "cache_sizes", lambda: (1 << 14, 1 << 14))
    return made


def test_every_layer_and_kind_has_a_row(tiny_layers: tuple[Layer, ...]) -> None:
    rows = layer_bench.layer_rows("", ["native", "onnxruntime"], 1, 0.001, None)
    assert [(row["layer"], row["kind"]) for row in rows] == [
        (layer.name, kind.name) for layer in tiny_layers for kind in layer_bench.kinds_of(layer)
    ]
    for row in rows:
        cold, narrow = row["layer"].endswith("cold"), row["kind"] not in ("fp32", "w8a8")
        assert intervals_hold(row) == 1 + 2 * (not cold) + narrow
        assert (row["best_other"] is None) == cold
        assert (row["others_ms"] is None) == (cold or narrow)
        assert row["gmac_per_s"] == pytest.approx(row["mmac"] / row["ms"])
        assert row["roofline"] == pytest.approx(row["gmac_per_s"] / row["roofline_gmac_per_s"])
        assert row["roofline_gmac_per_s"] > 0
        assert row["gbyte_per_s"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
        assert row["level"] == levels()[0]


@pytest.mark.parametrize("layer", LAYERS[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_the_values_that_their_kind_says(layer: Layer, kind: Kind) -> None:
    graph = layer_graph(layer, kind)
    weight = graph.nodes[0].weights["weight"]
    assert weight.shape == (layer.outputs, layer.inputs, 3, 3)
    if kind != FLOAT:
        assert len(np.unique(weight)) <= 1 << kind.w_bits
        x = np.random.default_rng(0).standard_normal((1, *graph.input_shape), dtype=np.float32)
        values = np.unique(make_engine("native").compile(graph).run(x))
        assert 1 < len(values) <= 1 << kind.a_bits


def test_work_is_counted() -> None:
    macs, moved = work_of(Layer("3x3", 8, 12, 7, 3, stride=2, batch=2), Kind("w4a1", 4, 1))
    assert macs == 2 * 4 * 4 * 12 * 8 * 9
    assert moved == 12 * 8 * 9 // 2 + 2 * (8 * 49 + 12 * 16)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_engines_get_the_same_layer_on_integers(name: str) -> None:
    if not find_spec(name):
        pytest.skip(f"{name} is not installed")
    layer = Layer("3x3 8-8 @6", 8, 8, 6, 3)
    # Weights of four bits, so that no kernel saturates.
    graph = layer_graph(layer, Kind("w4a8", 4, 8))
    stored = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 6), dtype=np.uint8)
    q_in, q_out = graph.quant["x"], graph.quant[graph.output]
    real = (stored.astype(np.float32) - q_in.zero_point) * np.float32(q_in.scale)
    expected = np.rint(make_engine("native").compile(graph).run(real) / q_out.scale) + q_out.zero_point
    found = make_engine(name).load(layer_model(graph)).run(stored)  # type: ignore[attr-defined]
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1


def test_a_float_layer_stays_float() -> None:
    graph = layer_graph(Layer("3x3 8-8 @6", 8, 8, 6, 3), FLOAT)
    x = np.ones((1, 8, 6, 6), np.float32)
    session = make_engine("onnxruntime").load(layer_model(graph))  # type: ignore[attr-defined]
    np.testing.assert_allclose(session.run(x), make_engine("native").compile(graph).run(x), rtol=1e-4, atol=1e-5)


def test_layers_and_engines_are_checked() -> None:
    with pytest.raises(BadInput, match="unknown layer"):
        layer_bench.bench_kernels("5x5", ["native"], [1], 0.01, None)
    with pytest.raises(BadInput, match="native"):
        layer_bench.bench_kernels("", ["onnxruntime"], [1], 0.01, None)
    with pytest.raises(BadInput, match="torch does not run"):
        layer_bench.layer_rows("@8", ["native", "torch"], 1, 0.01, None)


# coverage


def test_measurements_are_held_to_what_all_blocks_say() -> None:
    rng = np.random.default_rng(0)
    blocks = list(0.5 * np.exp(0.01 * rng.normal(size=2400)))  # ten minutes
    steady = partial(block_interval, drift=0.0)
    rows = {row["seconds"]: row for row in coverage_rows("a / b", blocks, 0.5, steady)}
    assert list(rows) == list(LENGTHS)
    for seconds, row in rows.items():
        assert row["apart"] == 600 / seconds
        assert row["measurements"] >= 60
        # The half-width of a 95 % interval is as long as the deviation that one in twenty passes.
        assert row["deviation_p95"] == pytest.approx(1.96 * 0.01 / (4 * seconds) ** 0.5, rel=0.3)
        assert row["deviation_p50"] < row["half_interval"]
        assert row["coverage"] >= 0.93
    lying = coverage_rows("a / b", blocks, 0.5, lambda blocks: Interval.exactly(float(np.mean(blocks))))
    assert [row["coverage"] for row in lying] == [0.0] * len(LENGTHS)


def test_short_records_overlap_their_measurements_and_leave_out_what_does_not_fit_twice() -> None:
    rows = coverage_rows("a / b", [0.5] * 60, 0.5, block_interval)
    assert [row["seconds"] for row in rows] == [1.0, 2.0, 5.0]
    assert [row["apart"] for row in rows] == [15, 7, 3]


@pytest.mark.slow
def test_a_latency_table_is_filled_from_nothing_and_held_to_networks() -> None:
    (row,) = bench_table(tiny(), 3)
    assert row["entries"] > 50
    assert 0 < row["measuring_seconds"] < row["seconds"]
    assert row["networks"] == 3
    assert 0 <= row["median_error"] <= row["largest_error"] < 1


@pytest.mark.slow
def test_coverage_is_measured_on_both_networks_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_bench, "RUN_IN", 2.0)
    monkeypatch.setattr(
        "trimtab.evaluators.measure.end_to_end.own_cache_bytes", lambda: 1 << 20
    )  # too little for the digits
    rows = bench_coverage("resnet8", "native", 1, 0.2, True, None)
    pairs = dict.fromkeys(row["pair"] for row in rows)
    assert list(pairs) == [
        "resnet8 int8 / fp32",
        "resnet8 half the channels / int8",
        "digits a quarter of the channels / yardstick",
        "digits a quarter of the channels / fp32, by the link",
    ]
    assert all(row["load"] and 0 < row["ratio"] < 2 for row in rows)
    with pytest.raises(BadInput, match="at least"):
        bench_coverage("resnet8", "native", 1, 0.01, False, None)


def test_the_load_ends_with_its_measurement() -> None:
    started: list[int] = []

    def fail_under_load() -> None:
        with bursts() as running:
            started.extend(running)
            for process in running:
                os.kill(process, 0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_under_load()
    assert len(started) == len(os.sched_getaffinity(0))
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


# processes of their own


def environment(threads: int, level: str | None, names: list[str]) -> list[dict[str, Any]]:
    return [
        {"threads": threads, "cores": len(os.sched_getaffinity(0)), **{name: os.environ.get(name) for name in names}}
    ]


def fails(threads: int, level: str | None) -> list[dict[str, Any]]:
    raise BadInput("the user's own fault")


def breaks(threads: int, level: str | None) -> list[dict[str, Any]]:
    raise RuntimeError("something else")


def dies(threads: int, level: str | None) -> list[dict[str, Any]]:
    os.abort()


@pytest.fixture
def found_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests' functions can be imported by other processes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.usefixtures("found_by_children")
def test_a_child_has_its_own_level_and_cores() -> None:
    level = levels()[-1]
    (row,) = run_in_child(environment, 1, level, {"names": ["TRIMTAB_ISA", "ONEDNN_MAX_CPU_ISA"]})
    assert row == {"threads": 1, "cores": 1, **{k: v for k, v in caps(level).items() if k != "ATEN_CPU_CAPABILITY"}}
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") is None


@pytest.mark.slow
@pytest.mark.usefixtures("found_by_children")
def test_errors_of_a_child_are_errors_here() -> None:
    with pytest.raises(BadInput, match="the user's own fault"):
        run_in_child(fails, 1, None, {})
    with pytest.raises(TrimtabError, match=r"ended with code 1: [\s\S]*something else"):
        run_in_child(breaks, 1, None, {})
    with pytest.raises(TrimtabError, match="SIGABRT"):
        run_in_child(dies, 1, None, {})


def test_levels_cap_what_can_be_capped() -> None:
    assert caps(None) == {}
    assert all(caps(level)["TRIMTAB_ISA"] == level for level in levels())
    with pytest.raises(BadInput, match="unknown kernel level of this machine 'neon'"):
        caps("neon")
    assert [ENGINE_MAKERS[name].obeys_level for name in ("native", "openvino", "torch", "onnxruntime-saturating")] == [
        True
    ] * 3 + [False]


# tables


def test_a_markdown_table_joins_intervals_and_leaves_out_empty_columns() -> None:
    rows = [
        {
            "network": "a",
            "ms": 1.0,
            "ms_low": 0.9,
            "ms_high": 1.23456,
            "exact": True,
            "nothing": None,
            "best": None,
            "all": None,
        },
        {
            "network": "b",
            "ms": 2.0,
            "ms_low": None,
            "ms_high": None,
            "exact": False,
            "nothing": None,
            "best": "a",
            "all": {"x": 1.0},
        },
    ]
    assert markdown_rows(rows).splitlines() == [
        "| network | ms | exact | best | all |",
        "| --- | ---: | ---: | --- | --- |",
        "| a | 1 [0.9, 1.235] | yes | – | – |",
        "| b | 2 | no | a | x 1 |",
    ]
