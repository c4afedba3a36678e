from __future__ import annotations

from tests.mutants import MUTANTS, ROOT


def test_every_mutant_finds_its_place() -> None:
    """What `make mutants` changes is still there, once; whether the tests find it, it says itself."""
    for mutant in MUTANTS:
        assert (ROOT / mutant.path).read_text().count(mutant.before) == 1, mutant.name
        assert all((ROOT / "tests" / f"{name}.py").exists() for name in mutant.tests), mutant.name
