"""Networks of every width equal the reference at every level, with however many channels their tensors are stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels import build, reference
from tests.kernels.build import IN, OUT
from tests.kernels.levels import LEVELS

from trimtab.kernels import Graph, Node, Session, _native

PAD = {"padding": (1, 1, 1, 1)}


def network(rng: np.random.Generator, width: int, integer: bool) -> Graph:
    """Return a stem, a depthwise layer and a residual block, and one of stride 2 whose shortcut has more channels."""

    def conv(source: str, channels: int, out: int, name: str, **attrs: object) -> Node:
        return build.conv(rng, source, channels, out, name=name, integer=integer, activation="relu", **PAD, **attrs)  # type: ignore[arg-type]

    index = rng.permutation([*range(width), *[-1] * width])
    nodes = (
        conv("x", 3, width, "stem"),
        conv("stem", width, width, "own", groups=width),
        conv("own", width, width, "same", residual="stem"),
        Node("subsample", "half", ("same",), {"stride": (2, 2)}),
        Node("channel_map", "short", ("half",), {"index": tuple(index.tolist())}),
        conv("same", width, 2 * width, "down", stride=(2, 2)),
        conv("down", 2 * width, 2 * width, "last", residual="short"),
        Node("global_avg_pool2d", "pool", ("last",)),
        Node("flatten", "flat", ("pool",)),
        build.linear(rng, "flat", 2 * width, 5, name="out", integer=integer),
    )
    stored = ("stem", "own", "same", "half", "short", "down", "last", "pool", "flat")
    return Graph("x", (3, 9, 10), nodes, "out", {"x": IN, **dict.fromkeys(stored, OUT)} if integer else {})


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_every_width(level: str, integer: bool, rng: np.random.Generator) -> None:
    for width in (*range(1, 18), 24, 31):
        graph = network(rng, width, integer)
        x = build.images(rng, 3, graph.input_shape)
        got = Session(graph, level=level, batch=2, threads=2).run_tensors(x)
        for name, values in reference.interpret(graph, x).items():
            assert got[name].shape == values.shape
            tolerance = {"rtol": 0, "atol": 0} if integer else {"rtol": 1e-4, "atol": 1e-4}
            np.testing.assert_allclose(got[name], values, **tolerance, err_msg=f"{name} of width {width}")


@given(
    st.sampled_from(LEVELS), st.integers(1, 200), st.booleans(), st.booleans(), st.lists(st.integers(1, 7), max_size=3)
)
def test_stored_channels(level: str, count: int, integer: bool, depthwise: bool, filters: list[int]) -> None:
    """Never fewer, never a vector more, and whoever has more channels is stored with no fewer."""
    stored = _native.stored_channels(level, count, integer, depthwise, filters)
    assert count <= stored < count + 16
    assert stored <= _native.stored_channels(level, count + 1, integer, depthwise, filters)


def test_a_channel_less_takes_the_same_tiles(rng: np.random.Generator) -> None:
    """Fifteen channels are stored as sixteen where layers run on tiles: no network gets slower by losing one."""
    fifteen, sixteen = (Session(network(rng, width, True), level="emulated-amx") for width in (15, 16))
    assert fifteen.weight_bytes == sixteen.weight_bytes
    assert fifteen.kernels == sixteen.kernels
