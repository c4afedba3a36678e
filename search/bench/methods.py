"""Single methods on a real network: policies, written as text, repaired and judged."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab.agents.allocation import allocate_widths
from trimtab.errors import BadInput
from trimtab.evaluators.accuracy import Judge
from trimtab.evaluators.answers import Graded, paired
from trimtab.evaluators.data import Images
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.price.plan import StepPlan
from trimtab.evaluators.targets import Targets
from trimtab.kernels import stored_bytes
from trimtab.search.progress import ConsoleProgress
from trimtab.search.setup.config import Config
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.spaces.candidate import Candidate
from trimtab.spaces.forms.layer_forms import DENSE, parse_form
from trimtab.spaces.numbers.formats import FLOAT, LayerFormat
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["Case", "bench_methods", "parse_case"]

#: Keep ratios tried for a share of the MACs.
RATIOS = 257

#: What an error of the first layer counts of the last one's where widths are allocated: the repairs of all layers
#: behind it go on to make up for it, which the layer database knows nothing of.
FIRST_LAYER = 1 / 3


@dataclass(frozen=True)
class Case:
    """A policy: `bits` and `form` of every layer, and the ratio of channels kept or the largest `macs` of the base's.

    All groups keep the same ratio, or are `allocated` their widths by the errors of the layer database.
    """

    text: str
    bits: LayerFormat = FLOAT
    form: str = DENSE
    keep: float = 1.0
    macs: float | None = None
    allocated: bool = False

    def policy(self, problem: Problem) -> Policy:
        """Return the policy; for a share of MACs, the widest that stays within it."""
        space = problem.space
        if self.macs is None:
            return space.uniform(self.keep, self.bits, self.form)
        plan = StepPlan(space)
        limit = self.macs * _macs(plan, space.base())
        if self.allocated:
            return self._allocated(problem, plan, limit)
        for keep in np.linspace(1.0, 0.0, RATIOS):
            policy = space.uniform(float(keep), self.bits, self.form)
            if _macs(plan, policy) <= limit:
                return policy
        raise BadInput(f"case {self.text!r}: the narrowest network of this space has more MACs")

    def _allocated(self, problem: Problem, plan: StepPlan, limit: float) -> Policy:
        space, database = problem.space, problem.layer_database
        names = [op.name for op in space.network.layers]
        weight: dict[str, float] = dict(zip(names, np.geomspace(FIRST_LAYER, 1.0, len(names)).tolist(), strict=True))

        def error(policy: Policy) -> float:
            return sum(weight[name] * found for name, found in database.errors(policy).items())

        narrow = allocate_widths(space, error, lambda policy: _macs(plan, policy), limit)
        wide = space.uniform(1.0, self.bits, self.form)
        choices = zip(space.knobs, space.encode(narrow), space.encode(wide), strict=True)
        return space.decode([width if knob.kind == "channels" else other for knob, width, other in choices])


def parse_case(text: str) -> Case:
    """Read parts joined by "+": bits ("4/8", "3/8 codebook"), "keep 0.7" or "macs 0.5", a form ("svd 0.5").

    Beside "macs", "allocated" gives every group its own width.
    """
    given: dict[str, Any] = {}
    for part in (part.strip() for part in text.split("+")):
        bits = LayerFormat.parse(part)
        share = re.fullmatch(r"(keep|macs) (0?\.\d+|1)", part)
        if bits is not None:
            given["bits"] = bits
        elif share:
            given[share[1]] = float(share[2])
        elif part == "allocated":
            given["allocated"] = True
        else:
            given["form"] = parse_form(part).text
    case = Case(text.strip(), **given)
    if case.allocated and case.macs is None:
        raise BadInput(
            f"case {case.text!r}: widths are allocated within a share of the MACs, as in 'macs 0.5 + allocated'"
        )
    return case


def bench_methods(config: Config, cases: Sequence[str], final: bool) -> list[dict[str, Any]]:
    """Judge policies on the images that methods are chosen on, and with `final` on the final ones too.

    Rows: accuracies, their change from the base's (`_error`: the standard error of the paired difference), MACs and
    stored bytes beside the base's, and seconds of the repair.
    """
    parsed = [parse_case(case) for case in cases]
    problem = load_problem(_config(config, parsed), ConsoleProgress())
    judge, parts = replace(problem.judge, by="native"), {"selection": problem.splits.selection}
    if final:
        parts["final"] = problem.splits.final()
    wanted = {part: (images, judge.wanted(images, targets)) for part, (images, targets) in parts.items()}
    base = judge.candidate(problem.space.base())
    as_given = {part: judge.held_to(targets, judge.outputs(base, x)) for part, (x, targets) in wanted.items()}
    plan = StepPlan(problem.space)
    rows = [_row("base", judge, base, 0.0, wanted, as_given, plan)]
    for case in parsed:
        policy = case.policy(problem)
        start = time.perf_counter()
        candidate = judge.candidate(policy)
        seconds = time.perf_counter() - start
        rows.append(_row(case.text, judge, candidate, seconds, wanted, as_given, plan))
    return rows


def _row(
    name: str,
    judge: Judge,
    candidate: Candidate,
    seconds: float,
    wanted: dict[str, tuple[Images, Targets]],
    as_given: dict[str, Graded],
    plan: StepPlan,
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name}
    for part, (images, targets) in wanted.items():
        found = judge.held_to(targets, judge.outputs(candidate, images))
        change = paired(found, as_given[part])
        row |= {part: found.value, f"{part}_change": change.value, f"{part}_error": change.error}
    size = stored_bytes(lower(candidate))
    row["macs"] = _macs(plan, candidate.policy) / _macs(plan, judge.space.base())
    return {**row, "bytes": size, "smaller": 4 * _weights(judge.space) / size, "seconds": seconds}


def _config(config: Config, cases: Sequence[Case]) -> Config:
    """The configuration with all choices that the cases take, and single channels as steps."""
    forms = [parse_form(case.form) for case in cases]
    chosen: dict[str, Any] = {"channels": 64, "min_keep": 0.02}
    chosen["bits"] = tuple({case.bits: None for case in (*cases, Case("base"))})
    factorised = [form for form in forms if form.kind == "factorisation"]
    chosen["factorisations"] = tuple({form.name: None for form in factorised}) or ("svd",)
    chosen["ranks"] = tuple({form.amount: None for form in factorised})
    for kind, key in (("pattern", "patterns"), ("sharing", "sharing")):
        chosen[key] = tuple({form.text: None for form in forms if form.kind == kind})
    return config.model_copy(update={"space": replace(config.space, **chosen)})


def _macs(plan: StepPlan, policy: Policy) -> int:
    return sum(step.macs for step in plan.steps(policy))


def _weights(space: Space) -> int:
    """The network's parameters, biases included."""
    return sum(array.size for op in space.network.layers for array in (op.weight, op.bias) if array is not None)
