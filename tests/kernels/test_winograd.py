"""3x3 convolutions that the engine may compute by Winograd's algorithm."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.levels import LEVELS
from tests.pairwise import pairwise

from trimtab.kernels import Graph, Node, Quant, Session


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.one_of(st.sampled_from([32, 48, 64]), st.integers(12, 70)),
    out=st.integers(1, 70),
    size=st.tuples(st.integers(4, 19), st.integers(4, 19)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    stride=st.integers(1, 2),
    integer=st.booleans(),
    residual=st.booleans(),
    stored=st.booleans(),
    threads=st.integers(1, 2),
    method=st.sampled_from([None, "winograd", "winograd4"]),
    seed=st.integers(0, 99),
)
def test_equals_the_direct_sum(
    channels: int,
    out: int,
    size: tuple[int, int],
    padding: tuple[int, int, int, int],
    stride: int,
    integer: bool,
    residual: bool,
    stored: bool,
    threads: int,
    method: str | None,
    seed: int,
    level: str,
) -> None:
    rng = np.random.default_rng(seed)
    quant = {"x": IN} if integer else {}
    if integer and stored:
        quant["out"] = OUT
    attrs = {"padding": padding, "stride": (stride, stride)}
    nodes = []
    if residual:
        nodes.append(build.conv(rng, "x", channels, out, name="short", integer=integer, bias=False, **attrs))
    nodes.append(
        build.conv(
            rng,
            "x",
            channels,
            out,
            name="out",
            integer=integer,
            activation="relu",
            **attrs,
            residual="short" if residual else None,
        )
    )
    graph = build.graph((channels, *size), *nodes, quant=quant)
    x = build.images(rng, 3, (channels, *size))
    got = Session(graph, level=level, batch=2, threads=threads, method=method).run(x)
    wanted = reference.output(graph, x)
    if integer:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


@pairwise(
    weight=[-128, 127],
    channels=[64, 110, 125, 512],
    method=[None, "winograd", "winograd4"],
    zero=[0, 255],
    level=LEVELS,
)
def test_the_largest_sums(weight: int, channels: int, method: str | None, zero: int, level: str) -> None:
    """Weights and inputs at their limits, whether or not Winograd's larger sums would still fit 32 bits."""
    weights = {
        "weight": np.full((9, channels, 3, 3), weight, np.int8),
        "weight_scale": np.full(9, 1e-4, np.float32),
        "bias": np.linspace(-3000, 3000, 9, dtype=np.float32),
    }
    node = Node("conv2d", "out", ("x",), {"padding": (1, 1, 1, 1)}, weights)
    graph = Graph("x", (channels, 6, 6), (node,), "out", {"x": Quant(0.01, zero)})
    x = np.full((1, channels, 6, 6), 2.55 if zero == 0 else -2.55, np.float32)
    np.testing.assert_array_equal(Session(graph, level=level, method=method).run(x), reference.output(graph, x))


@pairwise(method=["winograd", "winograd4"], size=[7, 8, 9, 12, 16], channels=[12, 32], level=LEVELS)
def test_a_run_depends_on_none_before_it(method: str, size: int, channels: int, level: str) -> None:
    """What hangs over the image's edge was the last layer's, which is larger, of a run that held no numbers at all."""
    rng = np.random.default_rng(size)
    first = build.conv(rng, "x", channels, channels, name="first", padding=(0, 0, 0, 0))
    wide = build.conv(rng, "first", channels, 8, name="wide", padding=(3, 3, 3, 3))
    graph = build.graph((channels, size, size), first, wide)
    session = Session(graph, level=level, method=method)
    x = build.images(rng, 1, (channels, size, size))
    wanted = session.run(x)
    session.run(np.full_like(x, np.inf))
    np.testing.assert_array_equal(session.run(x), wanted)
