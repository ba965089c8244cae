"""How float32 values travel in fewer bytes: as bfloat16, or as int8 with a scale for each block.

A codec turns values into bytes and back. What comes back is a value that the format has (*on the
grid*), the nearest one to what went in; a value on the grid comes back as it is. So a result is the
same whether it was decoded once or, passed on from machine to machine, many times.

Values are encoded :data:`STRETCH` by stretch, each by itself, so that all steps of one find it in
the cache. Only blocks share anything, so where a chunk begins and ends does not matter, as long as
that is between two blocks.

All steps are exact, or rounded once to nearest as IEEE 754 has it: the bits are the same on every
processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from ringd.collective.reduction import Array

STRETCH = 32768
"""Values that are encoded together: 128 KiB, of which several copies stay in the cache. With half
of them, numpy's calls cost as much as what they do."""

_WORK = np.empty(STRETCH, np.uint32)


class Codec(Protocol):
    """A format in which float32 values travel; for one thread at a time."""

    block: int
    """How many values share a scale; a chunk has whole blocks, but for the last one of all."""

    def nbytes(self, count: int) -> int:
        """Return the bytes of *count* values; of whole stretches, the sum of theirs."""

    def encode(self, values: Array, out: Array) -> None:
        """Write float32 *values* into *out*, which is uint8 and as long as :meth:`nbytes` says."""

    def decode(self, data: Array, out: Array) -> None:
        """Write the values whose bytes are *data* (uint8) into *out*, which is float32."""


def stretches(codec: Codec, count: int) -> Iterator[tuple[slice, slice]]:
    """Yield the stretches of *count* values: which values each has, and which bytes."""
    for start in range(0, count, STRETCH):
        stop = min(start + STRETCH, count)
        first = codec.nbytes(start)
        yield slice(start, stop), slice(first, first + codec.nbytes(stop - start))


class Bfloat16:
    """The first 16 bits of a float32, rounded to nearest, ties to even.

    The error is at most 2^-8 of the value, or 2^-134. From 3.396e38 on a value becomes infinite.
    Every NaN becomes the one that results have.
    """

    block = 1

    def nbytes(self, count: int) -> int:
        """As of a codec."""
        return 2 * count

    def encode(self, values: Array, out: Array) -> None:
        """As of a codec."""
        bits, halves = values.view(np.uint32), out.view(np.uint16)
        for start in range(0, len(values), STRETCH):
            run = slice(start, start + STRETCH)
            given, taken = bits[run], halves[run]
            rounded = _WORK[: len(given)]
            np.right_shift(given, 16, out=rounded)
            rounded &= 1
            rounded += 0x7FFF
            rounded += given
            rounded >>= 16
            np.copyto(taken, rounded, casting="unsafe")
            largest = np.maximum.reduce(values[run])  # carries NaN
            if largest != largest:  # noqa: PLR0124  only a NaN
                np.copyto(taken, np.uint16(0x7FC0), where=np.isnan(values[run]))

    def decode(self, data: Array, out: Array) -> None:
        """As of a codec."""
        np.left_shift(data.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)


