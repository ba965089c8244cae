"""Several tensors that travel as one row: how a call says which shapes they have.

That is one text, in JSON: ``[[3,4],[7],[]]`` of a matrix, a vector and a scalar. A list of a
thousand tuples takes a daemon a hundred times as long to decode and to compare, and each member's
offer has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import msgspec

Shape = tuple[int, ...]

MAX_AXES = 64
MAX_TENSORS = 16384
"""Of one call."""
MAX_SHAPES = 128 << 10
"""Characters of what says their shapes."""

_SHOWN = 60
"""Characters that are read at a glance."""

_Side = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Sides = Annotated[list[_Side], msgspec.Meta(max_length=MAX_AXES)]
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Annotated[list[_Sides], msgspec.Meta(max_length=MAX_TENSORS)])


def written(shapes: Sequence[Shape]) -> str:
    """Return what a call says of tensors of these *shapes*."""
    return _encoder.encode(shapes).decode()


@lru_cache(maxsize=32)  # keeps none that raises; each has up to MAX_SHAPES characters
def elements(text: str) -> int:
    """Return how many elements the tensors have together.

    Raises:
        ValueError: it says no shapes, or those of more tensors than a call may have.
    """
    return sum(map(math.prod, _shapes(text)))


def fits(text: str) -> bool:
    """Whether *text* is one that a call can have."""
    try:
        elements(text)
    except ValueError:
        return False
    return True


def brief(text: str) -> str:
    """Return what is said of the tensors in a line."""
    if len(text) <= _SHOWN and fits(text):
        return f"tensors {', '.join(map(_shown, _shapes(text)))}" if text != "[]" else "no tensors"
    return f"{text.count('[') - 1} tensors"


def difference(texts: Sequence[str]) -> str:
    """Return how what the ranks say, in their order, differs first; empty if it does not."""
    first = _shapes(texts[0])
    for rank, text in enumerate(texts):
        shapes = first if text == texts[0] else _shapes(text)
        if len(shapes) != len(first):
            return f"tensors: rank 0 has {len(first)} and rank {rank} has {len(shapes)}"
        for place, (its, other) in enumerate(zip(first, shapes, strict=True)):
            if its != other:
                return (
                    f"tensor {place} is {_shown(its)} on rank 0 and {_shown(other)} on rank {rank}"
                )
    return ""


def _shapes(text: str) -> list[list[int]]:
    if len(text) > MAX_SHAPES:
        raise ValueError(
            f"the shapes of a call's tensors take up to {MAX_SHAPES} characters, not {len(text)}"
        )
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if (number := text.count("[") - 1) > MAX_TENSORS:
            raise ValueError(f"a call has up to {MAX_TENSORS} tensors, not {number}") from None
        raise ValueError(f"these are no shapes of tensors: {error}") from None


def _shown(shape: Sequence[int]) -> str:
    return f"[{'x'.join(map(str, shape)) or 'scalar'}]"
