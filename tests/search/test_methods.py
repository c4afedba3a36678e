"""Policies as text, judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.search.runs import tiny

from trimtab.errors import BadInput
from trimtab.evaluators.price.plan import StepPlan
from trimtab.search.bench.methods import Case, bench_methods, parse_case
from trimtab.search.progress import ConsoleProgress
from trimtab.search.setup.problem import load_problem, open_database
from trimtab.spaces import LayerFormat, Policy
from trimtab.spaces.numbers.formats import INT8


def test_a_case_is_read_from_its_parts() -> None:
    assert parse_case("4/8") == Case("4/8", LayerFormat.of(4, 8))
    assert parse_case(" 3/8 codebook + keep 0.7 ") == Case(
        "3/8 codebook + keep 0.7", LayerFormat.of(3, 8, "codebook"), keep=0.7
    )
    assert parse_case("macs 0.5 + 8/8 + svd 0.5") == Case("macs 0.5 + 8/8 + svd 0.5", INT8, "svd 0.5", macs=0.5)
    assert parse_case("macs 0.5 + allocated") == Case("macs 0.5 + allocated", macs=0.5, allocated=True)


@pytest.mark.parametrize("text", ["", "9/9", "4/8 nothing", "keep 2", "svd", "keep 0.5 + allocated"])
def test_what_is_no_case_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        parse_case(text)


def test_every_case_has_a_row_beside_the_base_s() -> None:
    rows = bench_methods(tiny(), ["8/8", "macs 0.5", "2:4 + 8/8", "kernels 4 + 8/8"], final=True)
    base, int8, half, sparse, shared = rows
    assert base["selection_change"] == base["final_change"] == 0
    assert base["macs"] == int8["macs"] == 1
    assert 0.3 < half["macs"] <= 0.5
    assert int8["bytes"] < base["bytes"] / 3
    assert max(sparse["bytes"], shared["bytes"]) < int8["bytes"]
    for row in rows[1:]:
        assert row["selection"] - base["selection"] == pytest.approx(row["selection_change"])
        assert row["final_error"] >= 0


def test_allocated_widths_take_the_place_of_uniform_ones() -> None:
    problem = load_problem(tiny(), ConsoleProgress())
    space, plan = problem.space, StepPlan(problem.space)
    policy = parse_case("macs 0.5 + allocated + 8/8").policy(problem)
    uniform = parse_case("macs 0.5 + 8/8").policy(problem)
    database = open_database(space, problem.judge.calibration)

    def macs(policy: Policy) -> int:
        return sum(step.macs for step in plan.steps(policy))

    def error(policy: Policy) -> float:
        return sum(database.errors(replace(policy, layers=space.base().layers)).values())

    assert macs(policy) <= 0.5 * macs(space.base())
    assert error(policy) < error(uniform)
    assert policy.layers == uniform.layers
