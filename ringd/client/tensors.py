"""Users' arrays on their way in and out: what is accepted, and how it becomes bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ringd.client.arguments import plain
from ringd.client.foreign import as_array, is_only_dlpack, torch_fault
from ringd.collective.call import MAX_CALL_NAME

Array = npt.NDArray[Any]

_MEANS_NO_MORE = {np.ndarray, bool, int, float, complex}
"""Types that are their numbers, and nothing else."""

_NOT_OPENED = (str, bytes, bytearray, memoryview)
"""Sequences that hold nothing but themselves, or bare numbers."""


def plain_array(x: npt.ArrayLike) -> Array:
    """Return *x* as a plain array, unless that would drop a part of what it means.

    Raises:
        TypeError: *x*, or something in it, has a mask, a unit, labels, named fields, a gradient or
            a tangent, leaves zeros out, or lies on another device; says what to write instead.
    """
    if type(x) is np.ndarray:
        array: Array = x
    elif x is None:
        raise TypeError("x is None; write np.empty(SHAPE, DTYPE) where it says these only")
    else:
        fault = _fault(x, "x")
        if fault is not None:
            raise TypeError(fault)
        array = as_array(x)
    if array.dtype.names is not None:
        raise TypeError(
            "an array with named fields cannot be handed over; take each field, x['NAME'], apart"
        )
    return array


def _fault(x: Any, name: str) -> str | None:
    """Return what numpy would drop of *x*, which is to be called *name*; None for nothing.

    Lists, and whatever else numpy opens as it does them, are looked through.
    """
    if type(x) in _MEANS_NO_MORE or isinstance(x, np.generic):
        return None
    if isinstance(x, Sequence) and not isinstance(x, _NOT_OPENED):
        for kind in set(map(type, x)) - _MEANS_NO_MORE:
            for y in x:
                if type(y) is kind and (fault := _fault(y, "y")) is not None:
                    return fault if name == "y" else f"for the elements y of {name}: {fault}"
        return None
    return _meaning(x, name)


def _meaning(x: Any, name: str) -> str | None:
    if isinstance(x, np.ma.MaskedArray):  # also np.ma.masked
        return (
            "the mask of a masked array would be lost, and what lies under it would count; "
            f"write {name}.filled(0), or another value that suits, and hand the mask over apart"
        )
    if hasattr(x, "to_numpy"):  # pandas, xarray, polars, pyarrow
        return (
            f"labels, order or gaps of {name}, a {type(x).__name__}, would be lost; "
            f"write {name}.to_numpy()"
        )
    if getattr(x, "unit", None) is not None or getattr(x, "units", None) is not None:
        return f"the unit of {name} would be lost; write {_without_unit(x, name)}"
    if hasattr(x, "toarray") and hasattr(x, "nnz"):  # scipy.sparse
        return f"a sparse array cannot be handed over; write {name}.toarray()"
    if name == "y" and is_only_dlpack(x):
        return f"numpy does not look into it, a {type(x).__name__}; write np.from_dlpack({name})"
    return torch_fault(x, name)


def _without_unit(x: Any, name: str) -> str:
    """Return what to write to have the bare numbers of *x*."""
    if hasattr(x, "to_value"):  # astropy, unyt
        return f"{name}.to_value(UNIT)"
    if hasattr(x, "magnitude"):  # quantities, pint
        return f"{name}.{'rescale' if hasattr(x, 'rescale') else 'to'}(UNIT).magnitude"
    return f"np.asarray({name})"


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
    if not data:
        return np.empty(shape, dtype)
    result: Array = np.frombuffer(data, dtype).reshape(shape).copy()
    return result


def size_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array."""
    return math.prod(shape) * dtype.itemsize


def check_out(out: object, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> None:
    """Make sure that *out* can take a result of that shape and dtype.

    Raises:
        TypeError: it is no plain array, or has another dtype.
        ValueError: it has another shape, or is read-only, or there is no result for it.
    """
    if shape is None:
        raise ValueError("out is given, but this rank has no result; write out=None here")
    if not isinstance(out, np.ndarray):
        raise TypeError(
            f"out must be a numpy array, not {type(out).__name__}; "
            f"write out=np.empty({shape}, {dtype.name!r})"
        )
    if type(out) is not np.ndarray and _meaning(out, "out") is not None:
        raise TypeError(
            f"out must be a plain array, not a {type(out).__name__}, whose mask or unit would say "
            "nothing of the result; write out=np.asarray(out)"
        )
    if native(out.dtype) != dtype:
        raise TypeError(
            f"out has dtype {out.dtype}, but the result has {dtype}; convert one of x and out"
        )
    if out.shape != shape:
        raise ValueError(
            f"out has shape {out.shape}, but the result has {shape}; "
            f"write out=np.empty({shape}, {dtype.name!r})"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; write out=out.copy()")


def check_no_tensor(shape: object) -> None:
    """Make sure that *shape* is not some other framework's array: its numbers are no lengths.

    Raises:
        TypeError: it is one.
    """
    if hasattr(shape, "dtype") and len(getattr(shape, "shape", ())):
        raise TypeError(
            f"out must be a numpy array, not {type(shape).__name__}; write a shape and dtype=, "
            "or an array of numpy over its memory"
        )
