"""What a reduction computes: which operations on which dtypes, and in what precision.

Rules:

* float16 and bfloat16 are accumulated in float32 and rounded once, at the end; every other
  dtype is accumulated in itself.
* bool has no arithmetic: sum and max are *or*, prod and min are *and*. band, bor and bxor work on
  the bits of bool and integers.
* Integers wrap. Floats overflow to infinity and carry NaN along, min and max included.
  What is odd in the numbers shows in the numbers; in a thread that is :func:`quiet`, nothing warns
  besides.
* A mean is the sum divided by the number of members, so it is infinite where the sum is;
  complex numbers are divided part by part, so that an infinite part does not spoil the finite
  one.
* The bits of a result follow from the inputs alone, on every processor, at every position.
  IEEE 754 fixes those of single steps but for three things, which are fixed here: each NaN in
  a result is the same one (:mod:`ringd.collective.nans`); -0.0 is less than +0.0 for min and max; a
  complex product is made of single real products and sums, each rounded by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ringd.collective import halves
from ringd.collective.nans import NAN_BITS, spread_nans, unify_nans

try:
    import ml_dtypes
except ImportError:  # optional: only bfloat16 needs it
    _BFLOAT16: np.dtype[Any] | None = None
else:
    _BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Array = npt.NDArray[Any]
"""An array of any supported dtype."""

OPERATIONS = ("sum", "mean", "prod", "min", "max", "band", "bor", "bxor")
BITWISE = ("band", "bor", "bxor")
"""Those that work on bits."""

_BFLOAT16_NAME = "bfloat16"
_BFLOAT16_BYTES = 2
_NATIVE_NAMES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
DTYPE_NAMES = (*_NATIVE_NAMES, _BFLOAT16_NAME)

_BY_NAME: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in _NATIVE_NAMES}
if _BFLOAT16 is not None:
    _BY_NAME[_BFLOAT16_NAME] = _BFLOAT16
_NAMES = {dtype: name for name, dtype in _BY_NAME.items()}
_HALVES = ("float16", _BFLOAT16_NAME)
_FLOAT32 = np.dtype(np.float32)

_UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "mean": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_BOOL_UFUNCS: dict[str, np.ufunc] = {
    "sum": np.logical_or,
    "prod": np.logical_and,
    "min": np.logical_and,
    "max": np.logical_or,
    "band": np.logical_and,
    "bor": np.logical_or,
    "bxor": np.logical_xor,
}


class _Way(Protocol):
    def __call__(self, a: Array, b: Array, /, *, out: Array) -> object:
        """Reduce *a* and *b* into *out*."""


_BLOCK = 16384
"""Elements that are taken through several steps at once: 64 KiB of float32 stay in the cache."""

_RUN = 65536
"""Those that all inputs are reduced in before the next ones, which need no temporaries: so many
that numpy's calls cost little beside them, and the result still stays in the cache."""


def quiet() -> None:
    """Have numpy not warn of overflow and the like in this thread, from now on.

    Once for a thread that reduces, as it takes as long as some thousand elements.
    """
    np.seterr(all="ignore")


def dtype_name(dtype: npt.DTypeLike) -> str:
    """Return the name under which *dtype* travels, whatever its byte order.

    Raises:
        TypeError: ringd cannot carry this dtype.
    """
    asked = np.dtype(dtype)
    known = _NAMES.get(asked)
    if known is not None:  # numpy's own names are made anew each time
        return known
    name: str = asked.name
    if name not in _BY_NAME:
        raise TypeError(
            f"arrays of dtype {asked} cannot be handed over; the supported dtypes are "
            f"{', '.join(DTYPE_NAMES)}"
        )
    return name


def dtype_from_name(name: str) -> np.dtype[Any]:
    """Return the dtype, in native byte order, that travels as *name*.

    Raises:
        TypeError: the name is unknown, or it needs ml_dtypes and this daemon has none.
    """
    dtype = _BY_NAME.get(name)
    if dtype is not None:
        return dtype
    if name == _BFLOAT16_NAME:
        raise TypeError(
            "dtype bfloat16 needs the package ml_dtypes, which it does not have: in ringd's "
            "checkout, pip install '.[bf16]' in its environment, and restart it"
        )
    raise TypeError(f"unknown dtype {name!r}; the supported dtypes are {', '.join(DTYPE_NAMES)}")


def itemsize_of(name: str) -> int | None:
    """Return the bytes of an element of the dtype that travels as *name*; None for an unknown one.

    Also of one that cannot be reduced here.
    """
    dtype = _BY_NAME.get(name)
    if dtype is not None:
        return dtype.itemsize
    return _BFLOAT16_BYTES if name == _BFLOAT16_NAME else None


