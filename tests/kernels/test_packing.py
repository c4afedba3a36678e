"""Weights come back from every form as they were, and the smallest form is the one that is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels.packing import FORMS, Packed, bytes_of, pack, packed_size, uncoded, unpack


def halves(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


NORMAL = np.random.default_rng(0).standard_normal((8, 9, 3, 3)).astype(np.float32)
EXAMPLES = {
    "plain": [np.arange(-100, 100).astype(np.int8), np.arange(200).astype(np.uint8), np.ones(2, np.float32) / 3],
    "table 1": [np.tile(np.array([-1, 1], np.int8), 50)],
    "table 4": [np.tile(17 * np.arange(16, dtype=np.uint8), 5)],
    "table 6": [np.tile(4 * np.arange(64, dtype=np.uint8), 5)],
    "bf16": [halves(np.array([0.1, -2.0, 300.0]))],
    "coded": [np.rint(2 * NORMAL).astype(np.int8), np.zeros(500, np.uint8)],
    "coded bf16": [halves(NORMAL)],
    "coded float32": [NORMAL],
}


@pytest.mark.parametrize("form", EXAMPLES)
def test_each_form_comes_back(form: str) -> None:
    stored = [pack(array) for array in EXAMPLES[form]]
    assert {packed.form for packed in stored} == {form}
    assert [packed_size(array) for array in EXAMPLES[form]] == [packed.data.size for packed in stored]
    for packed, array in zip(stored, EXAMPLES[form], strict=True):
        again = unpack(packed)
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert again.tobytes() == array.tobytes()
        assert len(packed.data) <= array.nbytes


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_values_that_come_late_are_stored_too(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.kernels.packing._CHUNK", chunk)
    array = np.repeat(np.array([-7, 5, 100, -128], np.int8), 100)
    packed = pack(array)
    assert packed.form in ("table 2", "coded")
    np.testing.assert_array_equal(unpack(packed), array)
    np.testing.assert_array_equal(unpack(uncoded(array)), array)


def test_half_of_a_bf16_numbers_exponent_is_saved() -> None:
    """Weights of one scale: Zhang et al. 2025 (arXiv:2504.11651) store bf16 in about 70 % of its bytes so."""
    floats = np.random.default_rng(0).standard_normal(50_000).astype(np.float32) * 0.05
    assert len(pack(halves(floats)).data) / 100_000 == pytest.approx(0.68, abs=0.03)


@settings(max_examples=200)
@given(data=st.data())
def test_any_bits_come_back(data: st.DataObject) -> None:
    """Not only numbers: every pattern of bits of float32 too, infinities and the many nans."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    words = rng.integers(0, 2**32, data.draw(st.integers(0, 300)), np.uint32)
    words &= np.uint32(data.draw(st.sampled_from([0xFFFFFFFF, 0xFFFF0000, 0x007FFFFF, 0x80FF0000, 0x01010101])))
    array = words.view(data.draw(st.sampled_from(list(FORMS))))
    packed = pack(array)
    assert packed_size(array) == packed.data.size
    again = unpack(packed)
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())


@settings(max_examples=100)
@given(bits=st.sampled_from([1, 2, 3, 4, 5, 6, 8]), count=st.integers(1, 3000), seed=st.integers(0, 99))
def test_never_more_bytes_than_from_the_shape_alone(bits: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice(256, 2**bits, replace=False).astype(np.uint8)
    assert len(pack(rng.choice(values, count)).data) <= bytes_of(count, bits)


@pytest.mark.parametrize("form", EXAMPLES)
def test_bytes_of_another_length_are_refused(form: str) -> None:
    packed = pack(EXAMPLES[form][0])
    for data in (packed.data[:-1], packed.data[:0], np.concatenate([packed.data, packed.data[:1]])):
        with pytest.raises(ValueError, match=r"bytes|fractions"):
            unpack(Packed(packed.form, packed.dtype, packed.shape, data))
