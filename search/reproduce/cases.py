"""Cases: what others have published of compressed networks, and the run that answers it. One file each, in
`configs/published`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import trimtab.configs
from trimtab.errors import BadInput, unknown_name
from trimtab.search.report.headline import points
from trimtab.search.setup.config import Config, load_config

__all__ = ["RATIOS", "Case", "Published", "Reach", "case_names", "load_case"]

#: What networks are compared by, each as what the network as given has, divided by what the compressed one has.
RATIOS = ("macs", "bytes", "parameters")

_Times = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reach(_Section):
    """The goals of a case: the `change` of accuracy in points, at least, and ratios (RATIOS), at least."""

    change: float
    macs: _Times | None = None
    bytes: _Times | None = None
    parameters: _Times | None = None

    def __str__(self) -> str:
        """Say it in words."""
        ratios = "".join(f", {least:g}x fewer {ratio}" for ratio, least in self.ratios.items())
        return f"{points(self.change / 100)} points or better{ratios}"

    @property
    def ratios(self) -> Mapping[str, float]:
        """The ratios that are asked for."""
        return {name: value for name in RATIOS if (value := getattr(self, name)) is not None}


class Published(_Section):
    """A figure that others have published: accuracies `base` and `final` in percent, their `change` in points where
    they are not told, ratios as in `Reach`; `source` says where it stands."""

    method: str
    source: str
    base: float | None = None
    final: float | None = None
    change: float | None = None
    macs: _Times | None = None
    bytes: _Times | None = None
    parameters: _Times | None = None
    epochs: float | None = None

    @property
    def lost(self) -> float | None:
        """The change of accuracy in points."""
        if self.change is None and self.base is not None and self.final is not None:
            return self.final - self.base
        return self.change


class Case(_Section):
    """A case: the ready configuration `config` with `settings`, as `trimtab search` takes them, on a base that
    `trimtab train` makes where no checkpoint is given.

    `seeds`: of bases, searches and trainings alike. `unlike` says, a sentence each, what is not alike in the figures.
    """

    title: str
    config: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    reach: Reach
    published: tuple[Published, ...] = ()
    unlike: tuple[str, ...] = ()

    def configured(self, settings: Sequence[str] = ()) -> Config:
        """Return the configuration of its runs, with further settings."""
        return load_config(_configs() / f"{self.config}.yaml", [*self.settings, *settings])


def case_names() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.stem for path in (_configs() / "published").glob("*.yaml"))


def load_case(name: str) -> Case:
    """Return the case of a name, or of a YAML file; one that there is not, or cannot be read, is a `BadInput`."""
    file = Path(name) if name.endswith(".yaml") else _configs() / "published" / f"{name}.yaml"
    if file.parent == _configs() / "published" and name not in case_names():
        raise unknown_name("published case", name, case_names())
    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Case.model_validate(data)
    except OSError as error:
        raise BadInput(f"cannot read the case {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _configs() -> Path:
    return Path(trimtab.configs.__path__[0])
