"""The command line of the benchmarks: `trimtab bench NAME`, each with the options that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.errors import BadInput
from trimtab.search.options import Json, Setting, config_of, names_of, print_json

__all__ = ["app"]

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure what trimtab stands on: engines, kernels, methods, and the measurement itself.",
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file; the embedded default without it.")]
Level = Annotated[
    str | None, typer.Option(help="Hold engines to this kernel level; onnxruntime obeys none.", show_default=False)
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]
Seconds = Annotated[float, typer.Option(min=0.01, help="Seconds for every figure.")]
Threads = Annotated[str, typer.Option(help="Numbers of threads, comma-separated.")]

ENGINE_NAMES = "native, onnxruntime, onnxruntime-saturating, openvino, torch"


@app.command()
def engines(
    networks: Annotated[str, typer.Option(help="Comma-separated zoo or torchvision names.")] = "resnet20,resnet56",
    engines: Annotated[str, typer.Option(help=f"Comma-separated: {ENGINE_NAMES}.")] = "native,onnxruntime",
    forms: Annotated[
        str, typer.Option(help="Of fp32, int8, half (int8 with half the channels), and formats as 7/7.")
    ] = "fp32,int8,half",
    threads: Threads = "1",
    seconds: Seconds = 1.0,
    level: Level = None,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Time whole networks on every engine, in turn."""
    from trimtab.search.bench.networks import bench_networks

    asked = _several("network", networks), _several("engine", engines), _several("form", forms), _counts(threads)
    _show(bench_networks(*asked, seconds, level), markdown, as_json)


