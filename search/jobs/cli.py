"""The commands for searches that run as jobs of a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.errors import BadInput, TrimtabError
from trimtab.search.options import Json, Setting, config_of, print_json

if TYPE_CHECKING:
    from trimtab.search.jobs.cluster import Cluster
    from trimtab.search.jobs.run import JobRun

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)

Address = Annotated[
    str,
    typer.Option(envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help="The job server, like http://10.0.0.1:8265."),
]
Run = Annotated[str, typer.Argument(help="The run's folder, as --out was given to trimtab submit.")]


@app.command()
def submit(
    config: Annotated[Path | None, typer.Argument(help="A YAML file; the embedded default without it.")] = None,
    address: Address = "",
    out: Annotated[str, typer.Option(help="The run's folder, absolute, on storage that all nodes share.")] = "",
    set_: Setting = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
    checkpoint_stays: Annotated[
        bool,
        typer.Option("--checkpoint-stays", help="Nodes see the checkpoint where it lies: do not send it."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a search on a Ray cluster; the same command again attaches to it and, after a death, goes on with it.

    Follows the log to the end; Ctrl-C leaves the job to itself. Exit codes: 0 done, 1 failed, 2 bad input, 3 a budget
    that cannot be met, 4 stopped, with a network within the budgets.
    """
    from trimtab.search.jobs.cluster import Cluster
    from trimtab.search.jobs.package import make_package
    from trimtab.search.jobs.submission import Submission

    if not address or not out:
        raise BadInput("give --address, the job server's, and --out, a folder that all nodes share")
    resolved = config_of(config, set_)
    submission = Submission(resolved, make_package(resolved, not checkpoint_stays), out)
    cluster = Cluster(address)
    plan = submission.plan(address, cluster.nodes())
    said: dict[str, Any] = {"submission": submission.name, "plan": plan}
    for name, text in plan.items():
        typer.echo(f"{name + ':':<12}{text}", err=as_json)
    if not dry_run:
        said["job"], begun = submission.attempt(cluster)
        typer.echo(f"{'submitted' if begun else 'goes on already'}: {said['job']}", err=as_json)
    if not dry_run and not detach:
        said["code"] = _follow(cluster, out, said["job"], as_json)
    if as_json:
        print_json(said)
    raise typer.Exit(said.get("code", 0))


@app.command()
def status(run: Run, address: Address = "", as_json: Json = False) -> None:
    """Say how a submitted run is, by its journal first and by Ray second; exits as submit does, 0 while it runs."""
    from trimtab.search.report.console import show_states

    found = _found(run, address).state()
    if as_json:
        print_json(found.to_json())
    else:
        if found.run is not None:
            show_states([found.run])
        typer.echo(found.line())
    raise typer.Exit(found.code or 0)


@app.command()
def logs(run: Run, address: Address = "", as_json: Json = False) -> None:
    """Follow the log of a submitted run until its job has ended; exits as submit does."""
    found = _found(run, address)
    code = _follow(found.there(), run, found.job().name, as_json)
    if as_json:
        print_json({"job": found.job().name, "code": code})
    raise typer.Exit(code)


@app.command()
def stop(
    run: Run,
    address: Address = "",
    now: Annotated[bool, typer.Option("--now", help="Kill it; the same submit goes on with it.")] = False,
    as_json: Json = False,
) -> None:
    """Stop a submitted run after the evaluations in flight; the best network so far is measured and exported."""
    found = _found(run, address)
    found.kill() if now else found.ask_to_stop()
    said = "killed" if now else "asked to stop; trimtab logs follows it to its end"
    print_json({"run": run, "said": said}) if as_json else typer.echo(f"{run}: {said}")


@app.command()
def fetch(
    run: Run,
    address: Address = "",
    to: Annotated[Path | None, typer.Option(help="Where to; a new folder runs/NAME without it.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a submitted run's folder here."""
    folder = to or Path("runs") / Path(run).name
    _found(run, address).fetch(folder)
    print_json({"folder": str(folder)}) if as_json else typer.echo(f"{run} is in {folder}")


def _found(run: str, address: str) -> JobRun:
    from trimtab.search.jobs.run import JobRun

    return JobRun.find(run, address)


def _follow(cluster: Cluster, run: str, job: str, quiet: bool) -> int:
    from trimtab.search.jobs.cluster import Gone, follow

    out = sys.stderr if quiet else sys.stdout

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    try:
        ended = follow(cluster, job, write)
    except KeyboardInterrupt:
        typer.echo(f"the job goes on without this terminal: trimtab logs {run} follows it again", err=True)
        raise
    except Gone as error:
        raise TrimtabError(
            f"{error}: its head was started again. The same trimtab submit goes on with {run}"
        ) from error
    if ended.code is None:
        typer.echo(f"{job} {ended.status.lower()}: {' '.join(ended.message.split())[:300]}", err=True)
    return TrimtabError.exit_code if ended.code is None else ended.code
