"""A small space with toy budgets and toy accuracies, on which a whole search takes a second."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from trimtab.agents import Agent
from trimtab.errors import InfeasibleBudget
from trimtab.spaces import Options, Policy, Space, build_space
from trimtab.spaces.zoo import CifarResNet


@dataclass(frozen=True)
class ToyScore:
    accuracy: float
    violations: Mapping[str, float] = field(default_factory=dict)


def toy_space(options: Options | None = None) -> Space:
    torch.manual_seed(0)
    return build_space(CifarResNet(8, width=8).eval(), torch.zeros(1, 3, 16, 16), options)


class ToyLimits:
    """Weights in bits, and MACs, both at most a share of the untouched network's."""

    def __init__(self, space: Space, size: float = 0.3, macs: float = 0.6) -> None:
        self.space = space
        base = self.costs(space.base())
        self.budgets = {"size": size * base["size"], "macs": macs * base["macs"]}

    def costs(self, policy: Policy) -> dict[str, float]:
        return {name: sum(costs.values()) for name, costs in self.by_layer(policy).items()}

    def by_layer(self, policy: Policy) -> dict[str, dict[str, float]]:
        size: dict[str, float] = {}
        macs: dict[str, float] = {}
        for shape in self.space.layer_shapes(policy):
            taps = int(np.prod(shape.op.weight.shape[2:]))
            area = int(np.prod(shape.op.shape[1:]))
            weights = shape.inputs * shape.outputs * taps // shape.op.groups
            if shape.decision.rank is not None:
                weights = shape.decision.rank * (shape.inputs * taps + shape.outputs)
            size[shape.op.name] = weights * shape.decision.format.weight.bits
            macs[shape.op.name] = weights * area
        return {"size": size, "macs": macs}

    def shares(self, policy: Policy) -> dict[str, dict[str, float]]:
        return {
            name: {layer: cost / self.budgets[name] for layer, cost in costs.items()}
            for name, costs in self.by_layer(policy).items()
        }

    def violations(self, policy: Policy) -> dict[str, float]:
        costs = self.costs(policy)
        return {name: costs[name] / limit - 1 for name, limit in self.budgets.items()}

    def feasible(self, policy: Policy) -> bool:
        return max(self.violations(policy).values()) <= 0

    def project(self, policy: Policy) -> Policy:
        """Lower the knob that is highest in its range, the first of equals, until everything is met."""
        if self.feasible(policy):
            return policy
        vector = np.array(self.space.encode(policy))
        spans = np.array([len(knob.choices) - 1 for knob in self.space.knobs])
        while vector.any():
            vector[int(np.argmax(vector / spans))] -= 1
            policy = self.space.decode(vector.tolist())
            if self.feasible(policy):
                return policy
        raise InfeasibleBudget(f"even the smallest policy violates a budget: {self.violations(policy)}")


def distance_to(space: Space, target: Policy) -> Callable[[Policy], float]:
    """An additive accuracy with a known optimum: 1 at the target, falling with every knob's distance from it."""
    goal = np.array(space.encode(target))
    spans = np.array([len(knob.choices) - 1 for knob in space.knobs])
    weights = np.random.default_rng(7).exponential(size=len(spans))

    def accuracy(policy: Policy) -> float:
        distances = np.abs(np.array(space.encode(policy)) - goal) / spans
        return float(1 - (weights * distances).sum() / weights.sum())

    return accuracy


class ToyEstimates:
    """Every compression hurts, each knob by its own amount, which the layers that the knob concerns share."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._spans = np.array([len(knob.choices) - 1 for knob in space.knobs])
        weights = np.random.default_rng(7).exponential(size=len(self._spans))
        self._weights = weights / weights.sum()
        self._layers = np.zeros(len(weights))
        for scope in space.scopes.values():
            self._layers[list(scope)] += 1

    def damage(self, policy: Policy) -> np.ndarray:
        return self._weights * (1 - np.array(self.space.encode(policy)) / self._spans) ** 2

    def errors(self, policy: Policy) -> dict[str, float]:
        shared = self.damage(policy) / self._layers
        return {layer: float(shared[list(scope)].sum()) for layer, scope in self.space.scopes.items()}


def damage(space: Space) -> Callable[[Policy], float]:
    """The accuracy of which `ToyEstimates` knows everything: the budget binds."""
    estimates = ToyEstimates(space)
    return lambda policy: 1 - float(estimates.damage(policy).sum())


def best(agent: Agent, accuracy: Callable[[Policy], float], evaluations: int) -> float:
    """The best accuracy that an agent finds, one policy at a time."""
    values = []
    for _ in range(evaluations):
        (policy,) = agent.ask(1)
        values.append(accuracy(policy))
        agent.tell(policy, ToyScore(values[-1], agent.limits.violations(policy)))
    return max(values)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with another hash seed, warnings being errors."""
    paths = [*(path for path in sys.path if path), str(Path(__file__).parents[2])]
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}", *arguments],
        env={"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