@app.command()
def widths(
    networks: Annotated[str, typer.Option(help="Comma-separated zoo or torchvision names.")] = "resnet20",
    engines: Annotated[str, typer.Option(help=f"Comma-separated: {ENGINE_NAMES}.")] = "native",
    forms: Annotated[str, typer.Option(help="Of fp32, int8.")] = "int8,fp32",
    widths: Annotated[
        str, typer.Option(help="Sixteenths of all channels, comma-separated.")
    ] = "2,4,6,8,9,10,11,12,13,14,15,16",
    seconds: Seconds = 1.0,
    level: Level = None,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Time networks with fewer channels, over the first engine's time with all of them."""
    from trimtab.search.bench.widths import bench_widths

    asked = _several("network", networks), _several("engine", engines), _several("form", forms)
    _show(bench_widths(*asked, _counts(widths, "widths"), seconds, level), markdown, as_json)


@app.command()
def start(
    networks: Annotated[str, typer.Option(help="Comma-separated zoo or torchvision names.")] = "resnet20",
    engines: Annotated[
        str, typer.Option(help="Comma-separated: native, onnxruntime, openvino.")
    ] = "native,onnxruntime",
    forms: Annotated[str, typer.Option(help="Of fp32, int8, half (int8 with half the channels).")] = "fp32,int8",
    repetitions: Annotated[int, typer.Option(min=1, help="Processes for every figure.")] = 7,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Time from an exported file to the first result, and the memory that it takes, in fresh processes."""
    from trimtab.search.bench.start import bench_start

    asked = _several("network", networks), _several("engine", engines), _several("form", forms)
    _show(bench_start(*asked, repetitions), markdown, as_json)


@app.command()
def choices(
    layers: Annotated[str, typer.Option(help="Only layers whose name contains this.", show_default=False)] = "",
    forms: Annotated[str, typer.Option(help="Of fp32, 8/8, 7/7, 6/8, 5/8, 4/8, 2/8.")] = "fp32,8/8,6/8",
    seconds: Seconds = 0.05,
    level: Level = None,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Time each layer by every kernel that can run it: whether the one that is chosen is the quickest."""
    from trimtab.search.bench.choices import bench_choices

    _show(bench_choices(layers, _several("form", forms), seconds, level), markdown, as_json)


@app.command()
def kernels(
    layers: Annotated[str, typer.Option(help="Only layers whose name contains this.", show_default=False)] = "",
    engines: Annotated[
        str, typer.Option(help=f"Comma-separated, native among them, the others as rivals in int8: {ENGINE_NAMES}.")
    ] = "native",
    threads: Threads = "1",
    seconds: Seconds = 1.0,
    level: Level = None,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Time the kernels layer by layer.

    Each is compared with the machine's roofline, with int8, and with other engines.
    """
    from trimtab.search.bench.layers import bench_kernels

    rows = bench_kernels(layers, _several("engine", engines), _counts(threads), seconds, level)
    _show(rows, markdown, as_json)


@app.command()
def measure(
    network: Annotated[str, typer.Option("--network", "--networks", help="A zoo or torchvision name.")] = "resnet20",
    engine: Annotated[str, typer.Option("--engine", "--engines", help=f"One of {ENGINE_NAMES}.")] = "native",
    threads: Annotated[int, typer.Option(min=1, help="Number of threads.")] = 1,
    minutes: Annotated[float, typer.Option(min=2.0, help="Measure for so many minutes.")] = 10.0,
    load: Annotated[bool, typer.Option("--load", help="Keep all cores busy in bursts meanwhile.")] = False,
    run: Annotated[
        Path | None, typer.Option(help="A run directory, whose winner is measured; a small network without it.")
    ] = None,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Say how far measurements of seconds lie off.

    All blocks of so many minutes are the truth; it also says whether the intervals cover it.
    """
    from trimtab.search.bench.coverage import bench_coverage

    _show(bench_coverage(network, engine, threads, minutes, load, run), markdown, as_json)


@app.command()
def table(
    config: ConfigFile = None,
    set_: Setting = None,
    policies: Annotated[int, typer.Option(min=3, help="Random policies to measure.")] = 20,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Say how far a latency table is off.

    A fresh one is filled, which is timed, and compared with random policies end to end.
    """
    from trimtab.search.bench.table import bench_table

    _show(bench_table(config_of(config, set_), policies), markdown, as_json)


@app.command()
def methods(
    config: ConfigFile = None,
    set_: Setting = None,
    cases: Annotated[
        str,
        typer.Option(
            help="Policies, separated by semicolons, of parts joined by +: bits (4/8, 3/8 codebook), keep 0.7 or macs "
            "0.5, allocated (widths by the layers' errors), a form (svd 0.5, 2:4, kernels 64)."
        ),
    ] = "8/8; 4/8; 2/8; macs 0.5",
    final: Annotated[bool, typer.Option("--final", help="Read the final images too.")] = False,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Say what single methods do to a network.

    Policies are judged: accuracy, MACs and bytes beside those of the network as given.
    """
    from trimtab.search.bench.methods import bench_methods

    asked = [case for case in cases.split(";") if case.strip()]
    if not asked:
        raise BadInput("give at least one case, for example --cases '4/8; keep 0.7; svd 0.5'")
    _show(bench_methods(config_of(config, set_), asked, final), markdown, as_json)


@app.command()
def proxy(
    config: ConfigFile = None,
    set_: Setting = None,
    policies: Annotated[int, typer.Option(min=3, help="Random policies to judge.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 100,
    workers: Annotated[int, typer.Option(min=0, help="Processes.")] = 0,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Say how well the proxy ranks policies.

    It is correlated with the accuracy after training.
    """
    from trimtab.search.bench.proxy import bench_proxy

    _show(bench_proxy(config_of(config, set_), policies, steps, workers), markdown, as_json)


@app.command()
def judge(
    config: ConfigFile = None,
    set_: Setting = None,
    policies: Annotated[int, typer.Option(min=3, help="Random policies to judge.")] = 20,
    workers: Annotated[int, typer.Option(min=0, help="Processes that fill the layer database.")] = 0,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Say how fast judging is, and where its time goes."""
    from trimtab.search.bench.judge import bench_judge

    _show(bench_judge(config_of(config, set_), policies, workers), markdown, as_json)


@app.command()
def training(
    config: ConfigFile = None,
    set_: Setting = None,
    policy: Annotated[Path | None, typer.Option(help="A policy.json; half the channels without it.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Turns of four steps of each training.")] = 10,
    markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """Say how fast a network trains under a policy, beside itself in fp32, on one thread."""
    from trimtab.search.bench.training import bench_training
    from trimtab.spaces.policy import Policy

    chosen = None if policy is None else Policy.load(policy)
    _show(bench_training(config_of(config, set_), chosen, turns), markdown, as_json)


def _several(what: str, text: str) -> tuple[str, ...]:
    """Return names that are separated by commas; none, or one twice, is a `BadInput`."""
    names = names_of(text)
    if not names:
        raise BadInput(f"a benchmark needs at least one {what}")
    if len(set(names)) < len(names):
        raise BadInput(f"{what}s are named twice: {', '.join(names)}")
    return names


def _counts(text: str, option: str = "threads") -> tuple[int, ...]:
    """Return the numbers of an option."""
    names = names_of(text)
    if not names or not all(name.isdecimal() and int(name) for name in names):
        raise typer.BadParameter(f"{text!r} are no numbers of {option}", param_hint=f"--{option}")
    return tuple(int(name) for name in names)


def _show(rows: list[dict[str, Any]], markdown: bool, as_json: bool) -> None:
    from trimtab.search.report.console import markdown_rows, print_rows

    if as_json:
        print_json(rows)
    elif markdown:
        typer.echo(markdown_rows(rows))
    else:
        print_rows(rows)
