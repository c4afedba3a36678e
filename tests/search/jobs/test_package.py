"""The package of a job, against the files that it is made of."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from tests.search.runs import TINY, tiny

import trimtab
from trimtab.errors import BadInput
from trimtab.kernels import _native
from trimtab.search.jobs import package as module
from trimtab.search.jobs.package import make_package


def with_checkpoint(path: Path) -> dict[str, object]:
    return {**TINY["network"], "checkpoint": str(path), "training": None}


def test_the_package_is_the_code_and_the_configuration_and_nothing_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.py").write_text("data = 1")
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"weights")
    package = make_package(tiny(network=with_checkpoint(weights)))
    root = Path(str(trimtab.__file__)).parent
    folders = [*[room for room in root.iterdir() if room.is_dir()]]
    code = {path.relative_to(root) for room in folders for path in room.rglob("*.py")}
    code |= {path.relative_to(root) for path in root.glob("*.py")}
    with zipfile.ZipFile(package.path) as archive:
        names = set(archive.namelist())
        assert {f"trimtab/{path}" for path in code} == {name for name in names if name.endswith(".py")}
        assert archive.read(f"trimtab/kernels/{Path(_native.__file__).name}") == Path(_native.__file__).read_bytes()
        assert archive.read("checkpoint.safetensors") == b"weights"
        assert yaml.safe_load(archive.read("config.yaml"))["network"]["checkpoint"] == "checkpoint.safetensors"
        assert not [name for name in names if name.endswith((".cpp", ".h", ".pyc"))]


def test_the_name_is_that_of_the_content_alone(tmp_path: Path) -> None:
    first, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"weights")
    other.write_bytes(b"weights")
    package = make_package(tiny(network=with_checkpoint(first)))
    os.utime(first, (0, 0))
    package.path.unlink()
    again = make_package(tiny(network=with_checkpoint(other)))
    assert (again.hash, again.path) == (package.hash, package.path)
    first.write_bytes(b"Weights")
    assert make_package(tiny(network=with_checkpoint(first))).hash != package.hash
    assert make_package(tiny(trials=7)).hash != make_package(tiny(trials=8)).hash


def test_what_is_unpacked_runs_alone(tmp_path: Path) -> None:
    package = make_package(tiny())
    with zipfile.ZipFile(package.path) as archive:
        archive.extractall(tmp_path)
    code = (
        "from importlib.metadata import version; import trimtab.kernels, trimtab.search.jobs.record; "
        "print(trimtab.__file__, version('trimtab'), bool(trimtab.kernels.levels()))"
    )
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    path = os.pathsep.join([str(tmp_path), *others])
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == [str(tmp_path / "trimtab" / "__init__.py"), trimtab.__version__, "True"], ran.stderr


def test_a_package_that_is_too_large_names_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(module, "LARGEST", 6 * 2**20)
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(os.urandom(7 * 2**20))
    with pytest.raises(BadInput, match=r"checkpoint.safetensors 7.0 MiB, trimtab/kernels/_native.*--checkpoint-stays"):
        make_package(tiny(network=with_checkpoint(weights)))
    package = make_package(tiny(network=with_checkpoint(weights)), with_checkpoint=False)
    with zipfile.ZipFile(package.path) as archive:
        assert archive.read("checkpoint.sha256").decode() == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert yaml.safe_load(archive.read("config.yaml"))["network"]["checkpoint"] == str(weights)
    with pytest.raises(BadInput, match="cannot be read"):
        make_package(tiny(network=with_checkpoint(tmp_path / "none.safetensors")))
