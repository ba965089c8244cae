"""Where the ranks of a process group are, and where those of its parts are to be in the ring.

Pure: what all ranks know, so that all come to the same without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_SHOWN = (32, 8)
"""Characters of a group's name, and of torch's for a part of it, that stand in the part's name."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a program was told of its place; None for what it was not."""

    rank: int | None = None
    size: int | None = None


def ranks_of(claims: Sequence[Claim], nodes: Sequence[str]) -> list[int]:
    """Return the ranks of programs that are on *nodes*, and make these *claims*.

    Raises:
        ValueError: they do not fit together; says which ones.
    """
    said = [f"{node}: {claim.rank}" for node, claim in zip(nodes, claims, strict=True)]
    for node, claim in zip(nodes, claims, strict=True):
        if claim.size is not None and claim.size != len(nodes):
            raise ValueError(
                f"world_size is {claim.size} on {node}, but there are {len(nodes)} programs, on "
                f"{', '.join(nodes)}; name other machines with ringd://GROUP?members=NAME,NAME, or "
                "more programs on each with LOCAL_RANK and LOCAL_WORLD_SIZE"
            )
    given = [claim.rank for claim in claims if claim.rank is not None]
    if not given:
        return list(range(len(nodes)))
    if sorted(given) != list(range(len(nodes))):
        raise ValueError(
            f"the programs' ranks are not 0 to {len(nodes) - 1}, each once: {', '.join(said)} "
            "(None: it was told no rank)"
        )
    return given


def check_size(claim: Claim, members: Sequence[str], local_size: int) -> None:
    """Object to a size that is too small, before the others are waited for.

    Args:
        claim: of a program.
        members: the machines that take part.
        local_size: how many programs there are on its own; on each other one is one at least.

    Raises:
        ValueError: it is.
    """
    least = len(members) - 1 + local_size
    if claim.size is not None and claim.size < least:
        raise ValueError(
            f"world_size is {claim.size}, but there are {least} programs at least, on "
            f"{', '.join(members)}; name the machines that take part with "
            "ringd://GROUP?members=NAME,NAME"
        )


@dataclass(frozen=True, slots=True)
class Seats:
    """The ranks of a process group, from one of them."""

    group: str
    """The name of the ring's group, without which there would be no other."""
    rank: int
    """This one."""
    nodes: tuple[str, ...]
    """By rank, the member of the ring on which it is."""
    members: tuple[str, ...]
    """All of these members, in the order of the ring."""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.nodes)

    @property
    def local_rank(self) -> int:
        """Which of its machine's ranks this one is."""
        return self.nodes[: self.rank].count(self.nodes[self.rank])

    @property
    def local_size(self) -> int:
        """How many ranks its machine has."""
        return self.nodes.count(self.nodes[self.rank])

    @property
    def in_ring_order(self) -> bool:
        """Whether the ranks count the members in the order of the ring, as ringd's own do."""
        places = [self.members.index(node) for node in self.nodes]
        return places == sorted(places)

    def part(self, name: str, ranks: Sequence[int], times: int) -> Seats:
        """Return the seats of a part, which torch calls *name*, of these *ranks* with this one.

        Parts without a rank in common may have the same name, and so may one that follows upon
        another: *times* says how many of that name these ranks have made. A rank that has yet to
        leave the former one must not be met in the next.
        """
        nodes = tuple(self.nodes[rank] for rank in ranks)
        members = tuple(member for member in self.members if member in nodes)
        digest = blake2b(
            f"{self.group} {name} {list(ranks)} {times}".encode(), digest_size=6
        ).hexdigest()
        group = f"{self.group[: _SHOWN[0]]}/{name[: _SHOWN[1]]}-{digest}"
        return Seats(group, ranks.index(self.rank), nodes, members)
