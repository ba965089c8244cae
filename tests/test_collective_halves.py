"""16-bit floats to float32 and back: the bits that numpy's element-wise conversions give."""

import ml_dtypes
import numpy as np
import pytest

from ringd.collective import halves
from ringd.collective.reduction import Reduction

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
DTYPES = pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
EVERY = np.arange(1 << 16, dtype=np.uint16)
NAN = {FLOAT16: 0x7E00, BFLOAT16: 0x7FC0}


@pytest.fixture(autouse=True)
def _quiet():
    """As all callers have it."""
    with np.errstate(all="ignore"):
        yield


def bits(array):
    """Return the bits of 16-bit floats."""
    return array.view(np.uint16)


def narrowed(values, dtype):
    """Return *values* as narrowed here, which may change its argument."""
    out = np.empty(len(values), dtype)
    halves.narrow(values.copy(), out)
    return out


def expected(values, dtype):
    """Return *values* as numpy narrows them, element by element, with the NaN of results."""
    found = values.astype(dtype)
    bits(found)[np.isnan(values)] = NAN[dtype]
    return found


@DTYPES
def test_every_value_is_widened_and_narrowed_to_itself(dtype):
    """All 65,536 of them, but for the NaNs, which become one."""
    values = EVERY.view(dtype)
    wide = np.empty(len(values), np.float32)
    for run in halves.blocks(len(values)):
        halves.widen(values[run], wide[run])
    number = ~np.isnan(values)
    np.testing.assert_array_equal(
        wide.view(np.uint32)[number], values.astype(np.float32).view(np.uint32)[number]
    )
    assert np.isnan(wide[~number]).all()
    np.testing.assert_array_equal(bits(narrowed(wide, dtype)), bits(expected(wide, dtype)))
    # With numbers alone there is another way.
    finite = wide[np.isfinite(wide)]
    np.testing.assert_array_equal(bits(narrowed(finite, dtype)), bits(expected(finite, dtype)))


@DTYPES
@pytest.mark.parametrize("negative", [False, True])
def test_values_are_rounded_to_nearest_ties_to_even(dtype, negative):
    """Half-way between any two neighbours, just below, just above, and at the end of the range."""
    grid = EVERY[: 0x7C00 if dtype == FLOAT16 else 0x7F80].view(dtype).astype(np.float32)
    between = (grid[1:].astype(np.float64) + grid[:-1]) / 2
    ties = between.astype(np.float32)
    assert (ties == between).all()
    values = np.concatenate([np.nextafter(ties, np.float32(way)) for way in (0, np.inf)])
    values = np.concatenate([values, ties])
    if negative:
        values = -values
    np.testing.assert_array_equal(bits(narrowed(values, dtype)), bits(expected(values, dtype)))


