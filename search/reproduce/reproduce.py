"""The reproduction of a published case: for each seed a base, a search and a finishing, in a folder of its own, and one
row of what they came to."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from shutil import rmtree
from typing import Any

from trimtab.errors import BadInput, InfeasibleBudget
from trimtab.evaluators.engines import ENGINES, cpu_name, make_engine
from trimtab.evaluators.measure.end_to_end import LatencyBench
from trimtab.files import check_folder, write_text
from trimtab.search.doctor import package_version
from trimtab.search.finish.run_link import measured_link
from trimtab.search.loop.candidates import candidate_of
from trimtab.search.progress import Progress
from trimtab.search.report.agent_rows import winning
from trimtab.search.reproduce.cases import Case, load_case
from trimtab.search.reproduce.row import as_markdown, row_of
from trimtab.search.run import run_search
from trimtab.search.setup.config import Config
from trimtab.search.setup.networks import provenance_of
from trimtab.search.setup.problem import Problem, load_problem
from trimtab.search.train import Order, train_network
from trimtab.spaces.policy import Policy

__all__ = ["reproduce"]

#: The file in a reproduction's folder that says what was asked for.
ASKED = "asked.json"

#: The engines that what came out is timed on, where they are installed.
TIMED_ON = ("native", "onnxruntime", "openvino")

#: Bytes of a parameter of the network as given.
FLOAT_BYTES = 4


def reproduce(
    name: str,
    folder: Path,
    progress: Progress,
    *,
    seeds: Sequence[int] = (),
    checkpoint: Path | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    download: bool = False,
) -> dict[str, Any]:
    """Run a case with some seeds (none: the case's own), write `row.json` and `row.md` into a folder, and return the
    row.

    The base is `checkpoint`; without one, `trimtab train` makes one with every seed. `settings` are further ones of the
    configuration. With `resume`, a reproduction that was begun in the folder is gone on with, and may get more seeds;
    another one is a `BadInput`. The final images are read once for every seed, in its run.
    """
    case = load_case(name)
    case.configured(settings)
    if checkpoint is not None and not checkpoint.is_file():
        raise BadInput(f"the checkpoint {checkpoint} does not exist")
    asked = {
        "case": case.model_dump(mode="json", exclude={"seeds"}),
        "checkpoint": None if checkpoint is None else str(checkpoint.expanduser().absolute()),
        "settings": list(settings),
    }
    _prepare(folder, asked, resume)
    try:
        runs = [
            _known(folder, seed) or _run(case, folder, seed, checkpoint, settings, progress, download)
            for seed in seeds or case.seeds
        ]
    except BadInput:
        if [path.name for path in folder.iterdir()] == [ASKED]:  # nothing was begun
            rmtree(folder)
        raise
    row = row_of(name, case, runs)
    write_text(folder / "row.json", json.dumps(row, indent=1) + "\n")
    write_text(folder / "row.md", as_markdown(row))
    return row


def _prepare(folder: Path, asked: dict[str, Any], resume: bool) -> None:
    file = folder / ASKED
    if not resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} exists already: choose another --out, or pass --resume to go on with it")
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asked, indent=1) + "\n")
    elif not file.is_file():
        raise BadInput(f"there is no reproduction to go on with in {folder}: it has no {file.name}")
    elif _read(file) != asked:
        raise BadInput(f"the reproduction in {folder} was begun with another case, checkpoint or settings: see {file}")


def _known(folder: Path, seed: int) -> dict[str, Any] | None:
    """What is known of a seed whose run has ended."""
    file = folder / f"seed-{seed}.json"
    return _read(file) if file.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error
    return found


def _run(
    case: Case,
    folder: Path,
    seed: int,
    checkpoint: Path | None,
    settings: Sequence[str],
    progress: Progress,
    download: bool,
) -> dict[str, Any]:
    progress.line(f"seed {seed}")
    more = [*settings, f"seed={seed}"]
    base = checkpoint or _base(case.configured(more), folder / f"base-{seed}.safetensors", progress, download)
    trained = provenance_of(base)
    # What does not say which images it held out may have seen them all.
    split = "test-half" if trained is None else "held-out"
    config = case.configured([*more, f"network.checkpoint={base}", f"data.split={split}"])
    problem, place = load_problem(config, progress, download), folder / f"seed-{seed}"
    begun = place.is_dir() and any(place.iterdir())
    outcome = run_search(problem, place, progress, begun)
    if outcome.interrupted:
        raise KeyboardInterrupt
    found = winning(outcome.summary)
    if outcome.winner is None or found is None:
        raise InfeasibleBudget(f"no network of seed {seed} was measured within every budget: see {place}")
    figures = {
        "seed": seed,
        **_figures(outcome.summary, found[1]),
        "agent": found[0],
        "policy": outcome.winner.evaluation.policy.to_json(),
        "latencies": _latencies(problem, outcome.winner.evaluation.policy, place, progress),
        "base_hours": None if trained is None else trained["seconds"] / 3600,
        "resumed": begun,
        "machine": _machine(config),
    }
    file = folder / f"seed-{seed}.json"
    write_text(file, json.dumps(figures, indent=1) + "\n")
    return _read(file)


def _base(config: Config, file: Path, progress: Progress, download: bool) -> Path:
    """The checkpoint of a base, trained now unless it was before."""
    network = config.network.zoo
    if network is None:
        raise BadInput("the case's network is none of the zoo's: give --checkpoint")
    if not file.is_file():
        begun = file.with_name(file.name + ".unfinished").is_file()
        data = config.data
        order = Order(network, data.name, config.network.options, data.selection, seed=config.seed, root=data.root)
        train_network(order, file, progress, begun, download)
    return file


def _figures(summary: Any, best: Any) -> dict[str, Any]:
    """What a run's summary says of its winner: accuracies in [0, 1], ratios to the network as given."""
    base, training = summary["base"], (summary["finished"] or {}).get("training", {})
    stored = summary["exports"][0] if summary["exports"] else None
    return {
        "base": base["final_accuracy"],
        "before": (summary["finished"] or {}).get("final_before"),
        "final": best["final_accuracy"],
        "change": best["final_change"],
        "macs": base["macs"] / best["macs"],
        "bytes": FLOAT_BYTES * base["parameters"] / best["size"],
        "parameters": base["parameters"] / best["parameters"],
        "stored_bytes": best["size"],
        "file_bytes": None if stored is None else stored["file_bytes"],
        "kept_parameters": best["parameters"],
        "epochs": training.get("epochs", 0.0),
        "images_per_second": training.get("images_per_second"),
        "hours": summary["seconds"] / 3600,
        "evaluations": sum(row["evaluations"] for row in summary["agents"]),
        "provenance": summary["provenance"],
    }


def _latencies(problem: Problem, policy: Policy, run: Path, progress: Progress) -> dict[str, Any]:
    """By engine the latency of what came out, as a multiple of the network as given on the same engine; or why there is
    none."""
    candidate, measure = candidate_of(problem, policy, run), problem.config.measure
    found: dict[str, Any] = {}
    for name in TIMED_ON:
        try:
            engine = make_engine(name, problem.config.engine.threads)
            progress.line(f"timing on {engine.signature}")
            bench = LatencyBench(engine, problem.space, problem.judge.images, measure.precision)
            link, _ = measured_link(problem, bench, run, progress)
            latency = bench.measure(candidate, link, measure.final_seconds)
        except BadInput as error:
            found[name] = {"lacking": str(error)}
        else:
            found[name] = {"engine": engine.signature, **asdict(latency)}
    return found


def _machine(config: Config) -> dict[str, Any]:
    packages = ("trimtab", "torch", *(ENGINES[name].package for name in TIMED_ON if name != "native"))
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "processes": config.finish.processes or len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in packages},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
