"""The entropy coder against Shannon's bound, against the definition in Python's whole numbers, and against damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels import entropy


def bound(symbols: np.ndarray) -> float:
    """Shannon's entropy of the symbols' frequencies, in bytes."""
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / len(symbols)
    return float(-(shares * np.log2(shares)).sum() * len(symbols) / 8)


SOURCES = {
    "binary": lambda rng, n: rng.choice([3, 200], n, p=[0.9, 0.1]),
    "ternary": lambda rng, n: rng.choice([127, 128, 129], n, p=[0.2, 0.6, 0.2]),
    "4 bits": lambda rng, n: np.clip(np.rint(3 * rng.standard_normal(n)), -7, 7) + 128,
    "8 bits": lambda rng, n: np.clip(np.rint(30 * rng.standard_normal(n)), -127, 127) + 128,
    "scattered": lambda rng, n: rng.choice(rng.choice(256, 16, replace=False), n, p=np.arange(1, 17) / 136),
    "rare": lambda rng, n: np.where(rng.random(n) < 0.9, 7, rng.integers(0, 256, n)),
    "uniform": lambda rng, n: rng.integers(0, 256, n),
}


@pytest.mark.parametrize("source", SOURCES)
def test_within_a_percent_of_the_entropy(source: str, rng: np.random.Generator) -> None:
    symbols = SOURCES[source](rng, 100_000).astype(np.uint8)
    coded = entropy.encode(symbols)
    assert bound(symbols) <= len(coded) <= 1.01 * bound(symbols) + 200
    assert abs(entropy.estimate(symbols) - len(coded)) <= 0.01 * len(coded) + 16
    np.testing.assert_array_equal(entropy.decode(coded, len(symbols)), symbols)


@settings(max_examples=100)
@given(data=st.data())
def test_any_symbols_come_back(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    length = data.draw(st.sampled_from([1, 2, 7, 100, 4095, 4096, 4097, 8193, 30_000, 40_001, 300_000]))
    values = rng.choice(256, data.draw(st.sampled_from([1, 2, 3, 16, 255, 256])), replace=False)
    symbols = rng.choice(values, length, p=rng.dirichlet(np.full(len(values), 0.5))).astype(np.uint8)
    coded = entropy.encode(symbols)
    np.testing.assert_array_equal(entropy.decode(coded, length), symbols)
    assert entropy.size(symbols, 2**30) == len(coded)


def test_a_short_lane_is_one_whole_number() -> None:
    """C(s, x) = floor(x / f) * 2^n + b + x mod f (Duda 2013), in Python's whole numbers."""
    symbols = np.array([1, 0, 1, 1, 1], np.uint8)
    coded = entropy.encode(symbols)
    zeros, ones, *others = (int(f) for f in entropy._read_table(coded).frequencies)
    assert not any(others)
    assert zeros + ones == 4096
    assert ones / zeros == pytest.approx(4, rel=0.01)
    state = 0
    for symbol in symbols[::-1]:
        frequency, first = (ones, zeros) if symbol else (zeros, 0)
        state = state // frequency * 4096 + first + state % frequency
    assert coded[-8:].tobytes() == b"\0\0" + state.to_bytes(6, "little")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("lanes", [1, 3, 8, 11])
def test_lanes_are_those_of_the_definition(source: str, lanes: int, rng: np.random.Generator) -> None:
    """Range variants (Duda 2013, section 3.3), in Python's whole numbers: a lane is coded from its end to its start."""
    symbols = SOURCES[source](rng, lanes * 4096 - 1).astype(np.uint8)
    coded = entropy.encode(symbols)
    table = entropy._read_table(coded)
    frequency = [int(f) for f in table.frequencies]
    first = [sum(frequency[:symbol]) for symbol in range(256)]
    lengths, streams = [], []
    for lane in np.array_split(symbols, lanes):
        state, words = 0, []
        for symbol in lane[::-1].tolist():
            if state >= frequency[symbol] << 36:
                state, words = state >> 16, [state & 0xFFFF, *words]
            state = state // frequency[symbol] * 4096 + first[symbol] + state % frequency[symbol]
        lengths.append(len(words))
        streams += [state & 0xFFFF, state >> 16 & 0xFFFF, state >> 32, *words]
    assert coded[len(table.stored) :].tobytes() == np.array([*lengths, *streams], "<u2").tobytes()


def test_damage_is_found(rng: np.random.Generator) -> None:
    symbols = SOURCES["4 bits"](rng, 9000).astype(np.uint8)
    coded = entropy.encode(symbols)
    missed = 0
    for at in range(0, len(coded), 293):
        damaged = coded.copy()
        damaged[at] ^= 1 << (at % 8)
        try:
            found = entropy.decode(damaged, len(symbols))
        except ValueError:
            continue
        missed += 1
        assert found.shape == symbols.shape
    assert missed <= 1  # a bit of the table that no symbol needs
    for bad in (coded[:-1], coded[:-2], coded[:20], coded[:1], coded[:0], np.concatenate([coded, coded[:2]])):
        with pytest.raises(ValueError, match="bytes"):
            entropy.decode(bad, len(symbols))
    for count in (0, -1, 1, 8999, 13000, 2**40, 2**70):
        with pytest.raises(ValueError, match=r"bytes|damaged"):
            entropy.decode(coded, count)


@settings(max_examples=200)
@given(data=st.binary(max_size=300), count=st.integers(1, 5000))
def test_nonsense_is_refused_or_symbols(data: bytes, count: int) -> None:
    try:
        found = entropy.decode(np.frombuffer(data, np.uint8), count)
    except ValueError:
        return
    assert found.shape == (count,)
