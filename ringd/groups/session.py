"""The session of a group: whose calls belong together, by agreement of all its programs.

A *session* is agreed on when every program that is to take part is there: it is the tuple of
their join ids, and its number (``gid``) is a hash of that, so all members name it alike without
asking anybody. Ops are numbered from 0 within it.

Ranks count the members in the ring's order, and on each member its programs by their local rank,
unless the programs name an order of their own.

A member goes *live* once every other one has said that it is in the session too, and offers
nothing before. So a session that not all agree on can be forgotten without a trace.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Optional

from ringd.collective.call import MAX_LOCAL_SIZE, title_of
from ringd.collective.view import View
from ringd.groups.mail import Mail
from ringd.wire.link.control import GroupMessage, Joined

MAX_JOIN_ID = 2**64 - 1

_REMEMBERED_SESSIONS = 64
"""News is late by a trip round the ring, not by that many joins of other members."""


def session_number(group: str, join_ids: tuple[int, ...]) -> int:
    """Return the u64 under which all members know the session of these clients."""
    digest = blake2b(group.encode(), digest_size=8)
    for join_id in join_ids:
        digest.update(join_id.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def channel_number(gid: int, source: int, to: int, tag: int) -> int:
    """Return the u64 under which two ranks of session *gid* know a channel between them."""
    digest = blake2b(b"channel", digest_size=8)
    for number in (gid, source, to, tag):
        digest.update(number.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


class Peers(NamedTuple):
    """Who is in a session, by rank; falsy before it has formed."""

    join_ids: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    """The members of the ring on which they are."""

    def __bool__(self) -> bool:
        return bool(self.join_ids)

    def rank_of(self, join_id: int, place: int) -> int | None:
        """Return the rank of a client, and None if it is not in the session."""
        for rank, known in enumerate(self.join_ids):
            if known == join_id and self.places[rank] == place:
                return rank
        return None

    def on(self, place: int) -> list[int]:
        """Return the ranks on a member, by their local rank."""
        return [rank for rank, other in enumerate(self.places) if other == place]


NOBODY = Peers()


def peers(join_ids: tuple[int, ...], places: tuple[int, ...], ring_size: int) -> Optional[Peers]:
    """Return the peers that a message names, :data:`NOBODY` for none; None if they cannot be."""
    if not join_ids and not places:
        return NOBODY
    places = places or tuple(range(ring_size))
    if len(join_ids) != len(places) or len(set(join_ids)) != len(join_ids):
        return None
    fit = all(0 < join_id <= MAX_JOIN_ID for join_id in join_ids)
    return Peers(join_ids, places) if fit and all(0 <= p < ring_size for p in places) else None


class Part(NamedTuple):
    """What a program says of its part in a group."""

    local_rank: int = 0
    """Which one of its member's programs it is."""
    local_size: int = 1
    """How many there are."""
    members: tuple[int, ...] = ()
    """Those that take part, in the ring's order; empty for all. If *ordered*, by rank, as often as
    each has programs."""
    ordered: bool = False

    def sound(self, ring_size: int) -> bool:
        """Whether there can be such a part in a ring of that size."""
        most = ring_size * (MAX_LOCAL_SIZE if self.ordered else 1)
        return (
            0 <= self.local_rank < self.local_size <= MAX_LOCAL_SIZE
            and len(self.members) <= most
            and all(0 <= member < ring_size for member in self.members)
        )

    @property
    def takes(self) -> tuple[tuple[int, ...], bool]:
        """What all programs of the group must agree on."""
        return self.members, self.ordered

    @classmethod
    def of(cls, message: Joined) -> Part:
        """Return what *message* says."""
        return cls(message.local_rank, message.local_size, message.members, message.ordered)


Place = tuple[int, int]
"""Of a program: (member, local rank)."""


def expected(part: Part, present: Mapping[Place, Joined], ring_size: int) -> list[Place]:
    """Return by rank who takes part in a group, as far as its programs that are *present* tell.

    A member of which none has come counts as having one.
    """
    if part.ordered:
        counts = Counter[int]()
        places = []
        for member in part.members:
            places.append((member, counts[member]))
            counts[member] += 1
        return places
    sizes = {place[0]: there.local_size for place, there in present.items()}
    members = part.members or range(ring_size)
    return [(member, local) for member in members for local in range(sizes.get(member, 1))]


