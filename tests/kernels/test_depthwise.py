"""Depthwise convolutions equal the reference at every level: bit for bit in integers, closely in float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT

from trimtab.kernels import Graph, Quant, Session


@st.composite
def depthwise_layer(draw: st.DrawFn, integer: bool) -> tuple[Graph, int, int]:
    """Draw a graph of one layer, a batch size and a number of threads."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.integers(2, 70))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if draw(st.booleans()):  # the kernels that have a code of their own
        side = draw(st.sampled_from([3, 5]))
        kernel, dilation = (side, side), (1, 1)
    attrs = {
        "groups": channels,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "dilation": dilation,
        "padding": tuple(draw(st.lists(st.integers(0, 4), min_size=4, max_size=4))),
        "activation": draw(st.sampled_from(["none", "relu", "relu6"])),
    }
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = (channels, *(draw(st.integers(side, side + 20)) for side in least))
    node = build.conv(rng, "x", channels, channels, kernel, integer=integer, **attrs)
    quant = {}
    if integer:
        if draw(st.booleans()):  # few enough bits for sums in 16 bits
            np.clip(node.weights["weight"], -31, 31, out=node.weights["weight"])
        quant["x"] = Quant(draw(st.floats(0.005, 0.1)), draw(st.integers(0, 255)))
        if draw(st.booleans()):
            quant["conv"] = Quant(draw(st.floats(0.005, 0.1)), draw(st.integers(0, 255)))
    return build.graph(shape, node, quant=quant), draw(st.integers(1, 3)), draw(st.integers(1, 3))


def outputs(case: tuple[Graph, int, int], level: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the level computes, and the reference."""
    graph, batch, threads = case
    x = build.images(np.random.default_rng(1), 3, graph.input_shape)
    return Session(graph, level=level, batch=batch, threads=threads).run(x), reference.output(graph, x)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=depthwise_layer(integer=True))
def test_integers(case: tuple[Graph, int, int], level: str) -> None:
    np.testing.assert_array_equal(*outputs(case, level))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=depthwise_layer(integer=False))
def test_floats(case: tuple[Graph, int, int], level: str) -> None:
    np.testing.assert_allclose(*outputs(case, level), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("integer", [True, False])
def test_residual(integer: bool, level: str, rng: np.random.Generator) -> None:
    first = build.conv(rng, "x", 19, 19, integer=integer, name="first", groups=19, padding=(1, 1, 1, 1))
    conv = build.conv(rng, "first", 19, 19, integer=integer, residual="first", groups=19, padding=(1, 1, 1, 1))
    quant = {"x": IN, "first": OUT, "conv": Quant(0.1, 130)} if integer else {}
    graph = build.graph((19, 9, 13), first, conv, quant=quant)
    got, wanted = outputs((graph, 2, 2), level)
    np.testing.assert_allclose(got, wanted, rtol=0 if integer else 1e-4, atol=0 if integer else 1e-4)


def test_largest_sums(level: str, rng: np.random.Generator) -> None:
    for weight in (-128, 127):
        conv = build.conv(rng, "x", 9, 9, (7, 7), groups=9, bias=False, padding=(3, 3, 3, 3))
        conv.weights["weight"][:] = weight  # type: ignore[index]
        for zero in (0, 255):
            graph = build.graph((9, 11, 12), conv, quant={"x": Quant(1.0, zero), "conv": Quant(1e-2, 128)})
            for value in (-1e9, 1e9):
                x = np.full((1, 9, 11, 12), value, np.float32)
                np.testing.assert_array_equal(Session(graph, level=level).run(x), reference.output(graph, x))


@pytest.mark.parametrize(("bits", "columns"), [(8, (32, 32)), (7, (64, 65))])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (4, 2)])
@pytest.mark.parametrize("one_more", [None, 0, -1])
def test_sums_that_just_fit_16_bits(
    level: str, bits: int, columns: tuple[int, int], kernel: tuple[int, int], one_more: int | None
) -> None:
    rng = np.random.default_rng(bits)
    node = build.conv(rng, "x", 35, 35, kernel, groups=35, padding=(2, 2, 2, 2))
    node.weights["weight"][:] = np.resize(columns, kernel[1])
    node.weights["weight"][::3] *= -1
    if one_more is not None:  # in one row of one channel, whose neighbour is the row before it or behind it
        node.weights["weight"][34, 0, one_more, 0] += 1
    graph = build.graph((35, 11, 13), node, quant={"x": Quant(0.02, 9, bits)})
    session = Session(graph, level=level)
    assert ("short" in session.kernels["conv"]) == (level == "avx2" and one_more is None)
    assert Session(graph, level=level, method="rows").kernels["conv"] == "w8a8 depthwise"
    for x in (np.full((1, 35, 11, 13), 1e9, np.float32), rng.uniform(-1, 6, (1, 35, 11, 13)).astype(np.float32)):
        wanted = reference.output(graph, x)
        np.testing.assert_array_equal(session.run(x), wanted)
        np.testing.assert_array_equal(Session(graph, level=level, method="rows").run(x), wanted)