def check(operation: str, dtype: npt.DTypeLike) -> None:
    """Make sure that *operation* is defined for arrays of *dtype*.

    Raises:
        ValueError: there is no such operation.
        TypeError: the dtype is unsupported, or the operation has no meaning for it.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"unknown op {operation!r}; the ops are {', '.join(OPERATIONS)}")
    name = dtype_name(dtype)
    kind = _BY_NAME[name].kind
    if operation == "mean" and kind in "biu":
        raise TypeError(
            f"op 'mean' is not defined for dtype {name}, which cannot hold a mean; "
            "convert to a float dtype first, or use op 'sum'"
        )
    if operation in BITWISE and kind not in "biu":
        raise TypeError(
            f"op {operation!r} is not defined for dtype {name}: it works on the bits of bool and "
            "integers; use x.view() of an integer dtype if you mean those"
        )


class Reduction:
    """One operation on one dtype over *size* members, as calls on 1-d arrays.

    Attributes:
        operation: one of :data:`OPERATIONS`.
        dtype: of the inputs and the result.
        accumulator: dtype of partial results; float32 for float16 and bfloat16, else *dtype*.
        size: number of members.
        wide: whether partial results have another dtype than the inputs.
    """

    __slots__ = (
        "_adds_float16",
        "_by",
        "_combine",
        "_complex",
        "_floating",
        "_plain",
        "accumulator",
        "dtype",
        "operation",
        "size",
        "wide",
    )

    def __init__(self, operation: str, dtype: npt.DTypeLike, size: int) -> None:
        check(operation, dtype)
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        name = dtype_name(dtype)
        self.operation = operation
        self.dtype = _BY_NAME[name]
        self.accumulator = _FLOAT32 if name in _HALVES else self.dtype
        self.size = size
        self.wide = self.accumulator != self.dtype
        ufuncs = _BOOL_UFUNCS if self.dtype.kind == "b" else _UFUNCS
        self._plain: _Way = functools.partial(ufuncs[operation], dtype=self.accumulator)
        self._complex = self.accumulator.kind == "c"
        self._floating = self._complex or self.accumulator.kind == "f"
        self._adds_float16 = operation == "sum" and name == "float16"
        self._by: _Way = self._plain
        if self._floating and operation in ("min", "max"):
            self._by = self._by_both_parts if self._complex else self._by_order
        elif self._complex and operation == "prod":
            self._by = _by_parts
        self._combine = self._by_blocks if self.wide else self._by

    @property
    def order_matters(self) -> bool:
        """Whether another order of the inputs can give other bits; of two, it never does."""
        return self._floating and self.size > 2 and self.operation not in ("min", "max")  # noqa: PLR2004

    def combine(self, a: Array, b: Array, out: Array) -> None:
        """Reduce *a* and *b*, elementwise, into *out*.

        Args:
            a: of *dtype* or *accumulator*.
            b: likewise.
            out: of *accumulator*; may be *a* or *b* itself.
        """
        self._combine(a, b, out=out)

    def finish(self, partial: Array, out: Array) -> None:
        """Turn the reduction of all members' inputs into the result.

        Args:
            partial: of *accumulator*; for a mean it still holds the sum. May be changed.
            out: of *dtype*; may be *partial* itself. Rounding happens here and only here.
        """
        if self.wide:
            if self.operation == "mean":
                np.divide(partial, partial.dtype.type(self.size), out=partial)
            halves.narrow(partial, out)
            return
        apart = partial is not out
        if self._complex:
            if self._by == self._by_both_parts:
                spread_nans(partial)
            partial, out = _parts(partial), _parts(out)
        if self._floating:
            unify_nans(partial)
        if self.operation == "mean":
            np.divide(partial, partial.dtype.type(self.size), out=out)
        elif apart:
            np.copyto(out, partial)

    def complete(self, a: Array, b: Array, out: Array) -> None:
        """Reduce *a* and *b*, the last ones, and finish the result.

        As :meth:`combine` and :meth:`finish` do, without memory for a partial result between.

        Args:
            a: of *dtype* or *accumulator*.
            b: likewise.
            out: of *dtype*; may be *a* or *b* itself.
        """
        if not self.wide:
            self._by(a, b, out=out)
            self.finish(out, out)
            return
        both_float16 = self._adds_float16 and a.dtype == b.dtype
        if both_float16 and halves.add_float16(a, b, out):
            return
        for run in halves.blocks(len(out)):
            x, y, result = a[run], b[run], out[run]
            if both_float16 and halves.add_float16(x, y, result):
                continue
            x, y = halves.widened(x, 0), halves.widened(y, 1)
            partial = halves.partial(len(result))
            self._by(x, y, out=partial)
            self.finish(partial, result)

    def reduce_all(self, inputs: Sequence[Array], out: Array) -> None:
        """Reduce every member's input, in rank order, and finish the result.

        Args:
            inputs: *size* arrays of *dtype* and of one length.
            out: array of *dtype* and that length, apart from the inputs in memory.
        """
        if len(inputs) != self.size:
            raise ValueError(f"{len(inputs)} inputs for a ring of {self.size}")
        if self.wide and self.size == 2:  # noqa: PLR2004
            self.complete(inputs[0], inputs[1], out)
            return
        scratch = np.empty(min(_RUN, len(out)), self.accumulator) if self.wide else None
        if len(out) <= _RUN:
            partial = out if scratch is None else scratch
            self.merge(inputs, partial)
            self.finish(partial, out)
            return
        for start in range(0, len(out), _RUN):
            run = slice(start, start + _RUN)
            result = out[run]
            partial = result if scratch is None else scratch[: len(result)]
            self.merge([member[run] for member in inputs], partial)
            self.finish(partial, result)

    def merge(self, inputs: Sequence[Array], partial: Array) -> None:
        """Reduce the inputs of some members, in their order, into a partial result.

        Args:
            inputs: one or more, of *dtype*.
            partial: of *accumulator*, apart from the inputs in memory.
        """
        if len(inputs) == 1:
            self._take(inputs[0], partial)
            return
        self._combine(inputs[0], inputs[1], out=partial)
        for member in inputs[2:]:
            self._combine(partial, member, out=partial)

    def _take(self, values: Array, out: Array) -> None:
        """Begin with one member's input, so that what follows makes a result of it."""
        if self.dtype.kind == "b":  # any byte but 0 is true in an input, 1 alone in a result
            np.not_equal(values.view(np.uint8), 0, out=out)
        elif self.wide:
            halves.widen(values, out)
        else:
            np.copyto(out, values)

    # --- ways to combine -------------------------------------------------------------------

    def _by_blocks(self, a: Array, b: Array, /, *, out: Array) -> None:
        """Any way, where *a* and *b* may have the dtype of the inputs."""
        for run in halves.blocks(len(out)):
            self._by(halves.widened(a[run], 0), halves.widened(b[run], 1), out=out[run])

    # Those that follow take arrays of *accumulator* alone.

    def _by_order(self, a: Array, b: Array, /, *, out: Array) -> None:
        """Minimum or maximum of floats.

        Of two zeros processors return the first, the second or the right one. That matters only
        if one of them is negative, which is quickly seen, and rare.
        """
        if not (_has_negative_zero(a) or _has_negative_zero(b)):
            self._plain(a, b, out=out)
            return
        least = self.operation == "min"
        unsigned, _ = NAN_BITS[self.accumulator]
        sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
        for start in range(0, len(out), _BLOCK):
            x, y, result = (values[start : start + _BLOCK] for values in (a, b, out))
            if least:  # the negative of the largest negative
                x, y = -x, -y
            # -0.0 where both are negative, else 0.0. Added, it settles the sign of a zero, for a
            # sum of zeros is negative only if both are, and leaves all else as it is.
            zero = (x.view(unsigned) & y.view(unsigned) & sign).view(self.accumulator)
            np.maximum(x, y, out=result)
            result += zero
            if least:
                np.negative(result, out=result)

    def _by_both_parts(self, a: Array, b: Array, /, *, out: Array) -> None:
        """Minimum or maximum of complex numbers: by the real parts, then by the imaginary ones.

        What has a NaN in either part is a NaN in both, so that the order of inputs does not matter.
        """
        for start in range(0, len(out), _BLOCK):
            x, y, result = (values[start : start + _BLOCK] for values in (a, b, out))
            low, high = (x, y) if self.operation == "min" else (y, x)
            (low_real, low_imag), (high_real, high_imag) = _ranked(low), _ranked(high)
            first = low_real < high_real  # the signs of zeros, which are equal, count last
            first |= (low_real == high_real) & (low_imag < high_imag)
            for mine, other in ((low.imag, high.imag), (low.real, high.real)):
                first = (mine < other) | ((mine == other) & first)
            lacking = np.isnan(x) | np.isnan(y)
            np.copyto(result, np.where(first, x, y))
            result[lacking] = complex(np.nan, np.nan)


