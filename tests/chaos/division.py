"""How a ring is split, and what its parts call: a function of the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from chaos.calls import Call, Style, compose
from chaos.layout import Layout
from chaos.messages import Message, shift
from chaos.which import PART, Which

LARGEST = 256 << 10
"""Bytes; the whole has larger calls."""

DUE = 6.0
"""Seconds that a part's call may take: one waits for a program that was told of a loss, or has
died, before it joined."""


@dataclass(frozen=True, slots=True)
class Division:
    """A split in the place of call *number*.

    Attributes:
        colors, keys: by rank; of a color None is in no part.
    """

    number: int
    colors: tuple[int | str | None, ...]
    keys: tuple[int, ...]

    def part(self, rank: int) -> tuple[int, ...]:
        """Return who is in the part of *rank*, in the order that they have there."""
        color = self.colors[rank]
        alike = [other for other, its in enumerate(self.colors) if its == color is not None]
        return tuple(sorted(alike, key=lambda other: (self.keys[other], other)))


def division(key: str, style: Style, number: int, size: int) -> Division | None:
    """Return the split in the place of call *number* of *size* ranks; None for none."""
    rng = Random(f"{key}/{number}/division")
    if rng.random() >= style.splits:
        return None
    colors = tuple(rng.choice([0, 0, 0, "other", None]) for _ in range(size))
    return Division(number, colors, tuple(rng.randrange(-1, 2) for _ in range(size)))


def calls(
    key: str, style: Style, number: int, ranks: tuple[int, ...], whole: Layout
) -> list[Call | tuple[Message, ...]]:
    """Return what the part of *ranks* calls; a shift of messages is one call."""
    rng = Random(f"{key}/{number}/{ranks}")
    layout = Layout(tuple(whole.places[rank] for rank in ranks))
    calm = replace(style, largest=min(style.largest, LARGEST))
    found: list[Call | tuple[Message, ...]] = []
    for index in range(1, rng.randint(2, 4)):
        which = Which(number, PART, ranks, index)
        if len(ranks) > 1 and rng.random() < style.messages:
            found.append(shift(key, calm, which, DUE))
        else:
            call = compose(key, which, calm, layout)
            found.append(replace(call, timeout=call.timeout or DUE))
    return found
