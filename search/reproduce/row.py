"""The row of a reproduced case, beside the published figures, as plain values and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from trimtab.search.report.headline import change as paired_change
from trimtab.search.report.headline import points
from trimtab.search.report.markdown import markdown_table
from trimtab.search.reproduce.cases import RATIOS, Case, Published

__all__ = ["as_markdown", "row_of"]

HEAD = ("", "base", "final", "change", "fewer MACs", "fewer bytes", "fewer parameters", "epochs", "hours")


def row_of(name: str, case: Case, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of a case: what each seed came to, their means, and whether the means are what is to be
    reached."""
    means = {key: fmean(run[key] for run in runs) for key in ("base", "final", *RATIOS, "epochs", "hours")}
    means["change"] = fmean(run["change"]["value"] for run in runs)
    reached = 100 * means["change"] >= case.reach.change and all(
        means[ratio] >= least for ratio, least in case.reach.ratios.items()
    )
    return {"name": name, "case": case.model_dump(mode="json"), "runs": list(runs), "mean": means, "reached": reached}


def as_markdown(row: Mapping[str, Any]) -> str:
    """Return a row as a page: the table beside the published figures, latencies, what is not alike, the machine."""
    case, runs = Case.model_validate(row["case"]), row["runs"]
    lines = [_run_cells(run) for run in runs]
    if len(runs) > 1:
        lines.append(_mean_cells(row["mean"], len(runs)))
    lines += [_published_cells(each) for each in case.published]
    parts = [
        f"## {case.title}",
        markdown_table(HEAD, lines),
        f"To reach: {case.reach}: {'' if row['reached'] else 'not '}reached.",
        _latency_table(runs),
        "\n".join(f"- {each}" for each in (*case.unlike, *_about(runs))),
    ]
    return "\n\n".join(parts) + "\n"


def _run_cells(run: Mapping[str, Any]) -> list[str]:
    hours = f"{'≥ ' * run['resumed']}{run['hours']:.2f}"  # of a run that was gone on with only the end was timed
    change = paired_change({"final_change": run["change"]})
    return [f"trimtab, seed {run['seed']}", *_accuracies(run), change, *_ratios(run), f"{run['epochs']:.1f}", hours]


def _mean_cells(means: Mapping[str, float], seeds: int) -> list[str]:
    costs = [f"{means['epochs']:.1f}", f"{means['hours']:.2f}"]
    return [f"trimtab, mean of {seeds} seeds", *_accuracies(means), points(means["change"]), *_ratios(means), *costs]


def _accuracies(run: Mapping[str, Any]) -> list[str]:
    return [f"{run[key]:.2%}" for key in ("base", "final")]


def _ratios(run: Mapping[str, Any]) -> list[str]:
    return [f"{run[ratio]:.3g}x" for ratio in RATIOS]


def _published_cells(of: Published) -> list[str]:
    accuracies = ["–" if each is None else f"{each:.2f}%" for each in (of.base, of.final)]
    lost = "–" if of.lost is None else points(of.lost / 100)
    ratios = ["–" if getattr(of, each) is None else f"{getattr(of, each):.3g}x" for each in RATIOS]
    epochs = "–" if of.epochs is None else f"{of.epochs:g}"
    return [f"{of.method} ({of.source})", *accuracies, lost, *ratios, epochs, "–"]


def _latency_table(runs: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for run in runs:
        for name, found in run["latencies"].items():
            if "lacking" in found:
                lines.append([f"{name}, seed {run['seed']}", "–", found["lacking"]])
                continue
            ratio = f"{found['ratio']:.4f}x [{found['low']:.4f}, {found['high']:.4f}]"
            lines.append([f"{found['engine']}, seed {run['seed']}", f"{found['seconds'] * 1e3:.4f}", ratio])
    return markdown_table(("engine", "ms per image", "of the fp32 network on the same engine"), lines)


def _about(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What one has to know of the runs: the images, and the machines; each once."""
    images = [
        f"Policies were chosen on {run['provenance']}, read once. The last step's network counts." for run in runs
    ]
    return list(dict.fromkeys([*images, *(_machine(run["machine"]) for run in runs)]))


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return (
        f"{machine['date']}: {machine['cpu']}, {machine['cores']} cores, processes of the training: "
        f"{machine['processes']}; Python {machine['python']}, {versions}."
    )
