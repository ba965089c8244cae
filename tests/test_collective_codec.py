"""The codecs: against a plain reference, value by value, and what they promise."""

import warnings

import numpy as np
import pytest
from codeckit import (
    BLOCK,
    LEAST,
    OVERFLOW,
    UNIT,
    decode,
    encode,
    error_bound,
    magnitudes,
    on_grid,
    travelled,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ringd.collective import codec
from ringd.collective.codec import CODECS, STRETCH, stretches

WIRES = pytest.mark.parametrize("wire", CODECS)
ANY = npst.arrays(np.float32, st.integers(0, 140), elements=st.floats(width=32))
TAME = npst.arrays(np.float32, st.integers(1, 70), elements=st.floats(-1000, 1000, width=32))
NANS = np.array([0x7FC0_0000, 0xFFC0_0000, 0x7F80_0001, 0xFFFF_FFFF], np.uint32).view(np.float32)


def same(found, wanted):
    """Whether two arrays have the same values; a NaN is one, and its bits are those of results."""
    nan = np.isnan(wanted)
    assert np.isnan(found).tolist() == nan.tolist()
    assert found.view(np.uint32)[nan].tolist() == [0x7FC0_0000] * int(nan.sum())
    return bool((found[~nan] == wanted[~nan]).all())


@WIRES
@given(values=ANY)
def test_what_arrives_is_the_nearest_value_of_the_format(wire, values):
    """Of any values, subnormals, infinities and NaN among them; nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(travelled(wire, values), on_grid(wire, values))


@WIRES
def test_the_edges_of_float32(wire):
    """Around every power of two, at both ends, ties included."""
    powers = np.arange(0, 255, dtype=np.uint32) << 23
    edges = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x1_8000, 0x79_FFFF, 0x7A_0000, 0x7A_0001, 0x7F_FFFF]
    bits = np.concatenate([powers + edge for edge in edges])
    alone = bits.view(np.float32)
    for values in (alone, -alone, np.repeat(alone, BLOCK[wire])):  # in blocks, and each in its own
        assert same(travelled(wire, values), on_grid(wire, values))
    assert travelled(wire, np.array([float(OVERFLOW[wire])], np.float32)).tolist() == [np.inf]
    below = np.nextafter(np.float32(float(OVERFLOW[wire])), np.float32(0))
    assert np.isfinite(travelled(wire, np.array([below], np.float32))).all()


@WIRES
@given(values=ANY)
def test_a_value_of_the_format_stays_as_it_is(wire, values):
    """So it may be encoded again on its way."""
    once = travelled(wire, values)
    assert travelled(wire, once).tobytes() == once.tobytes()


@WIRES
@given(values=TAME)
def test_the_error_of_one_encoding(wire, values):
    """Is within the bound, of the value or of its block's largest."""
    errors = np.abs(values.astype(np.float64) - travelled(wire, values))  # exact in float64
    for error, magnitude in zip(errors, magnitudes(wire, values), strict=True):
        bound = max(float(magnitude) * UNIT[wire], LEAST[wire])
        assert error <= bound <= error_bound(wire, [magnitude], 1)


@WIRES
@given(values=ANY, cut=st.integers(0, 2))
def test_where_chunks_begin_does_not_matter(wire, values, cut):
    """As long as each block is in one of them."""
    cut = min(cut * 64, len(values))
    parts = [travelled(wire, values[:cut]), travelled(wire, values[cut:])]
    assert np.concatenate(parts).tobytes() == travelled(wire, values).tobytes()


@WIRES
def test_long_arrays_are_encoded_stretch_by_stretch(wire):
    """Each by itself, in bytes of its own, with a NaN, an infinity or zeros in some."""
    values = np.random.default_rng(1).normal(size=3 * STRETCH + 45).astype(np.float32)
    values[5], values[STRETCH + 7], values[2 * STRETCH : 2 * STRETCH + 64] = np.nan, -np.inf, 0
    data = encode(wire, values)
    runs = list(stretches(CODECS[wire], len(values)))
    assert [run.stop - run.start for run, _ in runs] == [STRETCH] * 3 + [45]
    assert (runs[0][1].start, runs[-1][1].stop) == (0, len(data))
    for run, place in runs:
        assert encode(wire, values[run]).tobytes() == data[place].tobytes()
    parts = [travelled(wire, values[run]) for run, _ in runs]
    assert np.concatenate(parts).tobytes() == decode(wire, data, len(values)).tobytes()


@WIRES
@pytest.mark.parametrize("odd", [np.inf, -np.inf, *NANS])
def test_what_is_not_finite_survives_and_spoils_nothing(wire, odd):
    """Values beside it are as exact as without it."""
    values = np.linspace(-3, 3, 100, dtype=np.float32)
    plain = values.copy()
    values[17], plain[17] = odd, 0
    found = travelled(wire, values)
    assert same(found[17:18], values[17:18])
    found[17] = 0
    assert found.tobytes() == travelled(wire, plain).tobytes()


@given(data=npst.arrays(np.uint8, st.just(1 + 40)))
def test_any_bytes_can_be_decoded(data):
    """A peer's, whatever they are: to some values, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(decode("int8", data, 40)) == 40


@pytest.mark.parametrize(
    ("wire", "dtype", "operation", "error", "message"),
    [
        (
            "float8",
            "float32",
            "sum",
            ValueError,
            "unknown wire 'float8'; it is one of bfloat16, int8",
        ),
        ("int8", "float64", "sum", TypeError, "is for float32, not float64; convert"),
        ("bfloat16", "float32", "prod", ValueError, "op 'prod' cannot have wire='bfloat16'"),
    ],
)
def test_what_cannot_travel_so(wire, dtype, operation, error, message):
    """Says what to write."""
    with pytest.raises(error, match=message):
        codec.check(wire, np.dtype(dtype), operation)
