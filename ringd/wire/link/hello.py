"""The messages of the handshake, and who takes part in it.

Every message is ``magic 4s | version u8 | kind u8 | length u16`` (little-endian) and a body
in MessagePack. These eight bytes stay as they are in all versions.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Annotated, Literal, Union

import msgspec

from ringd.wire.link.agreement import SECRET_SIZE, Protection, Secrets
from ringd.wire.link.bounds import Count, Instance

MAGIC = b"RNGD"
VERSION = 6
"""Of all that follows; 1 had a hello without the instance, up to 3 it had no share, up to 4 tensors
of few ranks travelled in chunks, shorter ones than now, and up to 5 an offer named its floor."""
MAX_MESSAGE = 16 * 1024
"""Bytes of a message's body at most."""
NONCE_SIZE = 32
MAX_TEXT = 400
"""Characters of a refusal that are shown."""
MAX_NAME = 255
MAX_SETTINGS = 1024

PREFIX = struct.Struct("<4sBBH")

Purpose = Literal["link", "knock", "probe"]
"""``"link"``: from the left neighbour, to stay. ``"knock"``: from the right one, to be dialed.
``"probe"``: from the left one, to see whether this address could carry a link."""


class Code(enum.IntEnum):
    """Why a handshake failed."""

    PROTOCOL = 1
    """The other side does not speak this protocol."""
    VERSION = 2
    RING = 3
    """The other side belongs to another ring."""
    ROSTER = 4
    """The two sides list different members."""
    TARGET = 5
    """The dialer wanted to reach somebody else."""
    NEIGHBOUR = 6
    """The dialer is not the neighbour from whom such a connection may come."""
    SETTINGS = 7
    """Settings differ that must be equal on all members."""
    KEY = 8
    """The other side has another key, or none."""
    NAMESAKE = 9
    """Another machine holds the dialer's place in the ring."""


class HandshakeError(Exception):
    """The handshake failed.

    Attributes:
        code: What kind of difference.
        text: What differed, naming both sides and the values of both.
        by_peer: Whether the other side refused; its text is then shown cut and cleaned.
    """

    def __init__(self, code: Code, text: str, *, by_peer: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.by_peer = by_peer


@dataclass(frozen=True, slots=True)
class Identity:
    """What a daemon says about itself in every handshake."""

    ring: str
    members: tuple[str, ...]
    """The roster, in ring order."""
    rank: int
    """This member's position in the roster."""
    incarnation: int
    settings: str = ""
    """Those that must be equal everywhere, readable, such as ``"chunk=524288"``; but *protect*."""
    instance: int = 0
    """A random number of this process; it tells it from another one under the same name."""
    protect: Protection = "off"
    """What is done to the frames of a link."""
    fast_aes: bool = True
    """Whether AES is the faster cipher here."""

    @property
    def shared(self) -> str:
        """All settings that must be equal everywhere."""
        return f"{self.settings} protect={self.protect}".lstrip()

    @property
    def name(self) -> str:
        """This member's name."""
        return self.members[self.rank]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who proved to be at the other end."""

    name: str
    rank: int
    incarnation: int
    purpose: Purpose
    instance: int = 0
    """As in :class:`Identity`; 0 if not known."""
    secrets: Secrets | None = field(default=None, repr=False, compare=False)
    """What seals the frames of a link; None where they are not sealed."""


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1
    PROOF = 2
    ACCEPT = 3
    REFUSE = 4


_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who speaks, to whom, and everything that must be equal."""

    ring: _Name
    members: tuple[_Name, ...]
    name: _Name
    target: _Name
    purpose: Purpose
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]
    incarnation: Count
    settings: Annotated[str, msgspec.Meta(max_length=MAX_SETTINGS)]
    instance: Instance
    share: Annotated[bytes, msgspec.Meta(max_length=SECRET_SIZE)]
    """The public half of an X25519 key, new in each hello; empty where nothing is sealed."""
    fast_aes: bool


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Shows that the sender has the key."""

    mac: bytes


class Accept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Welcome."""


class Refuse(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Why not."""

    code: Code
    text: str


Message = Union[Hello, Proof, Accept, Refuse]
BODIES: dict[int, type[Message]] = {
    Kind.HELLO: Hello,
    Kind.PROOF: Proof,
    Kind.ACCEPT: Accept,
    Kind.REFUSE: Refuse,
}


def roster_difference(us: str, ours: tuple[str, ...], them: str, theirs: tuple[str, ...]) -> str:
    """Return in words where two rosters differ."""
    if len(ours) != len(theirs):
        counts = f"{us} lists {len(ours)} members, {them} lists {len(theirs)}"
    else:
        counts = f"both list {len(ours)} members"
    for position, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return (
                f"the rosters differ at position {position}: {us} has {our!r}, {them} has {their!r}"
            )
    return f"the rosters differ: {counts}"
