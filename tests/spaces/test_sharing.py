"""Shared weights against the definitions of their papers, and against the optimum where one is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import BadInput
from trimtab.sharing import expand, find, hashed_index
from trimtab.spaces.forms.layer_forms import parse_form
from trimtab.spaces.forms.sharing import parameters, share, share_integers
from trimtab.spaces.numbers.formats import WeightFormat

WAYS = {
    "hashed 0.1": [(6, 5), (8, 3, 3, 3)],
    "hashed 0.9": [(6, 5)],
    "circulant 2": [(6, 4), (8, 4, 3, 3)],
    "circulant 4": [(10, 6), (5, 9, 1, 1)],
    "kernels 5": [(8, 4, 3, 3), (1, 2, 3, 1)],
    "product 3": [(8, 8), (7, 6)],
}
CASES = [(how, shape) for how, shapes in WAYS.items() for shape in shapes]


def dense(how: str, weight: np.ndarray) -> np.ndarray:
    return expand(how.split()[0], share(weight, how), weight.shape)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("how", "shape"), CASES)
def test_no_change_of_the_values_is_nearer(how: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    weight = normal(rng, shape)
    parts = share(weight, how)
    name = how.split()[0]
    values = "codebook" if "codebook" in parts else "values"
    best = np.square(expand(name, parts, shape) - weight).sum()
    for _ in range(30):
        step = 0.01 * normal(rng, parts[values].shape)
        assert np.square(expand(name, {**parts, values: parts[values] + step}, shape) - weight).sum() >= best - 1e-6


@pytest.mark.parametrize(("how", "shape"), CASES)
def test_what_is_shared_is_found_again(how: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    weight = normal(rng, shape)
    integers = (share_integers(weight, how, WeightFormat(bits))[0] for bits in (8, 2))
    for shared in (dense(how, weight), *integers):
        found = find(how, shared)
        assert found is not None
        again = expand(found[0], found[1], shape)
        assert again.dtype == shared.dtype
        np.testing.assert_array_equal(again, shared)
        values, indices, bits = parameters(shape, how)
        stored = found[1].get("codebook", found[1].get("values"))
        index = found[1].get("index", np.zeros(0, np.uint8))
        assert stored is not None
        assert stored.size <= values
        assert (index.size, int(index.max(initial=0)) >> bits) == (indices, 0)


@pytest.mark.parametrize(("how", "shape"), CASES)
def test_other_weights_are_not_taken_for_shared(how: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    found = find(how, normal(rng, shape))
    # As many kernels as there are is a codebook too, if no smaller than the weight.
    assert found is None or sum(part.size for part in found[1].values()) > np.prod(shape)


@pytest.mark.parametrize("how", ["hashed 0.3", "circulant 1", "circulant 2", "kernels 9", "product 9"])
def test_a_weight_that_is_shared_stays_as_it_is(how: str, rng: np.random.Generator) -> None:
    shape = (4, 8) if how.startswith("product") else (6, 4, 3, 3)
    once = dense(how, normal(rng, shape))
    np.testing.assert_allclose(dense(how, once), once, atol=1e-6)


def test_hashing_is_even_and_its_signs_too() -> None:
    index, sign = hashed_index(100_000, 100)
    assert abs(np.bincount(index, minlength=100) - 1000).max() < 5 * np.sqrt(1000)
    assert abs(int(sign.sum())) < 5 * np.sqrt(100_000)
    # Weiner's splitmix64 of state 0: the first number of its published sequence.
    assert index[0] == (0xE220A8397B1DCDAF >> 1) % 100


def test_a_hashed_layer_is_the_papers(rng: np.random.Generator) -> None:
    """Chen et al. 2015, equation 7: z_i = sum_j xi(i, j) w_h(i, j) a_j."""
    weight, a = normal(rng, (6, 5)), normal(rng, (5,))
    parts = share(weight, "hashed 0.2")
    index, sign = hashed_index(30, 6)
    z = [sum(sign[5 * i + j] * parts["values"][index[5 * i + j]] * a[j] for j in range(5)) for i in range(6)]
    np.testing.assert_allclose(dense("hashed 0.2", weight) @ a, z, rtol=1e-5)


def test_a_circulant_block_multiplies_by_fft(rng: np.random.Generator) -> None:
    """Ding et al. 2017, section 3.1: a_p = sum_q IFFT(FFT(w_pq) * FFT(x_q))."""
    weight, x = normal(rng, (8, 12)), normal(rng, (12,))
    values = share(weight, "circulant 4")["values"]
    blocks = np.fft.fft(values, axis=2) * np.fft.fft(x.reshape(3, 4), axis=1)
    np.testing.assert_allclose(
        dense("circulant 4", weight) @ x, np.fft.ifft(blocks.sum(1), axis=1).real.ravel(), atol=1e-5
    )


@pytest.mark.parametrize(("how", "shape"), [("kernels 2", (3, 2, 3, 3)), ("product 3", (7, 4))])
def test_codebooks_by_brute_force(how: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Of all partitions of few vectors, k-means finds the best, or one little worse."""
    weight = normal(rng, shape)
    vectors = weight.reshape(-1, 9) if how.startswith("kernels") else weight
    labels = itertools.product(range(int(how.split()[1])), repeat=len(vectors))
    best = min(sum(_spread(vectors[np.array(mask) == k]) for k in set(mask)) for mask in labels)
    assert 0.9999 * best <= np.square(dense(how, weight) - weight).sum() <= 1.15 * best


