"""Formats against tables by hand, and what they say of a grid against what the grid makes of random layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trimtab.errors import BadInput
from trimtab.spaces import FORMATS, LayerFormat, WeightFormat
from trimtab.spaces.numbers.formats import BF16, FLOAT, INT8
from trimtab.spaces.numbers.grids import GRIDS

ON_GRIDS = [WeightFormat(bits, grid.name) for grid in GRIDS.values() for bits in grid.offered]
OTHERS = [LayerFormat.of(2, 8, "codebook"), LayerFormat.of(3, 1, "power2"), LayerFormat.of(4, 8, "bases")]


@pytest.mark.parametrize("found", [*FORMATS, *OTHERS], ids=str)
def test_a_format_is_read_as_it_is_written(found: LayerFormat) -> None:
    assert found.why_not_offered is None
    assert LayerFormat.parse(str(found)) == LayerFormat.read(found.to_list()) == found
    assert LayerFormat.of(*found.to_json().values()) == found  # type: ignore[arg-type]


def test_texts_and_entries_by_hand() -> None:
    assert (str(INT8), str(FLOAT), str(BF16), str(OTHERS[0])) == ("8/8", "32/32", "16/16", "2/8 codebook")
    assert [found.to_list() for found in (INT8, OTHERS[0])] == [[8, 8], [2, 8, "codebook"]]
    assert OTHERS[0].to_json() == {"w_bits": 2, "a_bits": 8, "grid": "codebook"}
    assert (str(WeightFormat(4)), str(WeightFormat(4, "bases"))) == ("4", "4 bases")
    assert LayerFormat.read((4, 8)) == LayerFormat(WeightFormat(4), 8)
    assert [LayerFormat.parse(text) for text in ("svd 0.5", "keep 0.5", "4", "4/8 ", "4/8 Codebook")] == [None] * 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([4, 5], "4-bit weights with 5-bit activations are not offered"),
        ([9, 8], "9-bit weights with 8-bit activations are not offered"),
        ([32, 8], "not offered .*8/32, 16/16, 16/32, 32/32"),
        ([8, 8, "codebook"], "8-bit weights have no grid 'codebook' .*power2: 3, 4 bits; codebook: 1, 2, 3, 4, 5, 6"),
        ([4, 8, "codebok"], "no grid 'codebok'"),
        ([32, 32, "codebook"], "no grid 'codebook'"),
        ([4, 8, "uniform"], "write weight bits"),
        ([4], "write weight bits"),
        ([4, 8, "codebook", 1], "write weight bits"),
        ([True, 8], "write weight bits"),
        ([4.0, 8], "write weight bits"),
        ("48", "write weight bits"),
        (8, "write weight bits"),
    ],
)
def test_what_is_not_offered_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LayerFormat.read(entry)


def test_what_so_many_bits_mean() -> None:
    for bits in range(1, 9):
        weight = WeightFormat(bits)
        assert (weight.is_integer, weight.is_narrow, weight.is_bf16) == (True, bits != 8, False)
    assert (BF16.weight.is_integer, BF16.weight.is_narrow, BF16.weight.is_bf16) == (False, False, True)
    assert (FLOAT.weight.is_integer, FLOAT.weight.is_narrow, FLOAT.weight.is_bf16) == (False, False, False)
    integers = {str(found) for found in FORMATS if found.is_integer}
    assert integers == {f"{w}/{a}" for w in range(1, 9) for a in (1, 2, 4, 7, 8)}
    assert [str(found) for found in FORMATS if found.is_bf16] == ["16/16"]
    assert {found.activation_bits for found in FORMATS if found.reads_narrow} == {1, 2, 4, 7}


def test_depthwise_layers_multiply_no_bf16_numbers() -> None:
    assert BF16.executed(depthwise=True) == LayerFormat.of(16, 32)
    assert BF16.executed(depthwise=False) == BF16
    assert all(found.executed(depthwise=True) == found for found in FORMATS if found != BF16)


def test_finer_is_wider_in_one_and_narrower_in_neither() -> None:
    of = LayerFormat.of
    assert of(8, 8).is_finer_than(of(4, 8))
    assert of(4, 8).is_finer_than(of(4, 4))
    assert not of(8, 4).is_finer_than(of(4, 8))
    assert not of(4, 8).is_finer_than(of(8, 8))
    assert not of(4, 8).is_finer_than(of(4, 8, "codebook"))
    assert of(4, 8, "codebook").is_finer_than(of(2, 8))


def test_offers_are_sorted_by_what_they_cost() -> None:
    mixed = [FLOAT, INT8, LayerFormat.of(4, 8), LayerFormat.of(4, 8, "codebook"), LayerFormat.of(4, 8, "bases")]
    ordered = sorted(mixed, key=lambda found: found.order)
    assert [str(found) for found in ordered] == ["4/8 bases", "4/8 codebook", "4/8", "8/8", "32/32"]


def test_levels_by_hand() -> None:
    by_hand = {1: [-1, 1], 2: [-1, 0, 1], 3: list(range(-3, 4)), 4: list(range(-7, 8)), 8: list(range(-127, 128))}
    assert {bits: WeightFormat(bits).levels.tolist() for bits in by_hand} == by_hand
    assert FLOAT.weight.levels is None
    assert BF16.weight.levels is None


def random_layers(weight: WeightFormat) -> list[np.ndarray]:
    """The levels of layers whose weights are off centre, of few values, or normal."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(mean, 1, (3, 40)).astype(np.float32) for mean in (-2, -0.1, 0, 0.3, 3)]
    rows.append(rng.integers(1, 3, (2, 12)).astype(np.float32))
    return [weight.fit(row)[0] for row in rows]


@pytest.mark.parametrize("weight", ON_GRIDS, ids=str)
def test_what_a_format_says_of_its_levels_is_so(weight: WeightFormat) -> None:
    layers = random_layers(weight)
    assert all(len(levels) <= 2**weight.stored_bits for levels in layers)
    assert weight.stored_bits == weight.bits
    if weight.levels is not None:
        assert all(levels.tolist() == weight.levels.tolist() for levels in layers)
    else:
        assert len({tuple(levels.tolist()) for levels in layers}) > 1 or weight.bits == 1
    # What is said of all layers holds for each; of what is not said, one of these layers is the reason.
    assert all(0 in levels for levels in layers) == weight.has_zero
    mirrored = [sorted((-levels.astype(int)).tolist()) == levels.tolist() for levels in layers]
    assert all(mirrored) == weight.is_symmetric


def test_a_grid_that_does_not_exist_is_refused_where_it_is_asked() -> None:
    with pytest.raises(BadInput, match="did you mean 'codebook'"):
        _ = WeightFormat(4, "codebok").stored_bits
    with pytest.raises(BadInput, match="no form of 5 bits"):
        _ = WeightFormat(5, "power2").has_zero


@pytest.mark.parametrize(("weight", "lost"), [(FLOAT.weight, 0), (BF16.weight, 16)])
def test_floats_keep_the_bits_of_their_format(weight: WeightFormat, lost: int) -> None:
    given = np.random.default_rng(0).normal(size=100).astype(np.float32)
    found = weight.round_floats(given)
    assert not (found.view(np.uint32) & (2**lost - 1)).any()
    assert np.abs(found - given).max() <= (np.abs(given).max() * 2.0**-8 if lost else 0)
