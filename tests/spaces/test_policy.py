"""Policies: values that survive JSON, and whose identity is their content."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trimtab.errors import BadInput
from trimtab.spaces import LayerDecision, Policy
from trimtab.spaces.numbers.formats import INT8, LayerFormat

NAMES = st.text(min_size=1, max_size=5)
COUNTS = st.integers(1, 512)
DECISIONS = st.builds(LayerDecision, st.builds(LayerFormat.of, *[st.sampled_from([8, 32])] * 2), st.none() | COUNTS)
POLICIES = st.builds(
    Policy, NAMES, st.dictionaries(NAMES, COUNTS, max_size=4), st.dictionaries(NAMES, DECISIONS, max_size=4)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def sample() -> Policy:
    layers = {"conv": LayerDecision(INT8, 4), "fc": LayerDecision()}
    return Policy("0123456789abcdef", {"conv": 12, "stem": 3}, layers)


def paths(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = [paths(value, (*path, key)) for key, value in data.items()] if isinstance(data, dict) else []
    return [path, *(p for found in inner for p in found)]


def mutated(path: tuple[str, ...], value: Any) -> Any:
    data: Any = copy.deepcopy(sample().to_json())
    if not path:
        return value
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


def read(data: Any) -> tuple[Policy | None, str]:
    """The policy, or why there is none."""
    try:
        return Policy.from_json(data, "some.json"), ""
    except BadInput as error:
        return None, str(error)


@given(POLICIES)
def test_a_policy_survives_json(policy: Policy) -> None:
    again = Policy.from_json(json.loads(json.dumps(policy.to_json())))
    assert again == policy
    assert again.id == policy.id
    assert hash(again) == hash(policy)


@given(POLICIES)
def test_a_policy_survives_pickling_and_copying(policy: Policy) -> None:
    for again in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        assert again == policy
        assert again.id == policy.id


@given(POLICIES, POLICIES)
def test_policies_are_equal_exactly_when_their_ids_are(a: Policy, b: Policy) -> None:
    assert (a == b) == (a.id == b.id)


def test_the_id_does_not_depend_on_the_order_of_keys() -> None:
    policy = sample()
    turned = Policy(policy.network, dict(reversed(policy.channels.items())), dict(reversed(policy.layers.items())))
    assert turned == policy
    assert turned.id == policy.id


def test_the_id_is_the_same_in_every_process_and_version() -> None:
    # A journal of another machine names its candidates so: a change here needs another schema number.
    assert sample().id == "8655d9924fbe5006"


def test_every_decision_changes_the_id() -> None:
    layers = [LayerDecision(), LayerDecision(LayerFormat.of(8, 32)), LayerDecision(INT8), LayerDecision(rank=3)]
    layers += [LayerDecision(rank=3, factorisation="cp"), LayerDecision(LayerFormat.of(4, 8, "codebook"))]
    layers += [LayerDecision(pattern="2:4"), LayerDecision(sharing="circulant 4")]
    policies = [Policy("n", {"g": 2}, {"l": layer}) for layer in layers]
    policies += [Policy("m", {"g": 2}, {"l": layers[0]}), Policy("n", {"g": 3}, {"l": layers[0]})]
    assert len({policy.id for policy in policies}) == len(policies)


def test_a_policy_of_schema_1_reads_as_it_did() -> None:
    layer = {"w_bits": 8, "a_bits": 8, "rank": None}
    policy = Policy.from_json({"schema": 1, "network": "n", "channels": {}, "layers": {"l": layer}})
    assert policy == Policy("n", {}, {"l": LayerDecision(INT8)})
    assert Policy.from_json(policy.to_json()) == policy


def test_a_policy_is_immutable_and_owns_its_values() -> None:
    channels = {"conv": 12}
    policy = Policy("n", channels, {"conv": LayerDecision()})
    channels["conv"] = 1
    assert policy.channels["conv"] == 12
    with pytest.raises(FrozenInstanceError):
        policy.network = "m"  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.channels["conv"] = 1  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        policy.layers["conv"].rank = 1  # type: ignore[misc]
    policy.to_json()["channels"]["conv"] = 1
    assert policy.channels["conv"] == 12


@given(st.sampled_from(paths(sample().to_json())), JSON)
@example(("network",), None)
@example(("layers", "conv"), [])
@example(("layers", "conv", "rank"), True)
@example(("channels", "conv"), 0)
def test_mutated_json_is_read_as_it_is_or_refused_with_file_and_key(path: tuple[str, ...], value: Any) -> None:
    data = mutated(path, value)
    policy, text = read(data)
    if policy is None:
        assert "some.json" in text
        assert all(key in text for key in path[1:])
    else:
        assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("schema",), 3, "schema 2, found 3"),
        (("network",), 5, "network: expected a fingerprint"),
        (("channels",), [1], "channels: expected an object"),
        (("channels", "conv"), 1.5, "channels of conv: expected a whole number"),
        (("layers",), None, "layers: expected an object"),
        (("layers", "fc"), 8, "layer fc: expected an object"),
        (("layers", "fc"), {"a_bits": 8}, "w_bits of fc"),
        (("layers", "fc"), {"w_bits": 8, "a_bits": 8, "ranks": 2}, "layer fc: unknown key 'ranks'"),
        (("layers", "fc", "rank"), 0, "rank of fc"),
    ],
)
def test_the_error_names_the_key(path: tuple[str, ...], value: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Policy.from_json(mutated(path, value))


@pytest.mark.parametrize("key", ["schema", "network", "channels", "layers"])
def test_a_missing_key_is_named(key: str) -> None:
    data = sample().to_json()
    del data[key]
    with pytest.raises(BadInput, match=key):
        Policy.from_json(data)


def test_a_policy_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(sample().to_json()))
    assert Policy.load(path) == sample()
    assert Policy.load(str(path)) == sample()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00broken", b"\x80", b"[" * 200_000, b"[]", b"{}"])
def test_a_broken_file_is_bad_input_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken\.json"):
        Policy.load(path)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.json"):
        Policy.load(tmp_path / "nowhere.json")
    with pytest.raises(BadInput):
        Policy.load(tmp_path)
