"""A broken artefact is an error of the user's file, or a network that runs: never a crash."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import save
from tests.kernels import build, hostile

from trimtab import kernels
from trimtab.errors import BadInput
from trimtab.kernels import ArtefactError, Node, Session, load, read_graph
from trimtab.kernels.artefact import SCHEMA


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(case=hostile.CASES)
def test_hostile_files(case: tuple[bytes, str, int, int], tmp_path: Path) -> None:
    data, level, batch, threads = case
    hostile.loads_or_is_refused(data, tmp_path / "net", level, batch, threads)


def test_the_files_that_damage_starts_from_run(level: str, tmp_path: Path) -> None:
    for data in hostile.valid():
        assert hostile.loads_or_is_refused(data, tmp_path / "net", level)


def one_weight(**attrs: Any) -> Node:
    return Node("conv2d", "conv", ("x",), attrs, {"weight": np.ones((1, 1, 1, 2), np.float32)})


BOMBS = {
    "padding": one_weight(padding=(0, 2**29, 0, 2**29 - 2), stride=(1, 2**29)),
    "dilation": one_weight(padding=(0, 2**28, 0, 2**28), dilation=(1, 2**28)),
    "output": one_weight(padding=(2**14, 2**14, 2**14, 2**13)),
    "window": Node("avg_pool2d", "pool", ("x",), {"kernel": (2**15, 2**14), "padding": (2**15 - 1, 2**14 - 1, 0, 0)}),
    "adaptive": Node("adaptive_avg_pool2d", "pool", ("x",), {"size": (2**15, 2**15)}),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_cannot_ask_for_much_memory(case: str, level: str, tmp_path: Path) -> None:
    try:
        kernels.save(build.graph((1, 1, 1), BOMBS[case]), tmp_path / "net")
        session = load(tmp_path / "net", level=level, memory_limit=2**24)
    except BadInput:
        return
    assert session.arena_bytes <= 2**24
    session.run(np.zeros((1, 1, 1, 1), np.float32))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Unicode"):
        Session(build.graph((1,), Node("flatten", "\ud800", ("x",))))


def test_an_integer_of_too_many_digits(tmp_path: Path) -> None:
    text = '{"nodes": ' + "9" * 5000 + "}"
    (tmp_path / "net").write_bytes(with_text(text.encode()))
    with pytest.raises(ArtefactError, match="digits"):
        read_graph(tmp_path / "net")


def test_a_program_of_many_bytes_from_few(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(with_text(b"[" + b" " * 2**26))
    with pytest.raises(ArtefactError, match="longer than"):
        read_graph(tmp_path / "net")


def with_text(text: bytes) -> bytes:
    compressed = np.frombuffer(zlib.compress(text), np.uint8)
    return save({"program": compressed, "weights": np.empty(0, np.uint8)}, metadata={hostile.KEY: str(SCHEMA)})


@pytest.mark.parametrize("form", ["coded", "table 1", "plain"])
def test_few_bytes_cannot_be_many_weights(form: str, tmp_path: Path) -> None:
    data = hostile.valid()[2]
    program = hostile.program_of(data)
    weight = next(node for node in program["nodes"] if node["name"] == "integers")["weights"]["weight"]
    weight["parts"]["dense"].update(shape=[2**15, 2**15], form=form)
    (tmp_path / "net").write_bytes(hostile.with_program(data, program))
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match="bytes are not"):
            read_graph(tmp_path / "net")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_few_shared_values_cannot_be_many_weights(tmp_path: Path) -> None:
    data = hostile.valid()[2]
    program = hostile.program_of(data)
    weight = next(node for node in program["nodes"] if node["name"] == "hashed")["weights"]["weight"]
    assert set(weight["parts"]) == {"hashed values"}
    weight["shape"] = [2**15, 2**15]
    (tmp_path / "net").write_bytes(hostile.with_program(data, program))
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match="are not a weight of shape"):
            read_graph(tmp_path / "net")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_headers_of_impossible_size(tmp_path: Path) -> None:
    for size in (0, 2**31, 2**63, 2**64 - 1):
        (tmp_path / "net").write_bytes(struct.pack("<Q", size) + b"{}" * 50)
        with pytest.raises(ArtefactError):
            read_graph(tmp_path / "net")