@dataclass(slots=True, eq=False)
class Session:
    """Who has agreed on the session that a client is in.

    Invariant: it is live only while every rank has confirmed it in this generation.
    """

    group: str
    join_id: int
    """Of the client here."""
    part: Part
    mail: Mail
    channel: tuple[int, int, int] | None = None
    """Of messages: the sender's rank, the receiver's, and the tag."""
    gid: int = 0
    """0 until the members are known."""
    formed: bool = False
    """Whether they are."""
    peers: Peers = NOBODY
    view: View = field(init=False)
    """Of the client alone, until its peers are known."""
    counts: list[int] = field(default_factory=list)
    """By rank, how many ops it is known to have offered."""
    live: bool = False
    """Whether all ranks have confirmed it in this generation."""
    _confirmed: set[int] = field(default_factory=set)
    _given_up: deque[Peers] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_SESSIONS))
    """Those that a member left before they went live; late news of them may come yet."""

    def __post_init__(self) -> None:
        self._be_alone()

    def _be_alone(self) -> None:
        ring = self.mail.ring
        self.gid, self.formed, self.peers = 0, False, NOBODY
        self.view = View((ring.name,), 0, (ring.rank,), ring.size)
        self.counts = [0]

    def may_be(self, peers: Peers) -> bool:
        """Whether these can be the members: we are one, and none is known to have left."""
        ours = peers.rank_of(self.join_id, self.mail.ring.rank)
        return ours is not None and peers not in self._given_up

    def form(self, peers: Peers) -> None:
        """Take *peers* as the members; nobody else is known to have done so yet."""
        ring = self.mail.ring
        rank = peers.rank_of(self.join_id, ring.rank)
        assert rank is not None  # noqa: S101 - as may_be says
        names = tuple(ring.names[place] for place in peers.places)
        view = View(names, rank, peers.places, ring.size)
        self.take(session_number(self.group, peers.join_ids), peers, view)

    def take(self, gid: int, peers: Peers, view: View) -> None:
        """Be session *gid*, of *peers* in *view*."""
        self.gid, self.formed, self.peers, self.view = gid, True, peers, view
        self.counts = [0] * view.size
        self.suspend()

    def give_up(self) -> None:
        """Forget the members: they never agreed on this session."""
        self._given_up.append(self.peers)
        self._be_alone()
        self.suspend()

    def suspend(self) -> None:
        """The ring broke, or has yet to form: nobody else is known to be in the session."""
        self._confirmed = {self.view.rank} if self.formed else set()
        self._look_if_live()

    def confirm(self, rank: int) -> bool:
        """*rank* is in the session in this generation too; return whether that made it live."""
        news = rank not in self._confirmed
        self._confirmed.add(rank)
        self._look_if_live()
        return news and self.live

    def _look_if_live(self) -> None:
        self.live = self.formed and len(self._confirmed) == self.view.size

    def unconfirmed(self) -> list[str]:
        """Return who has not confirmed it."""
        view = self.view
        return [view.describe(rank) for rank in range(view.size) if rank not in self._confirmed]

    def title(self, seq: int) -> str:
        """Return what texts call op *seq*."""
        return title_of(self.group, seq, self.channel)

    @property
    def joined(self) -> Joined:
        """What the others are told of the client."""
        local_rank, local_size, members, ordered = self.part
        join_ids, places = self.peers
        return Joined(
            self.group, self.join_id, join_ids, places, local_rank, local_size, members, ordered
        )

    def introduce(self) -> None:
        """Tell the others that the client is in the group, and in which session."""
        self.mail.announce(self.joined, 0, beside=self.part.local_size > 1)

    def broadcast(self, seq: int, message: GroupMessage, payload: bytes | memoryview = b"") -> None:
        """Send *message* to all other ranks."""
        self.mail.broadcast(self.view, self.gid, seq, message, payload)