def _spread(vectors: np.ndarray) -> float:
    return float(np.square(vectors - vectors.mean(0)).sum())


def test_integers_are_those_of_one_scale(rng: np.random.Generator) -> None:
    weight = normal(rng, (8, 4, 3, 3))
    integers, scale = share_integers(weight, "circulant 2", WeightFormat(8))
    assert integers.dtype == np.int8
    assert len(set(scale)) == 1
    np.testing.assert_allclose(integers * scale[0], dense("circulant 2", weight), atol=0.51 * scale[0])


def test_parameters_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    values, index = np.ones((2, 2, 3), np.float32), np.full((4, 2), 2, np.uint8)
    for name, parts, shape in [
        ("hashed", {"values": values}, (3, 4)),
        ("hashed", {"codebook": values}, (3, 4)),
        ("hashed", {"values": np.zeros(0, np.int8)}, (3, 4)),
        ("circulant", {"values": values}, (6, 8)),
        ("circulant", {"values": values[:, :, :0]}, (6, 6)),
        ("kernels", {"codebook": values, "index": index}, (4, 2, 2, 3)),
        ("kernels", {"codebook": values, "index": index.astype(np.int8) - 3}, (4, 2, 2, 3)),
        ("product", {"codebook": values, "index": index}, (4, 6)),
        ("product", {"codebook": values, "index": index[:, :1]}, (4, 6)),
        ("tangled", {"values": values}, (3, 4)),
        ("circulant", {"values": values[0, 0]}, (6,)),
        ("product", {"codebook": values, "index": index}, (4,)),
    ]:
        with pytest.raises(ValueError, match=name):
            expand(name, parts, shape)
        with pytest.raises(ValueError, match=name):
            expand(name, {}, shape)


def test_numbers_that_make_no_sense() -> None:
    for text in ("hashed 1", "hashed 0", "circulant 1", "circulant 2.5", "kernels 257", "product 0.5"):
        with pytest.raises(BadInput, match="the number is a"):
            parse_form(text)
    assert parse_form("circulant 4").kind == "sharing"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_can_be_shared(data: st.DataObject) -> None:
    how = data.draw(st.sampled_from(["hashed 0.01", "circulant 3", "circulant 64", "kernels 256", "product 256"]))
    taps = () if how.startswith("product") else (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    shape = (data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), *taps)
    weight = normal(np.random.default_rng(data.draw(st.integers(0, 99))), shape)
    assert np.square(dense(how, weight) - weight).sum() <= np.square(weight).sum() * 1.0001
