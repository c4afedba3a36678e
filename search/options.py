"""Options and output that several commands share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trimtab.search.setup.config import Config

__all__ = ["Download", "Json", "Setting", "config_of", "names_of", "print_json"]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else there.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the configuration, for example trials=50."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is not there.")]


def config_of(path: Path | None, settings: list[str] | None) -> Config:
    """Return the configuration of a file, the embedded default without one, with `a.b=c` settings applied."""
    from trimtab.search.setup.config import default_config, load_config

    return default_config(settings or []) if path is None else load_config(path, settings or [])


def names_of(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas, but not by those in "evolution(population=64, crossed=0.3)"."""
    return tuple(name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip())


def print_json(document: Any) -> None:
    """Print a document as JSON."""
    print(json.dumps(document, indent=1))
