"""The agents by the names that configurations use, and as they are chosen there: a name, with parameters or without."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml
from pydantic import ValidationError

from trimtab import plugins
from trimtab.agents.amc import Amc, AmcSac, AmcTd3
from trimtab.agents.base import Agent, Estimates, Limits, Parameters
from trimtab.agents.evolution import Evolution
from trimtab.agents.gp import Gp
from trimtab.agents.greedy import Greedy
from trimtab.agents.haq import Haq
from trimtab.agents.milp import Milp
from trimtab.agents.nsga2 import Nsga2
from trimtab.agents.random import Random, RandomProjected
from trimtab.agents.tpe import Tpe
from trimtab.agents.uniform import Uniform
from trimtab.errors import BadInput, unknown_name
from trimtab.spaces import Space

__all__ = ["AGENTS", "ChosenAgent", "chosen", "label", "make"]

AGENTS: dict[str, type[Agent]] = {
    agent.name: agent
    for agent in (
        Uniform,
        Random,
        RandomProjected,
        Greedy,
        Milp,
        Evolution,
        Tpe,
        Nsga2,
        Gp,
        Amc,
        AmcTd3,
        AmcSac,
        Haq,
    )
}

#: The classes that programs gave, by where they lie: another process imports them there, but none finds a notebook's.
#: A later one of the same place is the same cell, run again.
_GIVEN: dict[str, type[Agent]] = {}

#: The group of entry points by which packages bring agents along.
ENTRY_POINTS = "trimtab.agents"

#: "evolution", or "evolution(population=64, crossed=0.25)".
_FORM = re.compile(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*")


@dataclass(frozen=True)
class ChosenAgent:
    """An agent as it was chosen: `name` as configurations have it, its class, and its parameters."""

    name: str
    agent: type[Agent]
    parameters: Parameters

    @property
    def label(self) -> str:
        """The choice as text, which `chosen` reads: the name, with what is not as usual in parentheses."""
        usual = self.agent.takes()
        pairs = [(field.name, getattr(self.parameters, field.name)) for field in fields(self.parameters)]
        changed = [f"{name}={value}" for name, value in pairs if value != getattr(usual, name)]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def make(self, space: Space, limits: Limits, seed: int, estimates: Estimates | None = None) -> Agent:
        """Return a fresh agent."""
        return self.agent(space, limits, seed, estimates, self.parameters)


def chosen(choice: str | Mapping[str, Any] | type[Agent]) -> ChosenAgent:
    """Read a choice: "evolution", "evolution(population=64)", {"name": "evolution", "population": 64}, or a class.

    A name is one of AGENTS, one that an installed package brings along (entry points `trimtab.agents`), or
    "package.module:Class", where a class of one's own lies: it is known by that from then on, and in every process that
    can import it. What is unknown or out of range is a `BadInput`.
    """
    name, given = _read(choice)
    agent = _class_of(name)
    try:
        return ChosenAgent(name, agent, agent.takes(**given))
    except ValidationError as error:
        raise BadInput("; ".join(_explained(name, agent, problem) for problem in error.errors())) from error
    except TypeError as error:
        raise BadInput(f"agent {name!r}: {error}") from error


def label(choice: str | Mapping[str, Any] | type[Agent]) -> str:
    """Return a choice as text."""
    return chosen(choice).label


def make(choice: str, space: Space, limits: Limits, seed: int, estimates: Estimates | None = None) -> Agent:
    """Return a fresh agent; an unknown name is a `BadInput` that lists the known ones."""
    return chosen(choice).make(space, limits, seed, estimates)


def _read(choice: str | Mapping[str, Any] | type[Agent]) -> tuple[str, dict[str, Any]]:
    """Return the name and the parameters that a choice has."""
    if inspect.isclass(choice):
        return _own(choice), {}
    if not isinstance(choice, Mapping):
        return _parsed(str(choice))
    name = choice.get("name")
    if not isinstance(name, str):
        raise BadInput("an agent with parameters is written {name: evolution, population: 64}")
    return name, {key: value for key, value in choice.items() if key != "name"}


def _own(agent: type) -> str:
    """Return the name of a class: as it is registered, or where it lies, under which it is then remembered."""
    registered = {known: name for name, known in AGENTS.items()}
    if agent in registered:
        return registered[agent]
    place = f"{agent.__module__}:{agent.__qualname__}"
    _GIVEN[place] = _checked(place, agent)
    return place


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise BadInput(f"{text!r} is not an agent; write it like 'evolution' or 'evolution(population=64)'")
    given = {}
    for part in filter(str.strip, (match[2] or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"agent {match[1]!r}: {part.strip()!r} is not a parameter; write it like population=64")
        given[key.strip()] = yaml.safe_load(value)
    return match[1], given


def _class_of(name: str) -> type[Agent]:
    if name in AGENTS:
        return AGENTS[name]
    if name in _GIVEN:
        return _GIVEN[name]
    plugins.check_known("agent", name, ENTRY_POINTS, AGENTS)
    return _checked(name, plugins.load("agent", name, ENTRY_POINTS))


def _checked(name: str, found: Any) -> type[Agent]:
    """Return an agent of others' that is whole: it would otherwise fail only after the baseline was measured."""
    if not (inspect.isclass(found) and issubclass(found, Agent)):
        raise BadInput(f"agent {name!r} is not a class derived from trimtab.agents.Agent")
    if lacking := [*_unnamed(found), *sorted(found.__abstractmethods__)]:
        raise BadInput(f"agent {name!r} lacks {', '.join(lacking)}: trimtab.agents.Agent says what its class supplies")
    with plugins.running(f"agent {name!r}, takes"):
        fields(found.takes())
    with plugins.running(f"agent {name!r}, __init__"):
        inspect.signature(found).bind(*inspect.signature(Agent).parameters)
    return found


def _unnamed(agent: type[Agent]) -> list[str]:
    return [] if isinstance(getattr(agent, "name", None), str) else ["name"]


def _explained(name: str, agent: type[Agent], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = [field.name for field in fields(agent.takes)]
        return (
            str(unknown_name(f"parameter of agent {name!r}", where, known))
            if known
            else (f"agent {name!r} has no parameters, found {where!r}")
        )
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"agent {name!r}: {where + ': ' if where else ''}{message}{found}"
