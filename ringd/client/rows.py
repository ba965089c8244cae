"""Tensors that travel as one row: gathered into it, and cut out of the row that comes back.

What is done for each tensor is all that a call of a thousand of them costs a program. So what
follows from their shapes is found once, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ringd.client.forms import call_of
from ringd.client.tensors import check_out, native, plain_array, size_of
from ringd.collective import coalesced, kinds
from ringd.collective.call import Call
from ringd.collective.reduction import BITWISE

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_KEPT = 16


class Layout(NamedTuple):
    """Where the tensors of a row are in it."""

    call: Call
    cuts: tuple[tuple[int, int, Shape | None], ...]
    """Of each tensor where it begins and ends, and its shape where it has not one axis."""

    def parts(self, row: Array) -> list[Array]:
        """Return the tensors, as views of *row*."""
        return [
            row[start:stop] if shape is None else row[start:stop].reshape(shape)
            for start, stop, shape in self.cuts
        ]


class Row:
    """Arrays of one dtype, as the input of one call."""

    __slots__ = ("_arrays", "dtype", "layout", "nbytes", "places")

    def __init__(
        self,
        arrays: Sequence[Array],
        places: Sequence[int],
        dtype: np.dtype[Any],
        layout: Layout,
    ) -> None:
        self._arrays = arrays
        self.places = places
        """Of each, its number among those of all rows."""
        self.dtype = dtype
        """Native."""
        self.layout = layout
        self.nbytes = size_of(layout.call.shape, dtype)

    def copy_into(self, target: npt.NDArray[np.uint8]) -> None:
        """Copy the arrays into *target*, of the same number of bytes, each once."""
        if self.nbytes:
            np.concatenate(self._arrays, None, target.view(self.dtype), casting="equiv")

    def to_bytes(self) -> memoryview:
        """Return a copy of the arrays."""
        row = np.empty(self.nbytes, np.uint8)
        self.copy_into(row)
        return row.data


def rows_of(kind: str, op: str, wire: str, arrays: Sequence[Array]) -> list[Row]:
    """Return the rows in which *arrays* travel: one for each dtype, in the order of their first.

    Args:
        kind: of their calls.
        op: likewise.
        wire: likewise.
        arrays: as :func:`arrays_of` gives them.

    Raises:
        TypeError: a dtype cannot be handed over, or has no such op or wire.
        ValueError: there is no such op or wire, or there are too many arrays.
    """
    by_dtype, rows = _by_dtype(arrays) or {_dtype_of_none(op): ()}, []
    for dtype, places in by_dtype.items():
        same = arrays if len(by_dtype) == 1 else [arrays[place] for place in places]
        try:
            layout = _layout(kind, op, wire, dtype, tuple([array.shape for array in same]))
        except TypeError as error:
            if len(by_dtype) == 1:
                raise
            raise _named(error, f"xs[{places[0]}]") from None
        rows.append(Row(same, places, dtype, layout))
    return rows


def _by_dtype(arrays: Sequence[Array]) -> dict[np.dtype[Any], Sequence[int]]:
    """Return the numbers of those of each dtype."""
    if len({array.dtype for array in arrays}) == 1:  # as a rule
        return {native(arrays[0].dtype): range(len(arrays))}
    found: dict[np.dtype[Any], list[int]] = {}
    for place, array in enumerate(arrays):
        found.setdefault(native(array.dtype), []).append(place)
    return dict(found)


def _dtype_of_none(op: str) -> np.dtype[Any]:
    """Return what an empty list is taken for, by numpy; but for what works on bits."""
    return np.dtype(np.uint8 if op in BITWISE else np.float64)


@lru_cache(maxsize=_KEPT)
def _layout(
    kind: str, op: str, wire: str, dtype: np.dtype[Any], shapes: tuple[Shape, ...]
) -> Layout:
    stops = list(accumulate(map(prod, shapes), initial=0))
    cuts = tuple(
        (start, stop, None if len(shape) == 1 else shape)
        for (start, stop), shape in zip(pairwise(stops), shapes, strict=True)
    )
    call = call_of(kind, op, dtype, (stops[-1],), wire)
    call = msgspec.structs.replace(call, tensors=coalesced.written(shapes))
    kinds.check(call, 1)
    return Layout(call, cuts)


def arrays_of(xs: Sequence[npt.ArrayLike]) -> list[Array]:
    """Return each of *xs* as a plain array.

    Raises:
        TypeError: they are no sequence of such; or one of them is none, as :func:`plain_array`
            says it.
    """
    _check_sequence(xs, "xs")
    arrays = []
    for x in xs:
        if type(x) is np.ndarray and x.dtype.names is None:
            arrays.append(x)
        else:
            try:
                arrays.append(plain_array(x))
            except (TypeError, ValueError) as error:
                raise _named(error, f"x = xs[{len(arrays)}]") from error
    return arrays


def check_outs(outs: Sequence[Array], arrays: Sequence[Array]) -> None:
    """Make sure that *outs* can take the results for *arrays*.

    Raises:
        TypeError, ValueError: they cannot; as :func:`check_out` says it.
    """
    _check_sequence(outs, "out")
    if len(outs) != len(arrays):
        raise ValueError(f"out has {len(outs)} arrays, and xs {len(arrays)}; give one for each")
    for place, (out, array) in enumerate(zip(outs, arrays, strict=True)):
        if (  # at a glance, as of a thousand
            type(out) is np.ndarray
            and out.shape == array.shape
            and out.dtype == array.dtype
            and out.flags.writeable
        ):
            continue
        try:
            check_out(out, array.shape, native(array.dtype))
        except (TypeError, ValueError) as error:
            raise _named(error, f"out = out[{place}]") from error


def _named(error: TypeError | ValueError, what: str) -> TypeError | ValueError:
    """Return *error* as one of *what*; not every kind of them can be made of a text alone."""
    plain = TypeError if isinstance(error, TypeError) else ValueError
    return plain(f"{what}: {error}")


def _check_sequence(given: object, what: str) -> None:
    if isinstance(given, (list, tuple)):
        return
    if hasattr(given, "dtype"):
        raise TypeError(
            f"{what} is a list of arrays, not one, a {type(given).__name__}; write [x] if that is "
            "the only one, list(x) for one along each step of its axis 0"
        )
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise TypeError(
            f"{what} is a list of arrays, in the same order everywhere, not a "
            f"{type(given).__name__}; write list(x), of a dict list(x.values())"
        )
