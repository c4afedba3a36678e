"""Layers with blocks of zero weights, which the engine may leave out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT

from trimtab.kernels import Node, Session

PAD = {"padding": (1, 1, 1, 1)}


def prune(node: Node, rng: np.random.Generator, share: float, inputs: int, outputs: int) -> None:
    """Set random blocks of `inputs` by `outputs` weights to zero, at every tap by itself."""
    weight = node.weights["weight"]
    taps = weight.reshape(*weight.shape[:2], -1)
    for o in range(0, taps.shape[0], outputs):
        for i in range(0, taps.shape[1], inputs):
            taps[o : o + outputs, i : i + inputs, rng.random(taps.shape[2]) < share] = 0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 40),
    out=st.integers(1, 70),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 1, 2]),
    share=st.sampled_from([0.2, 0.7, 0.95, 1.0]),
    block=st.sampled_from([(1, 8), (2, 16), (4, 64)]),
    integer=st.booleans(),
    residual=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_layer(
    channels: int,
    out: int,
    kernel: tuple[int, int],
    stride: int,
    groups: int,
    share: float,
    block: tuple[int, int],
    integer: bool,
    residual: bool,
    threads: int,
    seed: int,
    level: str,
) -> None:
    rng = np.random.default_rng(seed)
    channels, out = channels * groups, out * groups
    attrs = {"stride": (stride, stride), "groups": groups, "integer": integer, **PAD}
    nodes = [build.conv(rng, "x", channels, out, kernel, name="short", bias=False, **attrs)] if residual else []
    last = build.conv(rng, "x", channels, out, kernel, name="out", residual="short" if residual else None, **attrs)
    prune(last, rng, share, *block)
    graph = build.graph((channels, 7, 6), *nodes, last, quant={"x": IN, "out": OUT} if integer else {})
    x = build.images(rng, 3, (channels, 7, 6))
    got = Session(graph, level=level, batch=2, threads=threads).run(x)
    wanted = reference.output(graph, x)
    if integer:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, atol=2e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("integer", [True, False])
def test_zeros_are_left_out_where_that_pays(integer: bool, rng: np.random.Generator) -> None:
    def kernel(share: float) -> str:
        node = build.conv(rng, "x", 64, 64, integer=integer, **PAD)
        prune(node, rng, share, 2, 64)
        graph = build.graph((64, 8, 8), node, quant={"x": IN, "conv": OUT} if integer else {})
        session = Session(graph, level="portable")
        return session.kernels["conv"]

    assert "blocks" not in kernel(0.3)
    assert "blocks" in kernel(0.8)
