"""The command line."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from trimtab.errors import BadInput, InfeasibleBudget, TrimtabError
from trimtab.search.bench.cli import app as bench
from trimtab.search.jobs.cli import app as jobs
from trimtab.search.options import Download, Json, Setting, config_of, names_of, print_json

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

  trimtab watch runs/mine   from another terminal: how it is doing

  trimtab report runs/mine  show the result again; the run's report.html opens in a browser

A configuration names a network, data and budgets:

  network: {zoo: resnet20, checkpoint: resnet20.safetensors}

  data: {name: cifar10, root: /data}

  budgets: {latency: 0.6x int8, size: 120 KiB}

Or the fastest network that loses at most a point:

  trimtab search my.yaml --set minimise=latency --set keep.accuracy=-1.0

Budgets are hard: relative to the network as given (0.2x), to its uniform int8 form (0.6x int8), or absolute (3 ms, 120
KiB). Exit codes: 0 done, 2 bad input, 3 a budget that cannot be met, or an accuracy that nothing keeps; of jobs
also 4: stopped, with a network within the budgets.
'network.import' in a configuration runs the code that it names.""",
)
app.add_typer(bench)
app.add_typer(jobs)

ConfigFile = Annotated[Path | None, typer.Argument(help="A YAML file; the embedded default without it.")]
TimeLimit = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="90s, 20m or 1h for the whole run, or for each trial of a contest."),
]


@app.command()
def search(
    config: ConfigFile = None,
    set_: Setting = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; a new one under runs/ without it.")] = None,
    time_limit: TimeLimit = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster for the workers, like 10.0.0.1:6379 or auto."),
    ] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Search under the budgets, verify the winner by measurement, export it, and write a report.

    Ctrl-C ends the search early and finishes with what was found; a second one ends at once.
    """
    from trimtab.search.loop.experiment import prepare_folder
    from trimtab.search.loop.pool import start_ray
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.report.console import print_summary
    from trimtab.search.run import default_folder, open_run, run_search
    from trimtab.search.setup.durations import parse_duration
    from trimtab.search.setup.problem import load_problem

    began = perf_counter()
    if resume and out is None:
        raise BadInput("--resume needs --out, the directory of the run to go on with")
    settings = [*(set_ or []), *([f"time_limit={parse_duration(time_limit)}"] if time_limit is not None else [])]
    resolved = open_run(out, settings) if resume and out is not None and config is None else config_of(config, settings)
    folder = out or default_folder(resolved)
    prepare_folder(folder, resume)
    progress = ConsoleProgress()
    if address is not None and resolved.workers:
        start_ray(resolved.workers, address)
    problem = load_problem(resolved, progress, download)
    outcome = run_search(problem, folder, progress, resume, began)
    if as_json:
        print_json({"folder": str(folder), **outcome.summary})
    else:
        print_summary(outcome.summary, folder)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if outcome.winner is None:
        raise typer.Exit(InfeasibleBudget.exit_code)


@app.command()
def compare(
    config: ConfigFile = None,
    agents: Annotated[
        str | None,
        typer.Option(help="Comma-separated; the configuration's agent and baselines without it."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluations of every trial; the configuration's trials without it."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Seeds of every agent: 0, 1, ...; 3 without it."),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Budgets to compare under, separated by semicolons: 'latency=0.5x int8; latency=0.6x int8,size=0.5x "
            "int8'; the configuration's budgets without it."
        ),
    ] = None,
    time_limit: TimeLimit = None,
    workers: Annotated[int, typer.Option(min=0, help="Trials at a time; 0: one for every core.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="A Ray cluster, like 10.0.0.1:6379 or auto; without it one is started on loopback.",
        ),
    ] = None,
    set_: Setting = None,
    out: Annotated[Path | None, typer.Option(help="The contest's folder; a new one under runs/ without it.")] = None,
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
    resolved = open_run(out, settings) if again and out is not None else config_of(config, settings)
    if "proxy" not in resolved.model_fields_set:
        resolved = resolved.model_copy(update={"proxy": "layers"})
    usual: dict[str, Any] = {"agents": resolved.agents, "seeds": 3, "budgets": [resolved.budgets]}
    if again and out is not None:
        usual = planned(out)
    names = usual["agents"] if agents is None else names_of(agents)
    asked = usual["budgets"] if budgets is None else parse_budgets(budgets)
    plan = Plan(tuple(names), seeds or usual["seeds"], tuple(asked), workers)
    folder = out or default_folder(resolved).with_name(f"contest-{default_folder(resolved).name}")
    prepare_folder(folder, resume)
    progress = ConsoleProgress()
    summary, interrupted = run_contest(
        load_problem(resolved, progress, download), plan, folder, progress, resume, address
    )
    if as_json:
        print_json({"folder": str(folder), **summary})
    else:
        print_contest(summary, folder)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary["failed"]:
        raise TrimtabError(f"{len(summary['failed'])} trials failed; {folder / 'compare.md'} says why")


@app.command()
def space(
    config: ConfigFile = None,
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
    found = describe_space(load_problem(config_of(config, set_), progress, download), progress)
    print_json(found) if as_json else print_space(found)


@app.command()
def fill(
    config: ConfigFile = None,
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
    problem = load_problem(config_of(config, set_), progress, download)
    filled = fill_database(problem, problem.config.workers if workers is None else workers, progress)
    if as_json:
        print_json(asdict(filled))
    else:
        typer.echo(
            f"{filled.entries} entries, {filled.made} made now in {filled.seconds:.0f} s, "
            f"{filled.size / 2**20:.1f} MiB in {filled.folder}"
        )


@app.command()
def evaluate(
    policy: Annotated[Path, typer.Argument(help="A policy.json.")],
    config: Annotated[
        Path | None,
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
    if beside is None:
        progress.line("no run's config.yaml lies beside the policy: it is taken for one of the embedded example")
    problem = load_problem(config_of(beside, set_), progress, download)
    found = evaluate_policy(problem, loaded, progress, None if beside is None else beside.parent)
    print_json(found) if as_json else print_evaluation(found)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="Where to; RUN/export without it.")] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Export a run's best policy again (native artefact and ONNX), run both back and compare."""
    from dataclasses import asdict

    from trimtab.files import check_folder
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
    check_folder(out or run / "export")
    policy = Policy.load(run / "policy.json")
    progress = ConsoleProgress()
    problem = load_problem(config, progress, download)
    candidate = candidate_of(problem, policy, run)
    link, limit = measured_link(problem, bench_of(problem), run, progress)
    checks = export_candidate(problem, candidate, out or run / "export", link, limit)
    if as_json:
        print_json({"folder": str(out or run / "export"), "exports": [asdict(check) for check in checks]})
        return
    for check in checks:
        typer.echo(check.line())


