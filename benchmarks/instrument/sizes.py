"""Sizes of tensors, as people write them. Pure."""

from __future__ import annotations

from ringd.config.units import parse_size


def human(nbytes: int) -> str:
    """Return *nbytes* in the largest unit that leaves a whole number."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << power and nbytes % (1 << power) == 0:
            return f"{nbytes >> power} {unit}"
    return f"{nbytes} B"


def sizes_of(text: str) -> list[int]:
    """Return the bytes in a list such as ``"4B,1MiB"``.

    Raises:
        ValueError: One of them is no size, or not a number of float32 elements.
    """
    found = [parse_size(part) for part in text.split(",")]
    if any(nbytes % 4 or not nbytes for nbytes in found):
        raise ValueError(f"{text}: tensor sizes are multiples of 4 B")
    return found
