"""float16 and bfloat16 as float32, and back: exact, or rounded once to nearest, ties to even.

numpy converts float16 element by element: 3 ns each to narrow it, and 85 ns where the result is
subnormal, as small gradients are. Here whole blocks take the same few steps on their bits, as fast
for subnormals as for others. Each step runs over a block before the next one, which then finds it
in the cache. The memory between is allocated once: this is for one thread at a time.

bfloat16 is the first half of a float32, and ml_dtypes converts it as fast as that could be done
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ringd.collective.aligned import aligned
from ringd.collective.nans import unify_nans

Array = npt.NDArray[Any]

BLOCK = 32768
"""Elements that are taken through all steps at once, at most: 128 KiB of float32, of which several
stay in the cache. With half of them an all-reduce of float16 costs 4 % more, with twice as many it
costs the same."""

_FEW = 1024
"""Elements up to which numpy's one call takes no longer than the several here."""

_FLOAT16 = np.dtype(np.float16)
_FLOAT32 = np.dtype(np.float32)

_ROWS = aligned(4 * BLOCK * 4).view(np.uint32).reshape(4, BLOCK)
"""Two blocks as float32, a partial result, and what is computed between."""


class _Rows(NamedTuple):
    """The first elements of each row, as uint32, as int32 and as float32."""

    bits: list[Array]
    signed: list[Array]
    floats: list[Array]
    both: Array
    """The first two rows at once, as uint32."""


@lru_cache(maxsize=16)
def _rows(count: int) -> _Rows:
    """Return rows of *count* elements: numpy takes as long to make a view as for 1,000 elements."""
    rows = _ROWS[:, :count]
    signed, floats = rows.view(np.int32), rows.view(_FLOAT32)
    return _Rows(list(rows), list(signed), list(floats), rows[:2])


@cache
def _every_float16() -> Array:
    """Return what each 16 bits stand for; 256 KiB, so not before they are needed."""
    return np.arange(1 << 16, dtype=np.uint16).view(_FLOAT16).astype(_FLOAT32)