@app.command()
def finish(
    run: Annotated[Path, typer.Argument(help="A run directory whose search has ended.")],
    time: Annotated[str | None, typer.Option(help="Train for at most so long, like 20m.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Train for so many epochs, if the time allows them.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was interrupted, as it was begun.")
    ] = False,
    set_: Setting = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train a run's winner under its policy, longer than the run did, or for the first time, and export it again."""
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.report.console import print_summary
    from trimtab.search.run import finish_run, open_run
    from trimtab.search.setup.problem import load_problem

    given = {"finish.time": time, "finish.epochs": epochs}
    settings = [*(f"{key}={value}" for key, value in given.items() if value is not None), *(set_ or [])]
    progress = ConsoleProgress()
    problem = load_problem(open_run(run, settings), progress, download)
    summary = finish_run(problem, run, progress, resume).summary
    if as_json:
        print_json({"folder": str(run), **summary})
    else:
        print_summary(summary, run)


@app.command()
def train(
    network: Annotated[str, typer.Argument(metavar="NAME", help="A zoo network: lenet5, vgg16-bn, resnet20, ...")],
    data: Annotated[
        str | None, typer.Option(help="cifar10, mnist, digits, ...; what the network is for without it.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of the network's constructor, like channels=1."),
    ] = None,
    selection: Annotated[
        int, typer.Option(min=1, help="Training images that are held out, for searches to choose on.")
    ] = 1000,
    epochs: Annotated[float | None, typer.Option(help="Over the training images; 30, or 15 for lenet5.")] = None,
    time: Annotated[str | None, typer.Option(help="Train for at most so long, like 20m.")] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint; NAME-DATA.safetensors without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted training of --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, the order of images, and which are held out.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Of one thread each; one for every core without it.")
    ] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train a network from nothing into a checkpoint, the base of later searches.

    Test images are read once, at the end. Repeated with the same number of processes it gives the same weights, where
    the time does not bind.
    """
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.setup.config import apply_setting
    from trimtab.search.setup.durations import parse_duration
    from trimtab.search.train import Order, train_network, usual_data

    options: dict[str, Any] = {}
    for setting in option or []:
        apply_setting(options, setting, "--option")
    images = usual_data(network) if data is None else data
    seconds = None if time is None else parse_duration(time)
    order = Order(network, images, options, selection, epochs, seconds, processes, seed)
    file = Path(f"{network}-{images}.safetensors") if out is None else out
    found = train_network(order, file, ConsoleProgress(), resume, download)
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"{file}: {found['test_accuracy']:.2%} of the test images, {found['held_out_accuracy']:.2%} of "
        f"{selection} held-out ones; {found['epochs']:.1f} epochs in {found['seconds']:.0f} s"
    )


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A case that --list names, or its YAML file.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the cases, and what is to be reached.")] = False,
    seeds: Annotated[
        str | None, typer.Option(help="Comma-separated: a run of its own for each; the case's without it.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The base; without it trimtab train makes one with every seed.")
    ] = None,
    set_: Setting = None,
    out: Annotated[Path | None, typer.Option(help="The folder; runs/NAME without it.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the reproduction in --out; seeds may grow.")
    ] = False,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Run a published case again: train its base, search, finish, time the result, and set it beside others' figures.

    Every seed's run is a folder of its own, which all commands for runs take. A checkpoint that trimtab train did not
    make may have seen every training image: policies are then chosen on one half of the test images, and the figure is
    read from the other half.
    """
    from trimtab.search.progress import ConsoleProgress
    from trimtab.search.reproduce.cases import case_names, load_case
    from trimtab.search.reproduce.reproduce import reproduce as run_case
    from trimtab.search.reproduce.row import as_markdown

    if list_:
        cases = {each: load_case(each) for each in case_names()}
        if as_json:
            print_json({each: case.model_dump(mode="json") for each, case in cases.items()})
            return
        for each, case in cases.items():
            typer.echo(f"{each}: {case.title}; to reach: {case.reach}")
        return
    if name is None:
        raise BadInput(f"name a case, one of {', '.join(case_names())}; --list says what they are")
    found = run_case(
        name,
        out or Path("runs") / Path(name).stem,
        ConsoleProgress(),
        seeds=_numbers(seeds),
        checkpoint=checkpoint,
        settings=set_ or [],
        resume=resume,
        download=download,
    )
    print_json(found) if as_json else typer.echo(as_markdown(found))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")], as_json: Json = False) -> None:
    """Write a finished run's report.html again and print its tables."""
    from trimtab.search.report.console import print_summary
    from trimtab.search.report.run_report import write_report
    from trimtab.search.report.summary import load_summary

    summary = load_summary(run)
    path = write_report(run)
    if as_json:
        print_json({"folder": str(run), "report": str(path), **summary})
    else:
        print_summary(summary, run)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run directory; the run may go on, or have ended.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show how a run is doing until it ends: stage, best so far, budgets, evaluations, time left. Reads its files only.

    With --json, one document of how it is now.
    """
    from trimtab.search.report.console import show_states
    from trimtab.search.report.watch import follow, read_state

    print_json(read_state(run).to_json()) if as_json else show_states(follow(run, every))


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
        print_json({"storage": storage, "written": written})
        return
    for study, trials in written.items():
        typer.echo(f"{study}: {trials} trial(s) written")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: processor features, the kernel level chosen, threads, Ray, engines."""
    from trimtab.search.doctor import examine
    from trimtab.search.report.console import print_facts

    facts = examine()
    print_json(facts) if as_json else print_facts(facts)


def main() -> None:
    """Run the command line; an error that the user can mend is one line and its exit code."""
    try:
        # Typer hands the code of an exit back instead of raising it.
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except TrimtabError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("trimtab: interrupted; what has left a folder or a file goes on with --resume", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Usage errors of the command line know how to show themselves and which code to exit with.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(2)


def _numbers(seeds: str | None) -> tuple[int, ...]:
    names = names_of(seeds or "")
    if not all(each.isdecimal() for each in names):
        raise BadInput(f"--seeds are whole numbers with commas between them, like 0,1,2, not {seeds!r}")
    return tuple(dict.fromkeys(map(int, names)))


def _beside(policy: Path) -> Path | None:
    for folder in (policy.parent, policy.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None
