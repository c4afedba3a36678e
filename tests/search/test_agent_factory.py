"""Agents get the same estimates whatever runs beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.search.runs import tiny

from trimtab.agents import AGENTS
from trimtab.search.loop.journal import read_journal
from trimtab.search.progress import Progress
from trimtab.search.run import run_search
from trimtab.search.setup import problem as problem_module
from trimtab.search.setup.agent_factory import make_agent
from trimtab.search.setup.problem import Problem

BUDGETS = {"size": "0.5x", "macs": "0.9x"}


class Everything:
    """Limits that everything meets."""


@pytest.mark.parametrize("proxy", ["sequence", "layers"])
@pytest.mark.parametrize("beside", [[], ["greedy"]])
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_who_gets_the_layer_database_is_a_matter_of_the_agent_and_the_proxy(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str, beside: list[str]
) -> None:
    database = object()
    monkeypatch.setattr(problem_module, "open_database", lambda space, calibration: database)
    under = replace(problem, config=tiny(agent=name, proxy=proxy, baselines=beside))
    agent = make_agent(under, name, Everything())  # type: ignore[arg-type]
    assert (agent.estimates is database) == (proxy == "layers" or AGENTS[name].needs_estimates)


def test_agents_share_one_layer_database(problem: Problem) -> None:
    """The additive model, which several agents plan with, is cached by the database that it is made of."""
    given = [make_agent(problem, name, Everything()).estimates for name in ("milp", "greedy")]  # type: ignore[arg-type]
    assert given[0] is given[1] is not None


@pytest.mark.parametrize("agent", ["evolution", "tpe"])
def test_what_an_agent_proposes_does_not_depend_on_who_runs_beside_it(
    problem: Problem, tmp_path: Path, agent: str
) -> None:
    asked = []
    for number, baselines in enumerate(([], ["greedy"])):
        folder = tmp_path / str(number)
        config = tiny(agent=agent, baselines=baselines, trials=4, budgets=BUDGETS)
        run_search(replace(problem, config=config), folder, Progress())
        records = [record.data for record in read_journal(folder / "journal") if record.kind == "ask"]
        asked.append([data["policies"] for data in records if data["agent"] == agent])
    assert asked[0] == asked[1]
