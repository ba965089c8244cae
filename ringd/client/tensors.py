"""Users' arrays on their way in and out: what is accepted, and how it becomes bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ringd.client.foreign import as_array
from ringd.collective import reduction
from ringd.collective.call import MAX_CALL_NAME, Call

Array = npt.NDArray[Any]


def accept(x: npt.ArrayLike, op: str, out: object) -> Array:
    """Return *x* as an array that *op* is defined for; make sure that *out* can take the result.

    Raises:
        TypeError: the dtype is unsupported or has no such op, or *out* is of another dtype.
        ValueError: no such op, or *out* is of another shape or read-only.
    """
    array = plain_array(x)
    reduction.check(op, array.dtype)
    if out is not None:
        _check_out(out, array)
    return array


def plain_array(x: npt.ArrayLike) -> Array:
    """Return *x* as a plain array, unless that would drop a part of what it means.

    Raises:
        TypeError: *x* has a mask, a unit, labels or named fields, or leaves zeros out; says what
            to write instead.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "a masked array cannot be reduced: what lies under its mask would count; "
            "write x.filled(0), or another value that suits the op, and reduce the mask apart"
        )
    if hasattr(x, "unit") and hasattr(x, "to_value"):  # astropy's Quantity
        raise TypeError("the unit of x would be lost; write x.to_value(UNIT)")
    if hasattr(x, "units") and hasattr(x, "magnitude"):  # pint's Quantity
        raise TypeError("the units of x would be lost; write x.to(UNIT).magnitude")
    if hasattr(x, "toarray") and hasattr(x, "nnz"):  # scipy.sparse
        raise TypeError("a sparse array cannot be reduced; write x.toarray()")
    if hasattr(x, "to_numpy") and hasattr(x, "index"):  # pandas
        raise TypeError(
            "the labels of x would be lost, and its order with them; write x.to_numpy()"
        )
    array = as_array(x)
    if array.dtype.names is not None:
        raise TypeError(
            "an array with named fields cannot be reduced; reduce each field, x['NAME'], apart"
        )
    return array


def describe(array: Array, op: str, name: str) -> Call:
    """Return the call to reduce *array*, as members compare it.

    Raises:
        TypeError, ValueError: *name* cannot be one.
    """
    dtype = reduction.dtype_name(array.dtype)
    return Call("all_reduce", plain(op, "op"), dtype, array.shape, call_name(name))


def barrier(name: str) -> Call:
    """Return the call that carries no data; raises as :func:`describe` does."""
    return Call("barrier", "", "", (), call_name(name))


def call_name(name: str) -> str:
    """Return *name*, of a call, as it can be sent.

    Raises:
        TypeError: it is no string.
        ValueError: it is too long, or no text: a half of a surrogate pair is in it.
    """
    name = plain(name, "a call's name")
    if len(name) > MAX_CALL_NAME:
        raise ValueError(f"a call's name has up to {MAX_CALL_NAME} characters, not {len(name)}")
    return name


def plain(text: str, what: str) -> str:
    """Return *text*, which is *what*, as a plain str: messages take no subclass, such as numpy's.

    Raises:
        TypeError: it is no string.
        ValueError: it is no text that can be sent.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {type(text).__name__}")
    return text.encode().decode()


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return *dtype* in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def in_place(array: Array) -> bool:
    """Whether the bytes of *array* can be handed over as they are."""
    return array.dtype.isnative and array.flags.c_contiguous


def to_bytes(array: Array) -> bytes:
    """Return a copy of *array*, in C order and native byte order."""
    if array.dtype.isnative:
        return array.tobytes()
    return array.astype(native(array.dtype)).tobytes()


def copy_into(array: Array, target: npt.NDArray[np.uint8]) -> None:
    """Copy *array* into *target*, of the same number of bytes, in C order and native byte order."""
    np.copyto(target.view(native(array.dtype)).reshape(array.shape), array)


def from_bytes(data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return a new array with the values in *data*."""
    result = np.empty(shape, dtype)
    if data:
        result.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    return result


def size_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array."""
    return math.prod(shape) * dtype.itemsize


def _check_out(out: object, array: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, not {type(out).__name__}")
    if native(out.dtype) != native(array.dtype):
        raise TypeError(f"out has dtype {out.dtype}, but the result has {native(array.dtype)}")
    if out.shape != array.shape:
        raise ValueError(f"out has shape {out.shape}, but the result has {array.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