def blocks(count: int) -> Iterator[slice]:
    """Yield the blocks of *count* elements."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def widened(values: Array, number: int) -> Array:
    """Return up to a block of *values* as float32: themselves, if they are.

    Args:
        values: float16, bfloat16 or float32, 1-d.
        number: 0 or 1: which memory to take; it is lent until the next call with that number.
    """
    if values.dtype == _FLOAT32:
        return values
    out = _rows(len(values)).floats[number]
    widen(values, out)
    return out


def partial(count: int) -> Array:
    """Return memory for a partial result of up to a block; it is lent until the next call."""
    return _rows(count).floats[2]


def widen(values: Array, out: Array) -> None:
    """Write *values* (float16 or bfloat16) into *out* (float32)."""
    if values.dtype == _FLOAT16 and len(values) > _FEW:
        # No index is beyond; with "clip" each takes a quarter longer.
        np.take(_every_float16(), values.view(np.uint16), out=out, mode="wrap")
    else:
        np.copyto(out, values)


def narrow(values: Array, out: Array) -> None:
    """Round *values* (float32) into *out* (float16 or bfloat16).

    Every NaN becomes the one that results have.

    Args:
        values: any number of them; may be changed.
        out: as many.
    """
    for run in blocks(len(values)):
        given, taken = values[run], out[run]
        if taken.dtype == _FLOAT16 and len(given) > _FEW and _fits(given):
            _narrow_float16(given.view(np.uint32), taken.view(np.uint16))
        else:
            unify_nans(given)
            np.copyto(taken, given, casting="unsafe")


def add_float16(a: Array, b: Array, out: Array) -> bool:
    """Write the sums of *a* and *b* into *out*, each rounded once.

    Args:
        a: float16, 1-d.
        b: likewise.
        out: likewise; may be *a* or *b* itself.

    Returns:
        Whether that was done; it is not if one of them is 32768 or more, infinite or NaN: the rest
        of this knows only numbers, and sums that do not overflow.
    """
    if len(out) <= _FEW or not (_small(a) and _small(b)):
        return False
    first, second, sums = a.view(np.int16), b.view(np.int16), out.view(np.uint16)
    for run in blocks(len(sums)):
        _add_float16(first[run], second[run], sums[run])
    return True


def _add_float16(a: Array, b: Array, out: Array) -> None:
    """Do so for up to a block, given as int16, int16 and uint16."""
    rows = _rows(len(out))
    both, x, y = rows.both, rows.bits[0], rows.bits[1]
    # As if they were float32, the bits stand for the values times 2^-112: such sums are as exact as
    # those of the values themselves, and their first bits round to the same. A float32 whose
    # exponent is 0 is no different from a float16 with that.
    np.copyto(rows.signed[0], a)
    np.copyto(rows.signed[1], b)
    np.left_shift(both, _DROPPED, out=both)
    np.bitwise_and(both, _SIGN_AND_REST, out=both)
    np.add(rows.floats[0], rows.floats[1], out=rows.floats[0])
    # The last bit that is kept, and of a negative sum what brings its sign from bit 31 to bit 28.
    np.right_shift(rows.signed[0], _DROPPED_SIGNED, out=rows.signed[1])
    np.bitwise_and(y, _ODD_AND_SIGN, out=y)
    np.add(x, y, out=x)
    np.add(x, _BELOW_HALF, out=x)
    np.right_shift(x, _DROPPED, out=x)
    np.copyto(out, x, casting="unsafe")


def _narrow_float16(bits: Array, out: Array) -> None:
    """Round the float32 whose *bits* (uint32) these are; all are below what overflows.

    A power of two, 2^13 times that of a value, leaves its sum with it as many bits as a float16 of
    that size has; of those below the least normal one, as many as that. So the sum's exponent says
    which float16 exponent, and its last bits are the float16 significand.
    """
    rows = _rows(len(bits))
    magnitude, power, _, total = rows.bits
    np.bitwise_and(bits, _MAGNITUDE, out=magnitude)
    np.bitwise_and(magnitude, _EXPONENT, out=power)
    np.maximum(power, _LEAST_NORMAL, out=power)
    np.add(power, _TIMES_2_13, out=power)
    np.add(rows.floats[0], rows.floats[1], out=rows.floats[3])
    np.right_shift(total, _DROPPED, out=power)
    np.add(total, power, out=total)
    np.right_shift(bits, _HALF, out=power)
    np.bitwise_and(power, _SIGN_16, out=power)
    np.add(total, power, out=total)
    np.copyto(out, total, casting="unsafe")
    np.subtract(out, _BIAS, out=out)


def _fits(values: Array) -> bool:
    """Whether none of *values* (float32, at least one) overflows in float16, or is NaN."""
    largest, least = np.maximum.reduce(values), np.minimum.reduce(values)
    return bool(largest < _OVERFLOWING and least > -_OVERFLOWING)


def _small(values: Array) -> bool:
    """Whether all of *values* (float16, at least one) are below 32768, with either sign."""
    return bool(
        np.maximum.reduce(values.view(np.int16)) < _LARGE
        and np.maximum.reduce(values.view(np.uint16)) < _LARGE + _SIGN
    )


def _constant(bits: int) -> Array:
    """Return *bits* as numpy takes them without a conversion for each call."""
    return np.array(bits, np.uint32)


_OVERFLOWING = np.float32(65520)
"""From here on a float16 is rounded to infinity."""
_LARGE = 0x7800
"""The bits of 32768."""
_SIGN = 0x8000
_DROPPED = _constant(13)
"""Bits of a float32 significand that a float16 has not."""
_DROPPED_SIGNED = np.array(13, np.int32)
"""As many: numpy shifts int32 by uint32 as int64, which takes five times as long."""
_BELOW_HALF = _constant(0x0FFF)
"""Of the last bit that is kept; and with that one, if it is odd, half of it."""
_SIGN_AND_REST = _constant(0x8FFF_E000)
_ODD_AND_SIGN = _constant(0x9000_0001)
"""The sign is -2^31 and 2^28 mod 2^32, and 2^31 is its own opposite."""
_MAGNITUDE = _constant(0x7FFF_FFFF)
_EXPONENT = _constant(0x7F80_0000)
_LEAST_NORMAL = _constant((127 - 14) << 23)
_TIMES_2_13 = _constant(13 << 23)
_HALF = _constant(16)
_SIGN_16 = _constant(_SIGN)
_BIAS = np.array(((127 - 14 + 13) << 10) & 0xFFFF, np.uint16)
"""What an exponent of 1, which stands for 0, too, is in the sum."""
