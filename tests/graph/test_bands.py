"""Convolutions that run in bands give the bits that they give one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.levels import LEVELS
from tests.pairwise import pairwise

from trimtab.graph import Quant
from trimtab.kernels import Graph, Node, Session

NEVER = 2**60
SHAPES = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def session(graph: Graph, monkeypatch: pytest.MonkeyPatch, size: int, window: int = 1, **options: int | str) -> Session:
    """Compile with chains over tensors from `size` bytes on, in bands whose windows have `window` bytes if they can."""
    monkeypatch.setattr("trimtab.graph.bands.CHAINED_BYTES", size)
    monkeypatch.setattr("trimtab.graph.bands.WINDOW_BYTES", window)
    return Session(graph, **options)  # type: ignore[arg-type]


@st.composite
def convolutions(draw: st.DrawFn) -> Graph:
    """Draw two to four convolutions in a row, perhaps with a residual for the last one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    integer = draw(st.booleans())
    channels = draw(st.integers(1, 20))
    shape = (channels, draw(st.integers(6, 24)), draw(st.integers(6, 20)))
    nodes: list[Node] = []
    quant = {"x": IN} if integer else {}
    count, source, size = draw(st.integers(2, 4)), "x", shape[1:]
    for i in range(count):
        kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (1, 3), (3, 1), (5, 5), (2, 2)]))
        depthwise = channels > 1 and draw(st.booleans())
        out = channels if depthwise else draw(st.integers(1, 24))
        stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 2)]))
        top, left = draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1]))
        padding = (
            top,
            left,
            draw(st.integers(kernel[0] // 2, kernel[0])),
            draw(st.integers(kernel[1] // 2, kernel[1])),
        )
        attrs = {"stride": stride, "padding": padding, "groups": channels if depthwise else 1}
        size = tuple((size[d] + padding[d] + padding[d + 2] - kernel[d]) // stride[d] + 1 for d in (0, 1))
        if min(size) < 1:
            break
        activation = draw(st.sampled_from(["none", "relu", "relu6"]))
        name = f"conv{i}"
        nodes.append(
            build.conv(rng, source, channels, out, kernel, name=name, integer=integer, activation=activation, **attrs)
        )
        if integer and (i < count - 1 or draw(st.booleans())):
            quant[name] = Quant(draw(st.floats(0.01, 0.1)), draw(st.integers(0, 255)))
        source, channels = name, out
    return build.graph(shape, *nodes, quant={k: q for k, q in quant.items() if k in ("x", *(n.name for n in nodes))})


@SHAPES
@given(graph=convolutions(), threads=st.integers(1, 3), batch=st.integers(1, 2), window=st.sampled_from([1, 3000]))
def test_bands_change_nothing(
    graph: Graph, threads: int, batch: int, window: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = build.images(np.random.default_rng(1), 3, graph.input_shape)
    together = session(graph, monkeypatch, 0, window, level=level, threads=threads, batch=batch)
    apart = session(graph, monkeypatch, NEVER, level=level, threads=threads, batch=batch)
    assert (len(together.steps), len(apart.steps)) == (1, len(graph.nodes))
    np.testing.assert_array_equal(together.run(x), apart.run(x))


def inverted_residual(rng: np.random.Generator, integer: bool, stride: int) -> Graph:
    narrow = {"padding": (0, 0, 0, 0)}
    last = {"residual": "x"} if stride == 1 else {}
    nodes = (
        build.conv(rng, "x", 5, 30, (1, 1), name="expand", integer=integer, activation="relu6", **narrow),
        build.conv(rng, "expand", 30, 30, name="depthwise", integer=integer, groups=30, stride=(stride,) * 2,
                   padding=(1, 1, 1, 1), activation="relu6"),
        build.conv(rng, "depthwise", 30, 5, (1, 1), name="project", integer=integer, **narrow, **last),
    )  # fmt: skip
    return build.graph((5, 19, 13), *nodes, quant=dict.fromkeys(("x", "expand", "depthwise"), IN) if integer else {})


@pairwise(integer=[True, False], threads=[1, 2], stride=[1, 2], level=LEVELS)
def test_inverted_residuals(
    integer: bool, threads: int, stride: int, level: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    x, graph = build.images(rng, 3, (5, 19, 13)), inverted_residual(rng, integer, stride)
    block = session(graph, monkeypatch, 0, level=level, threads=threads, batch=2)
    assert block.steps == ["project"]
    tolerance = 0 if integer else 1e-4
    wanted = reference.interpret(graph, x)
    np.testing.assert_allclose(block.run(x), wanted["project"], rtol=tolerance, atol=tolerance)
    for name, values in block.run_tensors(x).items():
        np.testing.assert_allclose(values, wanted[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_chain_is_one_step_and_has_no_tensors_inside(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    nodes = (
        build.conv(rng, "x", 4, 64, (1, 1), name="wide", integer=False),
        build.conv(rng, "wide", 64, 4, (1, 1), name="narrow", integer=False),
    )
    graph = build.graph((4, 64, 64), *nodes)
    together, apart = (session(graph, monkeypatch, size) for size in (0, NEVER))
    x = build.images(rng, 2, (1, 4, 64, 64))
    assert [name for name, _ in together.profile(x, 2)] == ["<input>", "narrow", "<output>"]
    assert together.arena_bytes < apart.arena_bytes - 64 * 64 * 64 * 4 // 2


def test_what_is_read_twice_or_given_out_is_kept(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    pad = {"padding": (1, 1, 1, 1), "integer": False}
    first = build.conv(rng, "x", 4, 4, name="first", **pad)
    second = build.conv(rng, "first", 4, 4, name="second", **pad)

    def steps(output: str, *nodes: Node) -> list[str]:
        return session(Graph("x", (4, 9, 9), nodes, output), monkeypatch, 0).steps

    assert steps("second", first, second) == ["second"]
    assert steps("first", first, second) == ["first", "second"]
    again = build.conv(rng, "second", 4, 4, name="again", residual="first", **pad)
    assert steps("again", first, second, again) == ["first", "again"]
    itself = build.conv(rng, "first", 4, 4, name="itself", residual="first", **pad)
    assert steps("itself", first, itself) == ["first", "itself"]
    adds = build.conv(rng, "x", 4, 4, name="adds", residual="first", **pad)
    assert steps("adds", first, adds) == ["first", "adds"]
    pool = Node("max_pool2d", "pool", ("first",), {"kernel": (2, 2)})
    after = build.conv(rng, "pool", 4, 4, name="after", **pad)
    assert steps("after", first, pool, after) == ["first", "pool", "after"]


def test_small_tensors_are_not_worth_a_chain(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    graph = inverted_residual(rng, True, 1)  # 19 * 13 * 30 bytes after the expansion
    assert session(graph, monkeypatch, 19 * 13 * 30).steps == ["project"]
    assert session(graph, monkeypatch, 19 * 13 * 30 + 1).steps == ["expand", "depthwise", "project"]
    graph = build.graph(graph.input_shape, *graph.nodes, quant={**graph.quant, "project": OUT})
    assert session(graph, monkeypatch, 19 * 13 * 30).steps == ["project"]
