"""The memory plan against a walk through the steps that asks of every tensor whether it is still needed."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.build import IN

from trimtab.kernels import Graph, Node
from trimtab.kernels.memory import place

UNIT = 1024
#: Floats that take so many units, with the 256 bytes behind them that kernels may read.
ONE, TWO = (192,), (448,)


def chain(*names: str) -> tuple[Node, ...]:
    """Every tensor is made of the one before it."""
    return tuple(Node("activation", name, (source,)) for source, name in pairwise(names))


def apart(*nodes: Node) -> list[list[Node]]:
    return [[node] for node in nodes]


def test_two_places_are_enough_for_a_chain() -> None:
    nodes = chain("x", "a", "b", "c", "d")
    found = place(Graph("x", ONE, nodes, "d"), apart(*nodes), dict.fromkeys("xabcd", ONE), 1)
    assert found.total == 2 * UNIT
    assert found.offsets == {"x": 0, "a": UNIT, "b": 0, "c": UNIT, "d": 0}


def test_the_largest_tensor_comes_first_and_others_use_its_place_when_it_is_gone() -> None:
    nodes = chain("x", "a", "b", "c")
    found = place(Graph("x", ONE, nodes, "c"), apart(*nodes), {"x": ONE, "a": TWO, "b": ONE, "c": ONE}, 1)
    assert found.offsets == {"x": 2 * UNIT, "a": 0, "b": 2 * UNIT, "c": 0}
    assert found.total == 3 * UNIT


def test_what_is_read_late_keeps_its_place() -> None:
    nodes = (*chain("x", "a", "b"), Node("add", "c", ("b", "x")))
    found = place(Graph("x", ONE, nodes, "c"), apart(*nodes), dict.fromkeys("xabc", ONE), 1)
    assert found.total == 3 * UNIT
    assert found.offsets["x"] not in {found.offsets[name] for name in "abc"}


def test_the_output_is_kept_to_the_end() -> None:
    nodes = chain("x", "a", "b", "c")
    found = place(Graph("x", ONE, nodes, "a"), apart(*nodes), dict.fromkeys("xabc", ONE), 1)
    assert found.offsets["a"] not in {found.offsets[name] for name in "xbc"}


def test_integers_take_a_byte_each_and_a_batch_all_its_images() -> None:
    nodes = chain("x", "a")
    graph = Graph("x", (768,), nodes, "a", {"x": IN})
    found = place(graph, apart(*nodes), {"x": (768,), "a": ONE}, 1)
    assert found.total == 2 * UNIT
    found = place(graph, apart(*nodes), {"x": (768,), "a": ONE}, 5)
    assert found.total == (5 * 768 + 256) + (5 * 768 + 256)


def test_tensors_inside_a_step_have_no_place() -> None:
    nodes = chain("x", "a", "b", "c")
    found = place(Graph("x", ONE, nodes, "c"), [list(nodes[:2]), [nodes[2]]], dict.fromkeys("xabc", ONE), 1)
    assert set(found.offsets) == {"x", "b", "c"}


@st.composite
def programs(draw: st.DrawFn) -> tuple[Graph, list[list[Node]], dict[str, tuple[int, ...]]]:
    """Draw tensors that read any before them, in steps of one to three."""
    names, nodes = ["t0"], []
    for i in range(1, draw(st.integers(2, 12))):
        read = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        nodes.append(Node("concat", f"t{i}", tuple(read)))
        names.append(f"t{i}")
    steps: list[list[Node]] = []
    for node in nodes:
        inside = steps[-1][-1].name if steps else ""
        seen_later = any(inside in other.inputs for other in nodes if other is not node)
        if steps and len(steps[-1]) < 3 and inside in node.inputs and not seen_later and draw(st.booleans()):
            steps[-1].append(node)
        else:
            steps.append([node])
    shapes = {name: (draw(st.integers(1, 300)), draw(st.integers(1, 4)), 2) for name in names}
    quant = dict.fromkeys(draw(st.lists(st.sampled_from(names))), IN)
    output = draw(st.sampled_from([step[-1].name for step in steps]))
    return Graph("t0", shapes["t0"], tuple(nodes), output, quant), steps, shapes


@settings(max_examples=200)
@given(program=programs(), batch=st.integers(1, 3))
def test_what_is_needed_at_the_same_time_has_no_byte_in_common(
    program: tuple[Graph, list[list[Node]], dict[str, tuple[int, ...]]], batch: int
) -> None:
    graph, steps, shapes = program
    found = place(graph, steps, shapes, batch)
    ends = {}
    for name, start in found.offsets.items():
        ends[name] = start + prod(shapes[name]) * batch * (1 if name in graph.quant else 4) + 256
        assert start % 64 == 0
    assert max(ends.values()) <= found.total < max(ends.values()) + 64
    written = {graph.input}
    for i, step in enumerate(steps):
        written.add(step[-1].name)
        read_from_here = {name for later in steps[i:] for node in later for name in node.inputs}
        needed = written & (read_from_here | {step[-1].name, graph.output})
        for one, other in combinations(needed, 2):
            assert ends[one] <= found.offsets[other] or ends[other] <= found.offsets[one], (i, one, other)
