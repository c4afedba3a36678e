from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import BadInput
from trimtab.search.setup.budgets import BUDGETS
from trimtab.search.setup.config import Config, default_config, keys_of, load_config, make_config, section_of

MINIMAL: dict[str, Any] = {"network": "resnet8", "budgets": {"size": "0.5x"}}


def refused(text: str, tmp_path: Path, *settings: str) -> str:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as error:
        load_config(path, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ((), "trails", "trials"),
        (("network",), "chekpoint", "network.checkpoint"),
        (("network", "training"), "epoch", "network.training.epochs"),
        (("data",), "nme", "data.name"),
        (("engine",), "thread", "engine.threads"),
        (("space",), "chanels", "space.channels"),
        (("quantisation",), "range", "quantisation.ranges"),
        (("repairs",), "blocksteps", "repairs.block_steps"),
        (("measure",), "second", "measure.seconds"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(section: tuple[str, ...], key: str, near: str) -> None:
    data: dict[str, Any] = {"network": {"zoo": "resnet8"}, "budgets": {"size": "0.5x"}}
    place = data
    for part in section:
        place = place.setdefault(part, {})
    place[key] = 1
    with pytest.raises(BadInput, match=f"unknown key '{'.'.join([*section, key])}'; did you mean '{near}'"):
        make_config(data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agent": "tpee"}, "unknown agent 'tpee'; did you mean 'tpe'"),
        ({"baselines": ["randm"]}, "did you mean 'random'"),
        ({"engine": "natve"}, "did you mean 'native'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"space": {"criterion": "tailor"}}, "unknown criterion 'tailor'; did you mean 'taylor'"),
        ({"network": "resnet9"}, "did you mean 'resnet8'"),
        ({"network": {"zoo": "resnet8", "torchvision": "resnet18"}}, "exactly one of"),
        ({"network": {}}, "exactly one of"),
        ({"network": None}, "network: expected keys and values, found None"),
        ({"measure": 3}, "measure: expected keys and values, found 3"),
        ({"budgets": {}}, "at least one of latency"),
        ({"budgets": "0.5x"}, "for example"),
        ({"budgets": {"size": {"a": 1}}}, "budget size: {'a': 1} is not a budget"),
        ({"budgets": {"latency": "fast"}}, "budget latency: 'fast' is not a budget"),
        ({"budgets": {"latenc": "1x"}}, "did you mean 'latency'"),
        ({"trials": 0}, "trials: .* found 0"),
        ({"trials": 2.5}, "trials: .* found 2.5"),
        ({"trials": "many"}, "trials: .* found 'many'"),
        ({"workers": -1}, "workers"),
        ({"seed": -1}, "seed"),
        ({"measure": {"seconds": float("inf")}}, "finite"),
        ({"measure": {"precision": float("nan")}}, "finite"),
        ({"measure": {"precision": 1}}, "less than 1"),
        ({"space": {"bits": [[4, 5]]}}, "not offered"),
        ({"space": {"bits": []}}, "at least one"),
        ({"space": {"bits": [[8]]}}, "space.bits.0"),
        ({"space": {"ranks": [0]}}, "space: ranks are fractions"),
        ({"space": {"min_keep": 0}}, "space: min_keep has to be above 0"),
        ({"space": {"min_keep": float("nan")}}, "finite"),
        ({"space": {"channels": 2.5}}, "space.channels: .* found 2.5"),
        ({"space": {"channels": 65}}, "space: channels has to be 1 to 64"),
        ({"space": {"patterns": ["2:4", "kernels 64"]}}, "space: 'kernels 64' is not a pattern"),
        ({"space": {"factors": "output"}}, "did you mean 'outputs'"),
        ({"space": "svd"}, "space: expected keys and values, found 'svd'"),
        ({"quantisation": {"rounding": "near"}}, "quantisation: unknown rounding 'near'; did you mean 'nearest'"),
        ({"quantisation": {"ranges": 3}}, "quantisation.ranges: .* found 3"),
        ({"repairs": {"bias": "perhaps"}}, "repairs.bias: .* found 'perhaps'"),
        ({"repairs": {"samples": 0}}, "repairs: samples has to be at least 1"),
        ({"repairs": {"block_steps": -1}}, "repairs: block_steps has to be at least 0"),
        ({"data": {"split": "test"}}, "'held-out' or 'test-half'"),
        ({"data": {"std": [0.0]}}, "more than zero"),
    ],
)
def test_a_wrong_value_is_refused_by_what_is_wrong_with_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make_config({**MINIMAL, **changes})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(BadInput, match=r"trials.*; .*seed"):
        make_config({**MINIMAL, "trials": 0, "seed": -1})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BadInput, match="the key 'network' is missing"):
        make_config({"budgets": {"size": "0.5x"}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network: resnet8\nnetwork: resnet20\n", "duplicate key 'network'"),
        ("budgets: {size: 1x, size: 2x}", "duplicate key 'size'"),
        ("- 1", "expected keys and values, found list"),
        ("", "expected keys and values"),
        ("a: [1", "is not YAML"),
        ("? [1, 2]\n: 3", "cannot be a key"),
        ("? {a: 1}\n: 3", "cannot be a key"),
        ("seed: 2024-13-45", "is not YAML"),
        ("a: " + "[" * 5000, "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("1: 2", "1: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(text, tmp_path)


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read the configuration"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="cannot read the configuration"):
        load_config(tmp_path)
    (tmp_path / "raw.yaml").write_bytes(b"\xff\xfe\x00network")
    with pytest.raises(BadInput, match="UTF-8"):
        load_config(tmp_path / "raw.yaml")


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "measure: &m {probes: 3}\nnetwork: resnet8\nbudgets: {size: 1x}\ndata: {<<: {name: mnist}, name: digits}\n"
    config = load_config(written(tmp_path, text))
    assert (config.measure.probes, config.data.name) == (3, "digits")


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("trials=7", "trials", 7),
        ("measure.seconds=1e-2", "measure.seconds", 0.01),
        ("network.training.epochs=3", "network.training.epochs", 3),
        ("network.options.width=8", "network.options", {"width": 8}),
        ("data.selection=10", "data.selection", 10),
        ("data.selection=10", "data.name", "digits"),
        ("engine=onnxruntime", "engine.name", "onnxruntime"),
        ("engine.threads=2", "engine.name", "native"),
        ("network=resnet20", "network.zoo", "resnet20"),
        ("budgets.macs=20 M", "budgets", {"size": "0.5x", "macs": "20 M"}),
        ("baselines=[]", "baselines", ()),
    ],
)
def test_settings_replace_single_keys(tmp_path: Path, setting: str, key: str, value: object) -> None:
    text = "network: resnet8\ndata: digits\nengine: native\nbudgets: {size: 0.5x}\n"
    found: Any = load_config(written(tmp_path, text), [setting])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trials", "--set takes key=value"),
        ("=3", "--set takes key=value"),
        ("trials=[1", "--set trials"),
        ("budgets={size: 1x, size: 2x}", "duplicate key"),
        ("a.b.c=1", "unknown key 'a'"),
        ("trials.x=1", "trials"),
        ("trials=", "trials"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, setting: str, said: str) -> None:
    assert said in refused(yaml.safe_dump(MINIMAL), tmp_path, setting)


def test_every_file_in_configs_loads() -> None:
    import trimtab.configs

    files = sorted(Path(trimtab.configs.__path__[0]).glob("*.yaml"))
    assert {"digits.yaml"} <= {path.name for path in files}
    for path in files:
        assert load_config(path).parsed_budgets


def test_the_default_is_the_digits_file_and_takes_settings() -> None:
    assert default_config().data.name == "digits"
    assert default_config(["trials=3"]).trials == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": {"import": "a.b:c", "options": {"x": [1, {"y": None}]}}, "agent": "random", "baselines": []},
        {"network": {"torchvision": "resnet18", "checkpoint": "x.pt"}, "engine": {"name": "onnxruntime", "threads": 2}},
        {"budgets": {"latency": "0.6x int8", "macs": 1e6, "size": "120 KiB"}, "data": {"mean": [0.5], "std": [0.1]}},
        {"space": {"bits": [[8, 8]], "ranks": [], "fixed": ["conv1"]}, "measure": {"seconds": 1e-5}, "seed": 2**40},
    ],
)
def test_the_resolved_configuration_reads_back_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = make_config({**MINIMAL, **changes})
    assert load_config(written(tmp_path, config.to_yaml())) == config


