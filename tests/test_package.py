"""What importing costs, and which room may import which."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Modules that belong to no room: every room may import them, and they import nothing of ours but errors.
EVERYBODYS = {"errors", "files", "plugins", "sharing", "threads"}

#: Room -> what it may import of ours.
MAY_IMPORT = {
    "graph": set[str](),
    "kernels": {"graph"},
    "spaces": {"graph", "kernels"},
    "agents": {"graph", "spaces"},
    "evaluators": {"graph", "spaces", "kernels"},
}

#: Part of `search/` -> the parts that it may import.
FLOORS = {
    "progress": set[str](),
    "options": {"setup"},
    "training": set(),
    "setup": {"progress"},
    "loop": {"progress", "setup"},
    "finish": {"progress", "training", "setup", "loop"},
    "report": {"progress", "setup", "loop", "finish"},
    "run": {"progress", "setup", "loop", "finish", "report"},
    "contest": {"progress", "setup", "loop", "finish", "report", "run"},
    "jobs": {"progress", "options", "setup", "loop", "report", "run"},
    "train": {"progress", "training", "setup"},
    "bench": {"progress", "options", "training", "setup", "loop", "finish", "report"},
}


def python(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["trimtab", "trimtab.errors", "trimtab.search.cli"])
def test_importing_is_cheap_and_silent(name: str) -> None:
    heavy = {"torch", "torchvision", "ray", "optuna", "sklearn", "onnx", "onnxruntime", "plotly"}
    ran = python(f"import sys, {name}\nassert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


READS = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event in ("open", "os.listdir", "os.mkdir") else None)
import trimtab, trimtab.search.cli
home = os.environ["HOME"]
assert not [path for path in opened if isinstance(path, str) and path.startswith(home)], opened
"""


def test_importing_reads_nothing_from_home(tmp_path: Path) -> None:
    ran = python(READS, HOME=str(tmp_path))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


def test_the_first_use_of_the_interface_loads_it() -> None:
    ran = python("import trimtab\nassert callable(trimtab.compress) and trimtab.Task and trimtab.Result")
    assert ran.returncode == 0, ran.stderr


def test_a_wrong_name_is_an_attribute_error() -> None:
    import trimtab

    with pytest.raises(AttributeError, match="compres"):
        _ = trimtab.compres
    assert all(hasattr(trimtab, name) for name in trimtab.__all__)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    import trimtab

    assert trimtab.__version__ == version("trimtab")


def test_the_kernels_need_no_torch() -> None:
    code = "import sys\nsys.modules['torch'] = None\nimport trimtab.kernels\nassert trimtab.kernels.levels()"
    ran = python(code)
    assert (ran.returncode, ran.stderr) == (0, "")


def imports(path: Path, package: str = "trimtab") -> set[str]:
    """The rooms of a package that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == package else {node.module}
    return {name.removeprefix(f"{package}.").split(".")[0] for name in found if name.startswith(f"{package}.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = list((ROOT / "src" / "trimtab" / room).rglob("*.py"))
    assert files
    odd = {str(file): wrong for file in files if (wrong := imports(file) - MAY_IMPORT[room] - {room, *EVERYBODYS})}
    assert not odd


@pytest.mark.parametrize("part", FLOORS)
def test_the_parts_of_search_stand_on_floors(part: str) -> None:
    place = ROOT / "search" / part
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    for file in files:
        assert imports(file, "trimtab.search") <= FLOORS[part] | {part}, file


def test_modules_and_classes_are_described_by_what_they_are() -> None:
    """A docstring begins with a noun, not with a question."""
    for file in [
        path for room in (*MAY_IMPORT, "search", "testing") for path in (ROOT / "src" / "trimtab" / room).rglob("*.py")
    ]:
        tree = ast.parse(file.read_text())
        for node in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
            words = (ast.get_docstring(node) or "The").split()
            assert words[0] not in {"What", "Which", "Who", "Where", "When", "How", "From"}, (file, words[:8])


def test_every_room_is_a_link_into_the_package() -> None:
    for room in (*MAY_IMPORT.keys() - {"graph"}, "search", "configs"):
        assert (ROOT / "src" / "trimtab" / room).resolve() == ROOT / room