@DTYPES
@pytest.mark.parametrize("count", [1, 1000, 1025, 40_001])
@pytest.mark.parametrize("seed", range(4))
def test_any_bits_are_rounded_as_numpy_does(dtype, count, seed):
    """Of any length; also where a part of them overflows, or is NaN, and the rest is not."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    if seed % 2:  # within float16's range, where its quicker way goes
        values = (values.view(np.uint32) & ~np.uint32(0x4800_0000) | 0x3000_0000).view(np.float32)
        assert (np.abs(values) < 65520).all()
    np.testing.assert_array_equal(bits(narrowed(values, dtype)), bits(expected(values, dtype)))


def test_zeros_keep_their_sign_and_subnormals_are_not_lost():
    """Down to half of the least one, which is a tie and becomes zero."""
    least = 2.0**-24
    row = np.array([0, least / 2, least * 0.50001, least, least * 1.5, least * 1023.5], np.float32)
    values = np.tile(np.concatenate([row, -row]), 200)
    found = bits(narrowed(values, FLOAT16))[:12]
    assert found.tolist() == [
        *(0, 0, 1, 1, 2, 1024),
        *(0x8000, 0x8000, 0x8001, 0x8001, 0x8002, 0x8400),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_sums_of_float16_are_rounded_once(seed):
    """Of any values below 32768: subnormals, opposites, of like and of quite other magnitude."""
    rng = np.random.default_rng(seed)
    below = np.concatenate([EVERY[:0x7800], EVERY[0x8000:0xF800]]).view(FLOAT16)
    a, b = (rng.permutation(below)[: halves.BLOCK] for _ in range(2))
    if seed % 3 == 1:  # which cancel to little or nothing
        b = -(bits(a) ^ rng.integers(0, 4, len(a), np.uint16)).view(FLOAT16)
        b = np.where(np.isin(bits(b), bits(below)), b, FLOAT16.type(0))
    elif seed % 3 == 2:  # both small
        a, b = ((bits(x) & 0x8BFF).view(FLOAT16) for x in (a, b))
    sums = expected(a.astype(np.float32) + b.astype(np.float32), FLOAT16)
    out = np.empty_like(a)
    assert halves.add_float16(a, b, out)
    np.testing.assert_array_equal(bits(out), bits(sums))
    assert halves.add_float16(a, b, a)  # in place
    np.testing.assert_array_equal(bits(a), bits(sums))


@pytest.mark.parametrize("value", [32768, -32768, 65504, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 5000])
def test_large_values_are_left_to_the_general_way(value, at):
    """Also a NaN with its sign set; what they are added to is as it was."""
    for sign in (1, -1):
        a, b = np.ones((2, 5001), np.float16)
        a[at] = value
        if sign < 0:
            a = np.copysign(a, np.float16(-1))
        before = b.copy()
        assert not halves.add_float16(a, b, b)
        assert not halves.add_float16(b, a, b)
        np.testing.assert_array_equal(b, before)


@DTYPES
@pytest.mark.parametrize("operation", ["sum", "mean", "prod", "min", "max"])
@pytest.mark.parametrize("partial", [False, True])
def test_to_complete_is_to_combine_and_finish(dtype, operation, partial):
    """In one step, the same bits; into the inputs' own memory, too."""
    rng = np.random.default_rng(7)
    a, b = (rng.permutation(np.tile(EVERY, 2)).view(dtype) for _ in range(2))
    a, b = a[:-3], b[:-3]  # blocks with all sorts of values, and a shorter one
    a[: halves.BLOCK] = (bits(a[: halves.BLOCK]) & 0xB7FF).view(dtype)  # and one with small ones
    b[: halves.BLOCK] = (bits(b[: halves.BLOCK]) & 0xB7FF).view(dtype)
    reduction = Reduction(operation, dtype, 2)
    left = a.astype(np.float32) if partial else a
    between = np.empty(len(a), np.float32)
    reduction.combine(left, b, between)
    in_two = np.empty_like(a)
    reduction.finish(between, in_two)
    in_one = np.empty_like(a)
    reduction.complete(left, b, in_one)
    np.testing.assert_array_equal(bits(in_one), bits(in_two))
    reduction.complete(left, b, b)
    np.testing.assert_array_equal(bits(b), bits(in_two))


class Strict:
    """A ufunc that refuses to convert what it is given, which would take several times as long."""

    def __init__(self, ufunc):
        self.ufunc, self.calls = ufunc, 0
        self.reduce = ufunc.reduce

    def __call__(self, *operands, out):
        """Compute without a conversion, or raise."""
        self.calls += 1
        return self.ufunc(*operands, out=out, casting="no")


@pytest.mark.parametrize("ours", [halves.add_float16, halves.narrow], ids=lambda f: f.__name__)
def test_steps_on_bits_convert_nothing_by_the_way(ours, monkeypatch):
    """Each takes its operands as they are, in memory that begins with a cache line."""
    ufuncs = {}

    class Numpy:
        def __getattr__(self, name):
            found = getattr(np, name)
            return ufuncs.setdefault(name, Strict(found)) if isinstance(found, np.ufunc) else found

    count = 2 * halves.BLOCK
    rng = np.random.default_rng(1)
    wide = rng.standard_normal(count).astype(np.float32)
    values, out = wide.astype(FLOAT16), np.empty(count, FLOAT16)
    monkeypatch.setattr(halves, "np", Numpy())
    if ours is halves.add_float16:
        assert ours(values, values[::-1].copy(), out)
        steps = 8  # of a block, beside copies and the look for large values
    else:
        ours(wide, out)
        steps = 11
    assert sum(ufunc.calls for ufunc in ufuncs.values()) == 2 * steps
    assert halves._ROWS.ctypes.data % 64 == 0