def test_the_page_of_the_configuration_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    block = page.split("```yaml\n")[1].split("```")[0]
    # Keys that exclude others, or are empty by default, are commented out.
    shown = yaml.safe_load(re.sub(r"^(\s*)# (\w+:)", r"\1\2", block, flags=re.MULTILINE))
    free = {"network.options"} | {f"budgets.{name}" for name in BUDGETS}
    assert set(paths(shown)) == set(known_paths(Config)) | free


def paths(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths(value, f"{before}{key}.")


def known_paths(section: type, before: str = "") -> Iterator[str]:
    for key, kind in keys_of(section).items():
        yield before + key
        inner = section_of(kind)
        if inner is not None:
            yield from known_paths(inner, f"{before}{key}.")


def test_all_agents_run_once_baselines_first() -> None:
    config = make_config({**MINIMAL, "agent": "random", "baselines": ["uniform", "random"]})
    assert config.agents == ("uniform", "random")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4) | st.just("0.5x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.dictionaries(st.sampled_from([*Config.model_fields, "other"]), VALUES), setting=st.text(max_size=12))
def test_any_values_are_a_configuration_or_bad_input(data: dict[str, Any], setting: str) -> None:
    with suppress(BadInput):
        make_config({**MINIMAL, **data})
    with suppress(BadInput):
        default_config([setting])