def _by_parts(a: Array, b: Array, /, *, out: Array) -> None:
    """Complex product; numpy's own is rounded otherwise where a processor fuses its steps."""
    for start in range(0, len(out), _BLOCK):
        x, y, result = (values[start : start + _BLOCK] for values in (a, b, out))
        real = x.real * y.real
        real -= x.imag * y.imag
        imaginary = x.real * y.imag
        imaginary += x.imag * y.real
        result.real, result.imag = real, imaginary


def _has_negative_zero(values: Array) -> bool:
    """Whether -0.0 is among *values*: as a whole number, the least of that width."""
    signed = np.dtype(f"i{values.itemsize}")
    return len(values) > 0 and np.minimum.reduce(values.view(signed)) == np.iinfo(signed).min


def _ranked(values: Array) -> tuple[Array, Array]:
    """Return whole numbers that are ordered as the parts of complex *values*, -0.0 before +0.0."""
    parts = _parts(values)
    bits = parts.view(f"i{parts.itemsize}")
    # Of two negative numbers, the one of the greater magnitude has the greater bits.
    ranks = bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)
    return ranks[::2], ranks[1::2]


def _parts(values: Array) -> Array:
    """Return complex *values* as their real and imaginary parts in turn, others as they are."""
    if values.dtype.kind != "c":
        return values
    real: Literal["f4", "f8"] = "f4" if values.itemsize == 8 else "f8"  # noqa: PLR2004 (complex64)
    return values.view(real)
