"""What an all-reduce computes: which operations on which dtypes, and in what precision.

Rules:

* float16 and bfloat16 are accumulated in float32 and rounded once, at the end; every other
  dtype is accumulated in itself.
* bool has no arithmetic: sum and max are *or*, prod and min are *and*.
* Integers wrap. Floats overflow to infinity and carry NaN along, min and max included.
  Nothing warns: what is odd in the numbers shows in the numbers.
* A mean is the sum divided by the number of members; complex numbers are divided part by
  part, so that an infinite part does not spoil the finite one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

try:
    import ml_dtypes
except ImportError:  # optional: only bfloat16 needs it
    _BFLOAT16: np.dtype[Any] | None = None
else:
    _BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Array = npt.NDArray[Any]
"""An array of any supported dtype."""

OPERATIONS = ("sum", "mean", "prod", "min", "max")

_BFLOAT16_NAME = "bfloat16"
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
_HALVES = ("float16", _BFLOAT16_NAME)
_FLOAT32 = np.dtype(np.float32)

_UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "mean": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}
_BOOL_UFUNCS: dict[str, np.ufunc] = {
    "sum": np.logical_or,
    "prod": np.logical_and,
    "min": np.logical_and,
    "max": np.logical_or,
}

_BLOCK = 16384
"""Elements that :meth:`Reduction.reduce_all` takes through all members at once: 64 KiB of f32."""


def dtype_name(dtype: npt.DTypeLike) -> str:
    """Return the name under which *dtype* travels, whatever its byte order.

    Raises:
        TypeError: ringd cannot carry this dtype.
    """
    asked = np.dtype(dtype)
    name: str = asked.name
    if name not in _BY_NAME:
        raise TypeError(
            f"arrays of dtype {asked} cannot be reduced; the supported dtypes are "
            f"{', '.join(DTYPE_NAMES)}"
        )
    return name


def dtype_from_name(name: str) -> np.dtype[Any]:
    """Return the dtype, in native byte order, that travels as *name*.

    Raises:
        TypeError: the name is unknown, or it needs ml_dtypes and that is not installed here.
    """
    dtype = _BY_NAME.get(name)
    if dtype is not None:
        return dtype
    if name == _BFLOAT16_NAME:
        raise TypeError(
            "dtype bfloat16 needs the package ml_dtypes, which is not installed here: "
            "pip install 'ringd[bf16]'"
        )
    raise TypeError(f"unknown dtype {name!r}; the supported dtypes are {', '.join(DTYPE_NAMES)}")


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
    if operation in ("min", "max") and kind == "c":
        raise TypeError(
            f"op {operation!r} is not defined for dtype {name}: complex numbers have no order; "
            "reduce the real and imaginary parts, or the absolute values"
        )


class Reduction:
    """One operation on one dtype over *size* members, as calls on 1-d arrays.

    Attributes:
        operation: one of :data:`OPERATIONS`.
        dtype: of the inputs and the result.
        accumulator: dtype of partial results; float32 for float16 and bfloat16, else *dtype*.
        size: number of members.
    """

    __slots__ = ("_ufunc", "accumulator", "dtype", "operation", "size")

    def __init__(self, operation: str, dtype: npt.DTypeLike, size: int) -> None:
        check(operation, dtype)
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        name = dtype_name(dtype)
        self.operation = operation
        self.dtype = _BY_NAME[name]
        self.accumulator = _FLOAT32 if name in _HALVES else self.dtype
        self.size = size
        ufuncs = _BOOL_UFUNCS if self.dtype.kind == "b" else _UFUNCS
        self._ufunc = ufuncs[operation]

    @property
    def wide(self) -> bool:
        """Whether partial results have another dtype than the inputs."""
        return self.accumulator != self.dtype

    def combine(self, a: Array, b: Array, out: Array) -> None:
        """Reduce *a* and *b*, elementwise, into *out*.

        Args:
            a: of *dtype* or *accumulator*.
            b: likewise.
            out: of *accumulator*; may be *a* or *b* itself.
        """
        # numpy converts float16 and bfloat16 on the way, 8192 elements at a time: measured, that
        # is as fast as converting blocks by hand, and needs no scratch.
        with np.errstate(all="ignore"):
            self._ufunc(a, b, out=out, dtype=self.accumulator)

    def finish(self, partial: Array, out: Array) -> None:
        """Turn the reduction of all members' inputs into the result.

        Args:
            partial: of *accumulator*; for a mean it still holds the sum.
            out: of *dtype*; may be *partial* itself. Rounding happens here and only here.
        """
        with np.errstate(all="ignore"):
            if self.operation == "mean":
                partial, into = _parts(partial), _parts(out)
                divisor = partial.dtype.type(self.size)
                np.divide(partial, divisor, out=into, dtype=partial.dtype, casting="unsafe")
            elif partial is not out:
                np.copyto(out, partial, casting="unsafe")

    def reduce_all(self, inputs: Sequence[Array], out: Array) -> None:
        """Reduce every member's input, in rank order, and finish the result.

        Args:
            inputs: *size* arrays of *dtype* and of one length.
            out: array of *dtype* and that length, apart from the inputs in memory.
        """
        if len(inputs) != self.size:
            raise ValueError(f"{len(inputs)} inputs for a ring of {self.size}")
        if self.size == 1:
            np.copyto(out, inputs[0])
            return
        scratch = np.empty(min(_BLOCK, len(out)), self.accumulator) if self.wide else None
        for start in range(0, len(out), _BLOCK):
            block = slice(start, start + _BLOCK)
            result = out[block]
            partial = result if scratch is None else scratch[: len(result)]
            self.combine(inputs[0][block], inputs[1][block], partial)
            for member in inputs[2:]:
                self.combine(partial, member[block], partial)
            self.finish(partial, result)


def _parts(values: Array) -> Array:
    """Return complex *values* as their real and imaginary parts in turn, others as they are."""
    if values.dtype.kind != "c":
        return values
    real: Literal["f4", "f8"] = "f4" if values.itemsize == 8 else "f8"  # noqa: PLR2004 (complex64)
    return values.view(real)
