"""The session's contract: what it compiles, measures, and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from tests.kernels import build
from tests.kernels.build import IN, OUT
from tests.kernels.levels import LEVELS

from trimtab.errors import BadInput
from trimtab.kernels import (
    Graph,
    Session,
    active_level,
    cpu,
    emulated_levels,
    levels,
)

SHAPE = (4, 6, 6)


def small(rng: np.random.Generator, **attrs: Any) -> Graph:
    return build.graph(SHAPE, build.conv(rng, "x", 4, 8, integer=False, **attrs))


def test_levels() -> None:
    assert levels()[-1] == "portable"
    assert set(levels()) <= {"amx", "avx512_vnni", "avx_vnni", "avx2", "portable"}
    assert not set(levels()) & set(emulated_levels())
    assert cpu()["logical_cpus"] >= 1
    assert set(cpu()) == {"vendor", "model", "features", "logical_cpus"}


def test_isa_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", "portable")
    assert active_level() == "portable"
    monkeypatch.setenv("TRIMTAB_ISA", "sse9")
    with pytest.raises(BadInput, match=r"sse9.*portable"):
        active_level()
    monkeypatch.delenv("TRIMTAB_ISA")
    assert active_level() == levels()[0]


def test_import_is_cheap_and_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import trimtab.kernels as k\n"
        "assert not {'onnx', 'torchvision', 'scipy', 'ray'} & set(sys.modules)\n"
        "print(k.active_level())"
    )
    environment = {**os.environ, "TRIMTAB_ISA": "emulated-amx"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "emulated-amx", done.stderr
    assert not done.stderr


def test_time_and_profile(rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer=True)
    session = Session(graph, batch=2)
    x = build.images(rng, 6, (3, 32, 32)).reshape(3, 2, 3, 32, 32)
    start = time.perf_counter()
    piece = session.time(x, 0.05)
    between = time.perf_counter()
    entries = session.profile(x, 5)
    end = time.perf_counter()
    assert 0.05 <= piece.seconds <= between - start
    assert piece.runs >= 1
    assert [name for name, _ in entries] == ["<input>", *session.steps, "<output>"]
    assert all(seconds > 0 for _, seconds in entries)
    assert 5 * sum(seconds for _, seconds in entries) <= end - between
    assert session.weight_bytes > 200_000
    assert session.arena_bytes > 16 * 32 * 32


def test_kernels_of_the_layers(rng: np.random.Generator) -> None:
    graph = build.resnet20(rng, integer=True)
    session = Session(graph)
    layers = [name for name in session.steps if name in session.kernels]
    assert len(layers) == len(session.kernels) == 20
    assert all(kernel.startswith("w8a8") for kernel in session.kernels.values())
    plain = Session(build.resnet20(rng, integer=False)).kernels
    assert all(kernel.startswith("fp32") for kernel in plain.values())
    node = build.conv(rng, "x", 4, 4, name="deep", groups=4, integer=False)
    assert Session(build.graph(SHAPE, node)).kernels == {"deep": "fp32 depthwise"}


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_a_kernel_reads_at_least_the_bits_that_the_values_need(bits: int, rng: np.random.Generator) -> None:
    node = build.linear(rng, "x", 1024, 1024)
    values = rng.choice(np.arange(-128, 128), 2**bits, replace=False)
    node.weights["weight"][:] = values[rng.integers(2**bits, size=(1024, 1024))]  # type: ignore[index]
    for level in LEVELS:
        (kernel,) = Session(build.graph((1024,), node, quant={"x": IN}), level=level).kernels.values()
        reads, _, activations = kernel.split()[0].removeprefix("w").partition("a")
        assert bits <= int(reads) <= 8, level
        assert activations == "8", level


def test_a_single_layer_that_starts_from_integers(rng: np.random.Generator) -> None:
    graph = build.graph((16, 8, 8), build.conv(rng, "x", 16, 16), quant={"x": IN, "conv": OUT})
    entries = Session(graph).profile(build.images(rng, 2, (16, 8, 8))[:, None], 3)
    assert [name for name, _ in entries] == ["<input>", "conv", "<output>"]


def test_memory_is_shared_by_tensors_that_do_not_meet(rng: np.random.Generator) -> None:
    nodes = [build.conv(rng, "x", 4, 4, name="c0", integer=False, padding=(1, 1, 1, 1))]
    for i in range(1, 12):
        nodes.append(build.conv(rng, f"c{i - 1}", 4, 4, name=f"c{i}", integer=False, padding=(1, 1, 1, 1)))
    deep = Session(build.graph((4, 32, 32), *nodes)).arena_bytes
    assert deep < 2 * Session(build.graph((4, 32, 32), *nodes[:2])).arena_bytes


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, *SHAPE)),
        np.zeros(SHAPE, np.float32),
        np.zeros((1, 5, 6, 6), np.float32),
        np.zeros((0, *SHAPE), np.float32),
        np.zeros((1, 6, 6, 4), np.float32).transpose(0, 3, 1, 2),
        [[1.0]],
    ],
    ids=["float64", "no batch", "channels", "empty", "strided", "list"],
)
def test_wrong_inputs(x: Any, rng: np.random.Generator) -> None:
    session = Session(small(rng))
    with pytest.raises(BadInput, match="input must"):
        session.run(x)
    with pytest.raises(BadInput, match="input must"):
        session.time(x, 0.01)


def test_a_graph_that_makes_no_sense_is_not_compiled(rng: np.random.Generator) -> None:
    with pytest.raises(BadInput, match="groups do not fit 4 channels"):
        Session(small(rng, groups=3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"batch": 2**30}, "too large"),
        ({"threads": 0}, "threads must be 1 to 256"),
        ({"threads": 257}, "threads must be 1 to 256"),
        ({"level": "neon"}, "level 'neon' .*portable"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str, rng: np.random.Generator) -> None:
    with pytest.raises(BadInput, match=text):
        Session(small(rng), **options)


def test_compiling_changes_nothing_of_the_graph(rng: np.random.Generator) -> None:
    graph = build.graph(SHAPE, build.conv(rng, "x", 4, 4), quant={"conv": OUT})
    (node,) = graph.nodes
    before = {name: (id(weight), weight.copy()) for name, weight in node.weights.items()}
    Session(graph)
    assert (node.attrs, graph.quant) == ({}, {"conv": OUT})
    assert {name: id(weight) for name, weight in node.weights.items()} == {n: at for n, (at, _) in before.items()}
    assert all((node.weights[name] == weight).all() for name, (_, weight) in before.items())