class Int8:
    """Whole numbers from -125 to 125, times a power of two that a block of 64 values shares.

    That is the least power with which the largest finite value of the block fits, so the error is
    at most 1/125 of that value, or 2^-127. Rounded to nearest, ties to even; from 3.377e38 on a
    value becomes infinite. Infinities and NaN have numbers of their own, and no part in the scale;
    the sign of a zero is lost.

    A power of two costs up to a bit of precision. What it gives: no product is ever rounded, values
    on the grid stay as they are, and as it is a byte, a block is a quarter as long as one with a
    float32 for a scale would be for the same bytes.

    A stretch is first a byte for each block, its exponent plus 133, then a byte for each value.
    """

    block = 64
    """With half of it the errors of normally distributed values are a tenth smaller, and encoding
    takes a quarter longer."""

    _LARGEST = 125
    _INFINITY = 126
    _NAN = -128
    _BIAS = 133
    """What is added to an exponent, such that it is that of float32's largest value that fits."""
    _LEAST = 7
    """The exponent's byte below which a scale or its inverse would not be a normal number."""

    _STARTS = np.arange(0, STRETCH, block)

    def nbytes(self, count: int) -> int:
        """As of a codec."""
        return count - -count // self.block

    def encode(self, values: Array, out: Array) -> None:
        """As of a codec."""
        for run, place in stretches(self, len(values)):
            self._encode(values[run], *self._parts(out[place], run))

    def decode(self, data: Array, out: Array) -> None:
        """As of a codec."""
        for run, place in stretches(self, len(out)):
            self._decode(*self._parts(data[place], run), out[run])

    def _parts(self, data: Array, run: slice) -> tuple[Array, Array]:
        blocks = len(data) - (run.stop - run.start)
        return data[:blocks], data[blocks:].view(np.int8)

    def _encode(self, values: Array, exponents: Array, numbers: Array) -> None:
        magnitudes = _WORK[: len(values)]
        np.bitwise_and(values.view(np.uint32), _MAGNITUDE, out=magnitudes)
        largest = np.maximum.reduceat(magnitudes, self._STARTS[: len(exponents)])
        finite = np.maximum.reduce(largest) < _INFINITY_BITS
        if not finite:
            magnitudes *= magnitudes < _INFINITY_BITS
            largest = np.maximum.reduceat(magnitudes, self._STARTS[: len(exponents)])
        # What is beyond 125/64 of its own power of two carries over into the exponent.
        largest += _ONE_POWER - _FITTING
        largest >>= _MANTISSA
        np.maximum(largest, self._LEAST, out=largest)
        exponents[:] = largest
        scaled = magnitudes.view(np.float32)  # which are needed no more
        _times(values, _power(self._BIAS - largest.astype(np.int32)), scaled)
        if not finite:
            np.clip(scaled, -self._INFINITY, self._INFINITY, out=scaled)
            np.copyto(scaled, np.float32(self._NAN), where=np.isnan(values))
        np.rint(scaled, out=scaled)
        np.copyto(numbers, scaled, casting="unsafe")

    def _decode(self, exponents: Array, numbers: Array, out: Array) -> None:
        _times(numbers, _power(exponents.astype(np.int32) - self._BIAS), out)
        if (
            np.maximum.reduce(numbers) > self._LARGEST
            or np.minimum.reduce(numbers) < -self._LARGEST
        ):
            np.copyto(out, np.float32(np.inf), where=numbers == self._INFINITY)
            np.copyto(out, np.float32(-np.inf), where=numbers == -self._INFINITY)
            np.copyto(out, np.float32(np.nan), where=numbers == self._NAN)


_MAGNITUDE = 0x7FFF_FFFF
_INFINITY_BITS = 0x7F80_0000
_MANTISSA = 23
_ONE_POWER = (1 << _MANTISSA) - 1
_FITTING = 0x7A_0000
"""The mantissa of 125/64: up to there a value fits into 125 64ths of its own power of two."""


def _power(exponents: Array) -> Array:
    """Return two to the *exponents* (int32, -126 to 127), as float32."""
    exponents += 127
    exponents <<= _MANTISSA
    return exponents.view(np.float32)


def _times(values: Array, scales: Array, out: Array) -> None:
    """Write *values* into *out* (float32), each multiplied by the scale of its block."""
    whole = len(values) // Int8.block * Int8.block
    rows = (-1, Int8.block)
    blocks = scales[: whole // Int8.block, None]
    np.multiply(values[:whole].reshape(rows), blocks, out=out[:whole].reshape(rows))
    if whole < len(values):
        np.multiply(values[whole:], scales[-1], out=out[whole:])


CODECS: dict[str, Codec] = {"bfloat16": Bfloat16(), "int8": Int8()}
"""By what a call's ``wire`` says."""

WIRES = tuple(CODECS)

_OPERATIONS = ("", "sum", "mean", "min", "max")


def check(wire: str, dtype: np.dtype[Any], operation: str) -> None:
    """Make sure that arrays of *dtype* can travel as *wire*, reduced by *operation*, if any.

    Raises:
        ValueError: there is no such wire, or the errors of *operation* have no bound.
        TypeError: it is not for this dtype.
    """
    if wire not in CODECS:
        raise ValueError(f"unknown wire {wire!r}; it is one of {', '.join(WIRES)}, or left out")
    if dtype != np.float32:
        raise TypeError(
            f"wire={wire!r} is for float32, not {dtype}; convert to that first, or leave it out"
        )
    if operation not in _OPERATIONS:
        raise ValueError(
            f"op {operation!r} cannot have wire={wire!r}, as the errors of factors multiply; leave "
            "it out"
        )
