"""What tells the calls of a group apart, as the programs say it and the ledger hears it."""

from __future__ import annotations

from typing import NamedTuple

MESSAGE = "message"
"""The kind of what one rank sends another one."""

PART = "part"
"""The kind of a call of a part."""


class Which(NamedTuple):
    """One call: ``17``, of all ranks, or ``17/message/0,2``, of some of them."""

    number: int
    """In the group, from 0; not the number of the op, which starts anew with a session."""
    kind: str = ""
    """Empty for a call of the whole group."""
    ranks: tuple[int, ...] = ()
    """Those that take part: of a message, its sender and its receiver; empty for all."""
    index: int = 0
    """From 1: of those that are made in parts of the group; 0 in the whole."""

    def __str__(self) -> str:
        if not self.kind:
            return str(self.number)
        ranks = ",".join(map(str, self.ranks))
        return f"{self.number}/{self.kind}/{ranks}" + f"/{self.index}" * bool(self.index)

    @property
    def in_part(self) -> bool:
        """Whether it was made in a part, or is about one."""
        return self.kind == PART or self.index > 0

    @classmethod
    def read(cls, text: str) -> Which:
        """Return what *text* says."""
        number, *rest = text.split("/")
        if not rest:
            return cls(int(number))
        kind, ranks, *index = rest
        return cls(int(number), kind, tuple(map(int, ranks.split(","))), int(*index))


AGREEING = Which(-1)
"""A call by which the programs agree on something."""
