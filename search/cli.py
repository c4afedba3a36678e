"""The command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from trimtab.errors import BadInput, TrimtabError

__all__ = ["app", "main"]

#: The exit code after Ctrl-C, as shells have it.
INTERRUPTED = 130

app = typer.Typer(
    name="trimtab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Find the best form of a trained network that fits a latency and size budget on this machine.

Start with:

  trimtab search            the embedded example: a small network on the digits data set, in minutes

  trimtab search my.yaml --set trials=400 --out runs/mine

  trimtab report runs/mine  show the result again; the run's report.html opens in a browser

A configuration names a network, data and budgets:

  network: {zoo: resnet20, checkpoint: resnet20.safetensors}

  data: {name: cifar10, root: /data}

  budgets: {latency: 0.6x int8, size: 120 KiB}

Budgets are hard: relative to the network as given (0.2x), to its uniform int8 form (0.6x int8), or absolute (3 ms, 120
KiB). Exit codes: 0 done, 2 bad input, 3 a budget that cannot be met. 'network.import' in a configuration runs the code
that it names.""",
)

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else there.")
]
Setting = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time on Python 3.10)
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the configuration, for example trials=50."),
]
TimeLimit = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="DURATION", help="90s, 20m or 1h of search; evaluations in flight are finished."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is not there.")]


