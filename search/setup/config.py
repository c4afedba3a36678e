"""The configuration of a run: one YAML file, or keyword arguments, validated together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from trimtab.agents.registry import label
from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.data import DATASETS
from trimtab.evaluators.engines import SIMULATED, check_engine
from trimtab.evaluators.metrics import METRICS, Better
from trimtab.search.setup.budgets import BUDGETS, Budget, parse_budget
from trimtab.search.setup.durations import parse_duration
from trimtab.spaces.numbers.formats import DEFAULT_FORMATS, LayerFormat
from trimtab.spaces.numbers.quantise import Quantisation
from trimtab.spaces.repairs.repair import Repairs
from trimtab.spaces.space import Options
from trimtab.spaces.zoo import ZOO

__all__ = [
    "UNLIMITED",
    "Config",
    "DataConfig",
    "EngineConfig",
    "FinishConfig",
    "KeepConfig",
    "MeasureConfig",
    "NetworkConfig",
    "SpaceConfig",
    "TrainingConfig",
    "apply_setting",
    "check_storage",
    "default_config",
    "keys_of",
    "load_config",
    "make_config",
    "said_trials",
]


_BUDGETS_FORM = f"at least one of {', '.join(BUDGETS)}, for example {{latency: 0.5x}}"

#: What stands for the network and the data in the configuration of a run that was started from Python.
GIVEN_NETWORK, GIVEN_DATA = "python:model", "python"


def _read_format(entry: object) -> LayerFormat:
    try:
        return LayerFormat.read(entry)
    except BadInput as error:
        raise ValueError(str(error)) from None


_Format = Annotated[LayerFormat, BeforeValidator(_read_format), PlainSerializer(LayerFormat.to_list)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingConfig(_Section):
    """Training on first use, for a network without a checkpoint; the result is cached."""

    epochs: int = Field(30, ge=1)
    batch: int = Field(64, ge=2)
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(5e-4, ge=0)


class NetworkConfig(_Section):
    """Exactly one of `zoo` (a name), `torchvision` (a model's name) and `import` ("package.module:factory").

    `options` are the constructor's keyword arguments, `checkpoint` a state dict (.safetensors, .pt, .pth). Without a
    checkpoint, `training` says how the network is trained on first use. Importing runs the code that is named.

    `metric` says what it is worth: a name, or "package.module:function" of (outputs, targets), of which `better` is
    "higher" or "lower". Without one, labels are held to the largest output; without labels, the untouched network is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    zoo: str | None = None
    torchvision: str | None = None
    import_: str | None = Field(None, alias="import")
    options: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    training: TrainingConfig | None = None
    metric: str | None = None
    better: Better | None = None

    @field_validator("metric")
    @classmethod
    def _measures(cls, name: str | None) -> str | None:
        if name is not None and name not in METRICS and ":" not in name:
            raise ValueError(str(unknown_name("metric", name, METRICS)))
        return name

    @model_validator(mode="after")
    def _one_source(self) -> NetworkConfig:
        given = [name for name in ("zoo", "torchvision", "import_") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of 'zoo', 'torchvision' and 'import'")
        if self.zoo is not None and self.zoo not in ZOO:
            raise ValueError(str(unknown_name("zoo network", self.zoo, ZOO)))
        return self


class DataConfig(_Section):
    """A data set by name, and how it is split.

    `split`: "held-out" chooses policies on training images that are left out of training, "test-half" (for a network
    that has seen every training image) on a seeded half of the test split. `selection` and `calibration` count
    images. `mean` and `std` are per channel, of images scaled to [0, 1]. `root` defaults to `TRIMTAB_DATA`.
    """

    name: str = "digits"
    root: str | None = None
    split: Literal["held-out", "test-half"] = "held-out"
    selection: int = Field(1000, ge=1)
    calibration: int = Field(256, ge=16)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = Field(None, ge=8)

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std is not None and min(std, default=1.0) <= 0:
            raise ValueError("every value has to be more than zero")
        return std

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DATASETS and name != GIVEN_DATA:
            raise ValueError(str(unknown_name("data set", name, DATASETS)))
        return name


def _known_engine(name: str) -> str:
    try:
        check_engine(name)
    except BadInput as error:
        raise ValueError(str(error)) from None
    return name


class EngineConfig(_Section):
    """The engine that runs and times the network."""

    name: str = "native"
    threads: int = Field(1, ge=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_engine(name)


@dataclass(frozen=True)
class SpaceConfig(Options):
    """Options of the space, `bits` written [w_bits, a_bits] or [w_bits, a_bits, grid]; with `drop_pointless`, choices
    that measurement finds to gain nothing are not offered."""

    bits: tuple[_Format, ...] = DEFAULT_FORMATS
    drop_pointless: bool = True


#: The most of a run's time limit that each kind of measurement takes.
SHARES: Mapping[str, float] = {"seconds": 0.01, "final_seconds": 0.025, "link_seconds": 0.05}

#: The most of a run's time limit that training takes.
TRAINING = 0.3


class MeasureConfig(_Section):
    """Durations of end-to-end measurements: until it is decided whether the latency budget is met, at most `seconds`
    for a candidate of the search. The winner and its exported file get up to `final_seconds` each, until half their
    95 % interval is at most `precision` of the ratio too; what ties the yardstick to the network as given gets up to
    `link_seconds`, once. `probes` networks calibrate the latency table."""

    precision: float = Field(0.01, gt=0, lt=1)
    seconds: float = Field(4.0, gt=0)
    final_seconds: float = Field(15.0, gt=0)
    link_seconds: float = Field(30.0, gt=0)
    probes: int = Field(6, ge=2)

    def within(self, total: float) -> MeasureConfig:
        """Return the durations, none longer than its share of a run of so many seconds (`SHARES`)."""
        return self.model_copy(update={name: min(getattr(self, name), part * total) for name, part in SHARES.items()})


class FinishConfig(_Section):
    """Training of the best networks that were found, the last stage of a run, where it is `enabled`.

    It trains for at most `time`, and `epochs` where they are given; `candidates` of them are trained for `first` of
    that, and the best of these for the rest. `processes` of one thread each, by default one for every core. The others
    are of the recipe (`trimtab.search.training.recipe.Recipe`), which has values of its own for them.
    """

    enabled: bool = True
    time: float = Field(1200.0, gt=0)
    epochs: float | None = Field(None, gt=0)
    candidates: int = Field(3, ge=1)
    first: float = Field(0.2, gt=0, lt=1)
    processes: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=2)
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    temperature: float | None = Field(None, gt=0)
    labels: float | None = Field(None, ge=0, le=1)

    @field_validator("time", mode="before")
    @classmethod
    def _duration(cls, text: object) -> float:
        return parse_duration(text)


class KeepConfig(_Section):
    """The accuracy to keep where a cost is minimised: at most so many points of it, written -1.0, are lost, by a
    one-sided `confidence`."""

    accuracy: float
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @field_validator("accuracy")
    @classmethod
    def _loses(cls, points: float) -> float:
        if not -100 < points < 0:
            raise ValueError(f"these are points that may be lost, written like -1.0; found {points:g}")
        return points


#: Evaluations of every agent where nothing is said, and where only a time limit is.
TRIALS, UNLIMITED = 200, 1_000_000


def said_trials(trials: int | None) -> str:
    """Say how many evaluations are asked for; None: as many as there is time for."""
    return str(trials) if trials is not None and trials < UNLIMITED else "as many as there is time for"


class Config(_Section):
    """A run. `budgets` maps latency, size, macs and memory to values like "0.5x", "0.6x int8" or "3 ms": the most
    accurate network within them is looked for. Or `minimise` names one of these costs, and `keep` the accuracy: then it
    is the network of the least cost that keeps the accuracy, within budgets on other costs, if there are any.

    `trials` is the number of evaluations of every agent, the `baselines` included: 200, or as many as there is time for
    where only a `time_limit` is given. That ("20m", "1h") is of the whole run, from its beginning to its report; in a
    contest it is of the search of each trial. `workers` counts Ray workers for accuracy (0: no Ray); `agent` and
    `baselines` are names, with parameters like {name: evolution, population: 64}, and
    are kept as text, "evolution(population=64)"; `accuracy_engine` runs candidates for accuracy: an engine as
    in `engine`, or "simulated", PyTorch on real numbers that are rounded as integers would be;
    `proxy`: what is judged is repaired in "sequence", from input to output, as what is finished is, or stitched of
    "layers" from the database;
    `finish` says how the winner is trained in the end, where it is not off (false);
    `storage`: an Optuna storage into which every evaluation is copied, for its dashboard.
    """

    network: NetworkConfig
    data: DataConfig = DataConfig()
    budgets: dict[str, str | float] = Field(default_factory=dict)
    minimise: str | None = None
    keep: KeepConfig | None = None
    engine: EngineConfig = EngineConfig()
    space: SpaceConfig = SpaceConfig()
    quantisation: Quantisation = Quantisation()
    repairs: Repairs = Repairs()
    agent: str = "milp"
    baselines: tuple[str, ...] = ("uniform", "random", "greedy")
    trials: int = Field(TRIALS, ge=1)
    time_limit: float | None = Field(None, gt=0)
    workers: int = Field(1, ge=0)
    accuracy_engine: str = "native"
    proxy: Literal["sequence", "layers"] = "sequence"
    measure: MeasureConfig = MeasureConfig()
    finish: FinishConfig = FinishConfig()
    seed: int = Field(0, ge=0)
    storage: str | None = None

    @property
    def measuring(self) -> MeasureConfig:
        """`measure`, as far as the time limit allows."""
        return self.measure if self.time_limit is None else self.measure.within(self.time_limit)

    @property
    def asked_trials(self) -> int | None:
        """`trials`; None where as many are asked for as there is time for."""
        return self.trials if self.trials < UNLIMITED else None

    @property
    def training_seconds(self) -> float:
        """The seconds kept for training: as `finish` says, as far as the time limit allows; 0 where it is off."""
        return min(self.finish.time, TRAINING * (self.time_limit or math.inf)) if self.finish.enabled else 0.0

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_there_is_time_for(cls, given: object) -> object:
        if isinstance(given, Mapping) and given.get("time_limit") is not None and given.get("trials") is None:
            return {**given, "trials": UNLIMITED}
        return given

    @field_validator("accuracy_engine")
    @classmethod
    def _runs_candidates(cls, name: str) -> str:
        return name if name == SIMULATED else _known_engine(name)

    @field_validator("network", "engine", mode="before")
    @classmethod
    def _by_name(cls, value: object, info: Any) -> object:
        if isinstance(value, str):
            return {"zoo" if info.field_name == "network" else "name": value}
        return value

    @field_validator("data", mode="before")
    @classmethod
    def _data_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("storage")
    @classmethod
    def _storage(cls, url: str | None) -> str | None:
        try:
            return None if url is None else check_storage(url)
        except BadInput as error:
            raise ValueError(str(error)) from None

    @field_validator("time_limit", mode="before")
    @classmethod
    def _duration(cls, text: object) -> float | None:
        return None if text is None else parse_duration(text)

    @field_validator("finish", mode="before")
    @classmethod
    def _switched(cls, value: object) -> object:
        if value is None or isinstance(value, bool) or value in ("on", "off"):
            return {"enabled": value not in (False, "off")}
        if not isinstance(value, Mapping | FinishConfig):
            raise ValueError(f"write true, false, or keys like {{time: 20m}}, not {value!r}")
        return value

    @field_validator("budgets", mode="before")
    @classmethod
    def _parsed(cls, budgets: object) -> object:
        if not isinstance(budgets, Mapping):
            raise ValueError(f"write {_BUDGETS_FORM}")
        for name, text in budgets.items():
            parse_budget(str(name), text)
        return budgets

    @field_validator("minimise")
    @classmethod
    def _is_a_cost(cls, name: str | None) -> str | None:
        if name is not None and name not in BUDGETS:
            raise ValueError(str(unknown_name("cost", name, BUDGETS)))
        return name

    @field_validator("keep", mode="before")
    @classmethod
    def _keys(cls, value: object) -> object:
        if value is not None and not isinstance(value, Mapping | KeepConfig):
            raise ValueError(f"write keys, like {{accuracy: -1.0}}, not {value!r}")
        return value

    @model_validator(mode="after")
    def _one_question(self) -> Config:
        if self.minimise is None and self.keep is not None:
            raise ValueError(
                f"keep says what has to be kept while a cost is minimised: write minimise too, one of "
                f"{', '.join(BUDGETS)}"
            )
        if self.minimise is not None and self.keep is None:
            raise ValueError(
                f"minimise: the least {self.minimise} is that of a network that answers nothing: say what has to be "
                "kept, like keep.accuracy=-1.0 (points)"
            )
        if self.minimise in self.budgets:
            raise ValueError(
                f"budgets: {self.minimise} is what is minimised, and has no budget: leave out one of the two"
            )
        if self.minimise is None and not self.budgets:
            raise ValueError(f"budgets: give {_BUDGETS_FORM}; or minimise a cost and keep the accuracy")
        return self

    @field_validator("agent", mode="before")
    @classmethod
    def _chosen(cls, choice: Any) -> str:
        try:
            return label(choice)
        except BadInput as error:
            raise ValueError(str(error)) from None

    @field_validator("baselines", mode="before")
    @classmethod
    def _all_chosen(cls, choices: Any) -> Any:
        return [cls._chosen(choice) for choice in choices] if isinstance(choices, list | tuple) else choices

    @property
    def parsed_budgets(self) -> tuple[Budget, ...]:
        """The budgets, read."""
        return tuple(parse_budget(name, text) for name, text in self.budgets.items())

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that matter: those with a budget, and the one that is minimised."""
        return (*self.budgets, *([] if self.minimise is None else [self.minimise]))

    @property
    def agents(self) -> tuple[str, ...]:
        """All agents of the run, the baselines first, each once."""
        return tuple(dict.fromkeys((*self.baselines, self.agent)))

    def to_yaml(self) -> str:
        """Return the resolved configuration."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        text: str = yaml.safe_dump(data, sort_keys=False)
        return text


def check_storage(url: str) -> str:
    """Return an Optuna storage's URL if it has a known form; any other one is a `BadInput` that shows the forms."""
    # Not Redis: Optuna would unpickle what it finds there.
    if not re.fullmatch(r"journal:.+|(sqlite|mysql|mariadb|postgresql)(\+\w+)?://.+", url, re.DOTALL):
        raise BadInput(
            f"{url!r} is not an Optuna storage: write it like sqlite:///runs/studies.db, journal:runs/studies.log, "
            "mysql://... or postgresql://..."
        )
    return url


def make_config(data: Mapping[str, Any], source: str = "configuration") -> Config:
    """Validate a mapping; every problem is one line of a `BadInput`, unknown keys with the nearest known one."""
    try:
        return Config.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise BadInput(f"{source}: " + "; ".join(dict.fromkeys(lines))) from error


def load_config(path: str | Path, settings: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` settings to it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the configuration {path} is not text in UTF-8") from error
    return _from_text(text, str(path), settings)


def default_config(settings: Sequence[str] = ()) -> Config:
    """Return the embedded default, `configs/digits.yaml`, with `a.b=c` settings applied."""
    import trimtab.configs

    path = Path(trimtab.configs.__path__[0]) / "digits.yaml"
    return _from_text(path.read_text(), "the default configuration", settings)


def _from_text(text: str, source: str, settings: Sequence[str]) -> Config:
    try:
        data = _read_yaml(text)
    except ValueError as error:
        raise BadInput(f"{source} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{source}: expected keys and values, found {type(data).__name__}")
    for setting in settings:
        apply_setting(data, setting)
    _exchange_budget(data, settings)
    _check_from_files(data, source)
    return make_config(data, source)


def _exchange_budget(data: dict[str, Any], settings: Sequence[str]) -> None:
    """Let a setting of `minimise` take the place of the budget that the file has for the same cost."""
    keys = [setting.partition("=")[0].strip() for setting in settings]
    budgets, cost = data.get("budgets"), data.get("minimise")
    asked = any(key == "budgets" or key.startswith("budgets.") for key in keys)
    if "minimise" in keys and not asked and isinstance(budgets, dict) and isinstance(cost, str):
        data["budgets"] = {name: value for name, value in budgets.items() if name != cost}


def _check_from_files(data: Mapping[str, Any], source: str) -> None:
    """Refuse the configuration of a run from Python before any key of it: its agent may be Python's alone, too."""
    network, images = _named(data.get("network"), "import"), _named(data.get("data"), "name")
    if network == GIVEN_NETWORK or images == GIVEN_DATA:
        raise BadInput(
            f"{source}: this run was started from Python with a network and data of its own, which no file holds: go "
            "on with it there (trimtab.compress with resume=True, or Result.export)"
        )


def _named(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else section


def apply_setting(data: dict[str, Any], setting: str, option: str = "--set") -> None:
    """Put what `option` was given, `a.b=c`, into a mapping of mappings; what it cannot be read as is a `BadInput`."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        example = "trials=50 or budgets.latency=0.5x" if option == "--set" else "width=8"
        raise BadInput(f"{option} takes key=value, for example {example}; found {setting!r}")
    *path, last = key.strip().split(".")
    for part in path:
        if not isinstance(data.get(part), dict):
            # "data: digits" is short for a mapping whose first key names it.
            short = {"network": "zoo", "engine": "name", "data": "name"}.get(part)
            data[part] = {short: data[part]} if short and isinstance(data.get(part), str) else {}
        data = data[part]
    try:
        data[last] = _read_yaml(text)
    except ValueError as error:
        raise BadInput(f"{option} {key}: {text!r} is not a YAML value: {error}") from error


def _read_yaml(text: str) -> Any:
    """Read YAML safely; whatever is wrong with it is a `ValueError` of one line."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        known = _known_keys(location[:-1])
        return str(unknown_name("key", ".".join(location), [".".join([*location[:-1], k]) for k in known]))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"the key {'.'.join(location)!r} is missing"
    if problem["type"] in {"dict_type", "model_type", "dataclass_type"}:
        message = "expected keys and values"
    if problem["type"] != "value_error":
        message += f", found {problem['input']!r}"
    return f"{'.'.join(location)}: {message}" if location else message


def _known_keys(path: Sequence[str]) -> list[str]:
    section: type = Config
    for part in path:
        section = section_of(keys_of(section).get(part)) or Config
    return list(keys_of(section))


def keys_of(section: type) -> dict[str, Any]:
    """Return the keys of a section, as they are written, with their types."""
    if issubclass(section, BaseModel):
        return {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    return get_type_hints(section)


def section_of(annotation: Any) -> type | None:
    """Return the section that a key of this type holds; None for plain values, and for lists of anything."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    sections = (
        kind for kind in kinds if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))
    )
    return next(sections, None)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, of which YAML silently takes the last."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float):
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
