"""What a split makes of a group: what each rank says, and which part that makes of whom.

All ranks hear the same, and so find the same parts under the same names, without another word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Optional, Union

import msgspec

from ringd import errors
from ringd.client.group import Place, Wish
from ringd.client.session import Op
from ringd.wire.border.messages import DecodeError

Color = Union[int, str, None]


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """What a rank says in a split."""

    color: Color
    """Those of equal ones make a part; None takes part in none."""
    key: int = 0
    """They are ordered by it, and where it is equal by their ranks."""

    def pack(self) -> bytes:
        """Return it as bytes."""
        return msgspec.msgpack.encode(self)


def choices(said: Sequence[bytes]) -> list[Choice]:
    """Return what all ranks said.

    Raises:
        RingError: one of them says what is no choice.
    """
    try:
        return [msgspec.msgpack.decode(data, type=Choice) for data in said]
    except DecodeError as error:
        raise errors.RingError(f"a rank sent what is no color and key: {error}") from error


def part_of(
    everyone: Sequence[Choice], place: Place, wish: Wish, work: Op, names: Sequence[str]
) -> Optional[tuple[Wish, Place]]:
    """Return the part in which a rank is, as what it is to ask for, and its place there.

    None if it is in no part.

    Args:
        everyone: what all ranks chose.
        place: of the rank in the group that is split.
        wish: of that group.
        work: the call by which all were told.
        names: of the ring's members.
    """
    mine = everyone[place.rank]
    if mine.color is None:
        return None
    alike = [rank for rank, choice in enumerate(everyone) if choice.color == mine.color]
    ranks = sorted(alike, key=lambda rank: (everyone[rank].key, rank))
    machines = tuple(place.machines[rank] for rank in ranks)
    own = ranks.index(place.rank)
    here = machines[own]
    root = wish.root or wish.name
    part = Wish(
        name=f"{root}/{mine.color}-{_digest(work, mine)}",
        on_loss=wish.on_loss,
        local_rank=Counter(machines[:own])[here],
        local_size=Counter(machines)[here],
        members=tuple(names[machine] for machine in machines),
        ordered=True,
        root=root,
    )
    return part, Place(own, machines)


def _digest(work: Op, choice: Choice) -> str:
    """Return what tells this part from all others, of this split and of any other."""
    digest = blake2b(digest_size=8)
    for number in (*work.session.members, work.seq):
        digest.update(number.to_bytes(8, "little"))
    digest.update(msgspec.msgpack.encode(choice.color))
    return digest.hexdigest()