@app.command()
def search(
    config: Annotated[Optional[Path], typer.Argument(help="A YAML file; the embedded default without it.")] = None,  # noqa: UP045
    set_: Setting = None,
    out: Annotated[Optional[Path], typer.Option(help="The run directory; a new one under runs/ without it.")] = None,  # noqa: UP045
    time_limit: TimeLimit = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Search under the budgets, verify the winner by measurement, export it, and write a report.

    Ctrl-C ends the search early and finishes with what was found; a second one ends at once.
    """
    from trimtab.search.loop.experiment import prepare_folder
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.report.console import print_summary
    from trimtab.search.run import default_folder, open_run, run_search
    from trimtab.search.setup.problem import load_problem

    if resume and out is None:
        raise BadInput("--resume needs --out, the directory of the run to go on with")
    settings = [*(set_ or []), *([f"time_limit={time_limit}"] if time_limit is not None else [])]
    resolved = open_run(out, settings) if resume and out is not None and config is None else _config(config, settings)
    folder = out or default_folder(resolved)
    prepare_folder(folder, resume)
    progress = ConsoleProgress()
    problem = load_problem(resolved, progress, download)
    outcome = run_search(problem, folder, progress, resume)
    if as_json:
        _print_json({"folder": str(folder), **outcome.summary})
    else:
        print_summary(outcome.summary, folder)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def compare(
    config: Annotated[Optional[Path], typer.Argument(help="A YAML file; the embedded default without it.")] = None,  # noqa: UP045
    agents: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Comma-separated; the configuration's agent and baselines without it."),
    ] = None,
    trials: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Evaluations of every trial; the configuration's trials without it."),
    ] = None,
    seeds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Seeds of every agent: 0, 1, ...; 3 without it."),
    ] = None,
    budgets: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Budgets to compare under, separated by semicolons: 'latency=0.5x int8; latency=0.6x int8,size=0.5x "
            "int8'; the configuration's budgets without it."
        ),
    ] = None,
    time_limit: TimeLimit = None,
    workers: Annotated[int, typer.Option(min=0, help="Trials at a time; 0: one for every core.")] = 0,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            envvar="RAY_ADDRESS",
            help="A Ray cluster, like 10.0.0.1:6379 or auto; without it one is started on loopback.",
        ),
    ] = None,
    set_: Setting = None,
    out: Annotated[Optional[Path], typer.Option(help="The contest's folder; a new one under runs/ without it.")] = None,  # noqa: UP045
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the contest in --out; it may have grown.")
    ] = False,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Let agents compete: equal evaluations under equal budgets, one Ray Tune trial per agent, seed and budget.

    Candidates are judged by proxy: layers, unless the configuration says otherwise. Ctrl-C ends the contest early and
    reports what there is; --resume goes on with it.
    """
    from trimtab.search.contest.contest import Plan, parse_budgets, planned, run_contest
    from trimtab.search.loop.experiment import prepare_folder
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.report.console import print_contest
    from trimtab.search.run import default_folder, open_run
    from trimtab.search.setup.problem import load_problem

    if resume and out is None:
        raise BadInput("--resume needs --out, the folder of the contest to go on with")
    given = {"trials": trials, "time_limit": time_limit}
    settings = [*(set_ or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    again = resume and out is not None and config is None
    resolved = open_run(out, settings) if again and out is not None else _config(config, settings)
    if "proxy" not in resolved.model_fields_set:
        resolved = resolved.model_copy(update={"proxy": "layers"})
    usual: dict[str, Any] = {"agents": resolved.agents, "seeds": 3, "budgets": [resolved.budgets]}
    if again and out is not None:
        usual = planned(out)
    names = usual["agents"] if agents is None else _agents(agents)
    asked = usual["budgets"] if budgets is None else parse_budgets(budgets)
    plan = Plan(tuple(names), seeds or usual["seeds"], tuple(asked), workers)
    folder = out or default_folder(resolved).with_name(f"contest-{default_folder(resolved).name}")
    prepare_folder(folder, resume)
    progress = ConsoleProgress()
    summary, interrupted = run_contest(
        load_problem(resolved, progress, download), plan, folder, progress, resume, address
    )
    if as_json:
        _print_json({"folder": str(folder), **summary})
    else:
        print_contest(summary, folder)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary["failed"]:
        raise TrimtabError(f"{len(summary['failed'])} trials failed; {folder / 'compare.md'} says why")


@app.command()
def space(
    config: Annotated[Optional[Path], typer.Argument(help="A YAML file; the embedded default without it.")] = None,  # noqa: UP045
    set_: Setting = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """List what may be decided: layers, groups, choices, what each costs, and which are not offered and why."""
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.report.console import print_space
    from trimtab.search.setup.problem import load_problem
    from trimtab.search.setup.pruned_space import describe_space

    progress = ConsoleProgress()
    found = describe_space(load_problem(_config(config, set_ or []), progress, download), progress)
    _print_json(found) if as_json else print_space(found)


@app.command()
def fill(
    config: Annotated[Optional[Path], typer.Argument(help="A YAML file; the embedded default without it.")] = None,  # noqa: UP045
    set_: Setting = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; the configuration's workers without it.")
    ] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Compress every layer in every way that the space offers, once, for searches with proxy: layers."""
    from dataclasses import asdict

    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.setup.fill import fill_database
    from trimtab.search.setup.problem import load_problem

    progress = ConsoleProgress()
    problem = load_problem(_config(config, set_ or []), progress, download)
    filled = fill_database(problem, problem.config.workers if workers is None else workers, progress)
    if as_json:
        _print_json(asdict(filled))
    else:
        typer.echo(
            f"{filled.entries} entries, {filled.made} made now in {filled.seconds:.0f} s, "
            f"{filled.size / 2**20:.1f} MiB in {filled.folder}"
        )


@app.command()
def evaluate(
    policy: Annotated[Path, typer.Argument(help="A policy.json.")],
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The configuration; by default that of the run the policy lies in, else the embedded one."),
    ] = None,
    set_: Setting = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Build one policy's network and measure it: accuracy, latency with its interval, bytes, MACs."""
    from trimtab.search.finish.evaluate import evaluate_policy
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.report.console import print_evaluation
    from trimtab.search.setup.problem import load_problem
    from trimtab.spaces.policy import Policy

    loaded, progress = Policy.load(policy), ConsoleProgress()
    beside = _beside(policy) if config is None else config
    problem = load_problem(_config(beside, set_ or []), progress, download)
    found = evaluate_policy(problem, loaded, progress, None if beside is None else beside.parent)
    _print_json(found) if as_json else print_evaluation(found)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Optional[Path], typer.Option(help="Where to; RUN/export without it.")] = None,  # noqa: UP045
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Export a run's best policy again (native artefact and ONNX), run both back and compare."""
    from dataclasses import asdict

    from trimtab.search.finish.export import export_candidate
    from trimtab.search.finish.run_link import measured_link
    from trimtab.search.loop.candidates import candidate_of
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.run import open_run
    from trimtab.search.setup.problem import load_problem
    from trimtab.search.setup.setting import bench_of
    from trimtab.spaces.policy import Policy

    config = open_run(run)
    if not (run / "policy.json").is_file():
        raise BadInput(f"{run} has no policy.json: its search has not finished, or nothing met the budgets")
    policy = Policy.load(run / "policy.json")
    progress = ConsoleProgress()
    problem = load_problem(config, progress, download)
    candidate = candidate_of(problem, policy, run)
    link, limit = measured_link(problem, bench_of(problem), run, progress)
    checks = export_candidate(problem, candidate, out or run / "export", link, limit)
    if as_json:
        _print_json({"folder": str(out or run / "export"), "exports": [asdict(check) for check in checks]})
        return
    for check in checks:
        typer.echo(check.line())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")], as_json: Json = False) -> None:
    """Write a finished run's report.html again and print its tables."""
    from trimtab.search.report.console import load_summary, print_summary
    from trimtab.search.report.run_report import write_report

    summary = load_summary(run)
    path = write_report(run)
    if as_json:
        _print_json({"folder": str(run), "report": str(path), **summary})
    else:
        print_summary(summary, run)


@app.command("optuna-export")
def optuna_export(
    run: Annotated[Path, typer.Argument(help="A run directory; the run may still be going on.")],
    storage: Annotated[str, typer.Argument(help="sqlite:///studies.db, journal:studies.log, or a database's URL.")],
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Copy a run's journal into an Optuna storage, a study for every agent, for optuna-dashboard.

    What is there already is not written again. The key 'storage' of a configuration does the same while a run goes on.
    """
    from trimtab.search.loop.optuna_export import export_study
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.run import open_run
    from trimtab.search.setup.problem import load_problem

    written = export_study(load_problem(open_run(run), ConsoleProgress(), download), run, storage)
    if as_json:
        _print_json({"storage": storage, "written": written})
        return
    for study, trials in written.items():
        typer.echo(f"{study}: {trials} trial(s) written")


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="kernels, engines, measure, table, methods, proxy or judge.")],
    networks: Annotated[
        str, typer.Option(help="engines, measure: comma-separated zoo or torchvision names; measure takes the first.")
    ] = "resnet20,resnet56",
    engines: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Comma-separated: native, onnxruntime, onnxruntime-saturating, openvino, torch. engines: by default "
            "native and onnxruntime; kernels: rivals of single int8 layers, none by default; measure: the first."
        ),
    ] = None,
    forms: Annotated[str, typer.Option(help="engines: of fp32, int8, half (int8 with half the channels).")] = (
        "fp32,int8,half"
    ),
    threads: Annotated[str, typer.Option(help="Comma-separated; measure takes the first.")] = "1",
    seconds: Annotated[float, typer.Option(min=0.01, help="Seconds for every figure.")] = 1.0,
    level: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="engines, kernels: hold engines to this kernel level; onnxruntime obeys none."),
    ] = None,
    layers: Annotated[str, typer.Option(help="kernels: only layers whose name contains this.")] = "",
    minutes: Annotated[float, typer.Option(min=1.0, help="measure: for so many minutes.")] = 10.0,
    load: Annotated[bool, typer.Option("--load", help="measure: keep all cores busy in bursts meanwhile.")] = False,
    finished: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--run", help="measure: a run directory, whose winner is measured; a small network without it."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="table, methods, proxy, judge: a YAML file; the embedded default without it.")
    ] = None,
    set_: Setting = None,
    cases: Annotated[
        str,
        typer.Option(
            help="methods: policies, separated by semicolons, of parts joined by +: bits (4/8, 3/8 codebook), "
            "keep 0.7 or macs 0.5, allocated (widths by the layers' errors), a form (svd 0.5, 2:4, kernels 64)."
        ),
    ] = "8/8; 4/8; 2/8; macs 0.5",
    final: Annotated[bool, typer.Option("--final", help="methods: read the final images too.")] = False,
    policies: Annotated[
        int, typer.Option(min=3, help="proxy, judge: random policies to judge; table: to measure.")
    ] = 20,
    steps: Annotated[int, typer.Option(min=1, help="proxy: steps of each fine-tuning.")] = 100,
    workers: Annotated[
        int, typer.Option(min=0, help="proxy: processes; judge: processes that fill the layer database.")
    ] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the kernels layer by layer, whole networks on every engine, how far measurements lie off and whether
    their intervals say so, how long a latency table takes and how far it is off, what methods do to a network, how
    well the proxy ranks, or how fast judging is."""
    from trimtab.search.bench import BenchOptions, run
    from trimtab.search.report.console import markdown_rows, print_rows

    usual = {"engines": "native,onnxruntime", "kernels": "native"}
    options = BenchOptions(
        networks=_names(networks),
        engines=_names(usual.get(what, "native") if engines is None else engines),
        forms=_names(forms),
        threads=tuple(_count(text) for text in _names(threads)),
        seconds=seconds,
        level=level,
        layers=layers,
        minutes=minutes,
        load=load,
        finished=finished,
        config=_config(config, set_ or []) if what in ("table", "methods", "proxy", "judge") else None,
        cases=tuple(case for case in cases.split(";") if case.strip()),
        final=final,
        policies=policies,
        steps=steps,
        workers=workers,
    )
    rows = run(what, options)
    if as_json:
        _print_json(rows)
    elif markdown:
        typer.echo(markdown_rows(rows))
    else:
        print_rows(rows)


def _agents(text: str) -> tuple[str, ...]:
    """Split "random,evolution(population=64, crossed=0.3)" at the commas outside of parentheses."""
    return tuple(name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip())


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a number of threads", param_hint="--threads")
    return int(text)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: processor features, the kernel level chosen, threads, Ray, engines."""
    from trimtab.search.doctor import examine
    from trimtab.search.report.console import print_facts

    facts = examine()
    _print_json(facts) if as_json else print_facts(facts)


def main() -> None:
    """Run the command line; an error that the user can mend is one line and its exit code."""
    try:
        # Typer hands the code of an interruption back instead of raising it.
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except TrimtabError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("trimtab: interrupted; a run goes on with --resume --out DIR", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Usage errors of the command line know how to show themselves and which code to exit with.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(2)


def _config(path: Path | None, settings: list[str]) -> Any:
    from trimtab.search.setup.config import default_config, load_config

    return default_config(settings) if path is None else load_config(path, settings)


def _beside(policy: Path) -> Path | None:
    for folder in (policy.parent, policy.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1))
