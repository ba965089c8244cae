"""Mutual authentication of two neighbours, before anything else is believed.

Sans-IO: bytes in, bytes out; the nonces are passed in. The order of play::

    dialer                                   acceptor
    HELLO (who, whom, ring, nonce)    ->     compare with own values
    compare with own values           <-     HELLO, PROOF
    PROOF                             ->     verify
                                      <-     ACCEPT

A proof is an HMAC-SHA256 under the ring's key over a label of its role and both hellos, so
it binds all that both sides have said, and one side's proof is never the other's. Whoever
finds a difference says so in a REFUSE, in words that read the same on both sides.

Every message is ``magic 4s | version u8 | kind u8 | length u16`` (little-endian) and a body
in MessagePack. These eight bytes stay as they are in all versions.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn

import msgspec

from ringd.wire.text import printable

MAGIC = b"RNGD"
VERSION = 1
MAX_MESSAGE = 16 * 1024
"""Bytes of a message's body at most."""
NONCE_SIZE = 32
MAX_TEXT = 400
"""Characters of a refusal that are shown."""
MAX_NAME = 255
MAX_SETTINGS = 1024

_PREFIX = struct.Struct("<4sBBH")

Purpose = Literal["link", "knock"]
"""``"link"``: from the left neighbour, to stay. ``"knock"``: from the right one, to be dialed."""


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
    BUSY = 9
    DRAINING = 10


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
    """The settings that must be equal everywhere, readable, such as ``"chunk=262144"``."""
    boot: bytes = b""
    """Random bytes of this run of the daemon, at most 64."""

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
    boot: bytes


class _Kind(enum.IntEnum):
    HELLO = 1
    PROOF = 2
    ACCEPT = 3
    REFUSE = 4


_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class _Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    ring: _Name
    members: tuple[_Name, ...]
    name: _Name
    target: _Name
    purpose: Purpose
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]
    incarnation: Annotated[int, msgspec.Meta(ge=0)]
    boot: Annotated[bytes, msgspec.Meta(max_length=64)]
    settings: Annotated[str, msgspec.Meta(max_length=MAX_SETTINGS)]


class _Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    mac: bytes


class _Accept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class _Refuse(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    code: Code
    text: str


_Message = _Hello | _Proof | _Accept | _Refuse
_BODIES: dict[int, type[_Message]] = {
    _Kind.HELLO: _Hello,
    _Kind.PROOF: _Proof,
    _Kind.ACCEPT: _Accept,
    _Kind.REFUSE: _Refuse,
}


class _Role(enum.Enum):
    DIALER = b"ringd dialer"
    ACCEPTOR = b"ringd acceptor"


class _State(enum.Enum):
    AWAIT_HELLO = "a hello"
    AWAIT_PROOF = "a proof"
    AWAIT_ACCEPT = "an accept"
    DONE = "nothing"
    FAILED = "nothing more"


# What each side may receive in each state, and the state that follows. A REFUSE may come
# in any state but the last two; whatever else comes is an error of the other side.
_TABLE: dict[tuple[_Role, _State], tuple[_Kind, _State]] = {
    (_Role.DIALER, _State.AWAIT_HELLO): (_Kind.HELLO, _State.AWAIT_PROOF),
    (_Role.DIALER, _State.AWAIT_PROOF): (_Kind.PROOF, _State.AWAIT_ACCEPT),
    (_Role.DIALER, _State.AWAIT_ACCEPT): (_Kind.ACCEPT, _State.DONE),
    (_Role.ACCEPTOR, _State.AWAIT_HELLO): (_Kind.HELLO, _State.AWAIT_PROOF),
    (_Role.ACCEPTOR, _State.AWAIT_PROOF): (_Kind.PROOF, _State.DONE),
}


class _Handshake:
    """What both roles share: the buffer, the table, the checks, the proofs."""

    def __init__(self, role: _Role, identity: Identity, key: bytes, nonce: bytes) -> None:
        self._role = role
        self._identity = identity
        self._key = key
        self._nonce = nonce
        self._state = _State.AWAIT_HELLO
        self._in = bytearray()
        self._out = bytearray()
        self._transcript: list[bytes] = []
        self._hello: _Hello | None = None
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer | None:
        """The authenticated other side; None until the handshake has succeeded."""
        return self._peer

    @property
    def leftover(self) -> bytes:
        """Bytes that came behind the handshake, once it has succeeded."""
        return bytes(self._in) if self._peer else b""

    def outgoing(self) -> bytes:
        """Return and forget the bytes to be sent; a refusal is among them after an error."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def receive(self, data: bytes) -> None:
        """Take bytes of the other side, however they are cut.

        Raises:
            HandshakeError: The handshake is over and has failed; send what is
                :meth:`outgoing`, then close.
        """
        if self._state is _State.FAILED:
            raise RuntimeError("the handshake has failed already")
        self._in += data
        while self._state is not _State.DONE:
            message = self._next_message()
            if message is None:
                return
            self._take(*message)

    def _take(self, kind: _Kind, body: bytes) -> None:
        message = self._decode(kind, body)
        if isinstance(message, _Refuse):
            self._state = _State.FAILED
            text = printable(message.text, MAX_TEXT)
            raise HandshakeError(message.code, text, by_peer=True)
        expected, then = _TABLE[self._role, self._state]
        if kind is not expected:
            self._refuse(
                Code.PROTOCOL, f"a message of kind {kind.name} came in place of {self._state.value}"
            )
        if isinstance(message, _Hello):
            self._compare(message)
            self._hello = message
            self._transcript.append(body)
            self._greeted(message)
        elif isinstance(message, _Proof):
            self._verify(message)
            self._proven()
        self._state = then
        if then is _State.DONE:
            self._succeed()

    def _greeted(self, hello: _Hello) -> None:
        """Go on after a hello that agrees with ours."""

    def _proven(self) -> None:
        """Go on after a right proof."""

    def _check_purpose(self, hello: _Hello) -> None:
        """Refuse a hello whose target or purpose does not fit."""
        raise NotImplementedError

    # --- messages ---------------------------------------------------------------------

    def _next_message(self) -> tuple[_Kind, bytes] | None:
        """Cut the next whole message from the buffer."""
        # Judged from the first byte on: a stranger need not be given a prefix's worth.
        if not MAGIC.startswith(self._in[: len(MAGIC)]):
            self._state = _State.FAILED  # whoever it is would not understand a refusal
            raise HandshakeError(Code.PROTOCOL, "the other side does not speak ringd's protocol")
        if len(self._in) < _PREFIX.size:
            return None
        _, version, number, length = _PREFIX.unpack_from(self._in)
        if version != VERSION:
            self._refuse(
                Code.VERSION,
                f"{self._identity.name!r} speaks version {VERSION} of the handshake, "
                f"the other side version {version}",
            )
        if number not in _BODIES:
            self._refuse(Code.PROTOCOL, f"unknown kind of message: {number}")
        if length > MAX_MESSAGE:
            self._refuse(Code.PROTOCOL, f"a message of {length} bytes: {MAX_MESSAGE} are allowed")
        end = _PREFIX.size + length
        if len(self._in) < end:
            return None
        body = bytes(self._in[_PREFIX.size : end])
        del self._in[:end]
        return _Kind(number), body

    def _decode(self, kind: _Kind, body: bytes) -> _Message:
        try:
            return msgspec.msgpack.decode(body, type=_BODIES[kind])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._refuse(Code.PROTOCOL, f"a {kind.name} that cannot be read: {error}")

    def _send(self, kind: _Kind, message: _Message) -> bytes:
        body = msgspec.msgpack.encode(message)
        if len(body) > MAX_MESSAGE:
            raise ValueError(f"a {kind.name} of {len(body)} bytes: {MAX_MESSAGE} are allowed")
        self._out += _PREFIX.pack(MAGIC, VERSION, kind, len(body)) + body
        return body

    def _send_hello(self, target: str, purpose: Purpose) -> None:
        own = self._identity
        hello = _Hello(
            own.ring,
            own.members,
            own.name,
            target,
            purpose,
            self._nonce,
            own.incarnation,
            own.boot,
            own.settings,
        )
        self._transcript.append(self._send(_Kind.HELLO, hello))

    def _refuse(self, code: Code, text: str) -> NoReturn:
        text = printable(text, MAX_TEXT)
        self._state = _State.FAILED
        self._send(_Kind.REFUSE, _Refuse(code, text))
        raise HandshakeError(code, text)

    # --- belief -----------------------------------------------------------------------

    def _compare(self, theirs: _Hello) -> None:
        """Refuse a hello that differs from ours in what must be equal."""
        own = self._identity
        us, them = repr(own.name), repr(theirs.name)
        if theirs.ring != own.ring:
            self._refuse(
                Code.RING,
                f"{us} belongs to ring {own.ring!r}, {them} to ring {theirs.ring!r}",
            )
        if theirs.members != own.members:
            self._refuse(Code.ROSTER, _roster_difference(us, own.members, them, theirs.members))
        if theirs.name not in own.members:
            self._refuse(Code.PROTOCOL, f"{them} is not in its own roster")
        if theirs.settings != own.settings:
            self._refuse(
                Code.SETTINGS,
                f"settings differ that must be equal: {us} has {own.settings!r}, "
                f"{them} has {theirs.settings!r}",
            )
        self._check_purpose(theirs)

    def _mac(self, role: _Role) -> bytes:
        mac = hmac.new(self._key, role.value, hashlib.sha256)
        mac.update(bytes([VERSION]))
        for part in self._transcript:  # both hellos, the dialer's first
            mac.update(len(part).to_bytes(4, "little"))
            mac.update(part)
        return mac.digest()

    def _verify(self, proof: _Proof) -> None:
        other = _Role.ACCEPTOR if self._role is _Role.DIALER else _Role.DIALER
        if not hmac.compare_digest(proof.mac, self._mac(other)):
            them = self._hello.name if self._hello else ""
            self._refuse(
                Code.KEY,
                f"{self._identity.name!r} and {them!r} have different keys: "
                "give every member the same key file",
            )

    def _prove(self) -> None:
        self._send(_Kind.PROOF, _Proof(self._mac(self._role)))

    def _succeed(self) -> None:
        hello = self._hello
        assert hello is not None  # noqa: S101 - the table: no DONE without a HELLO
        self._peer = Peer(
            hello.name,
            self._identity.members.index(hello.name),
            hello.incarnation,
            hello.purpose,
            hello.boot,
        )


class Dialing(_Handshake):
    """The dialer's side.

    Args:
        identity: What we say about ourselves.
        key: The ring's key; empty when the ring has none.
        target: Name of the member to be reached.
        nonce: 32 random bytes, never used before.
        purpose: To stay as a link, or only to knock.
    """

    def __init__(
        self,
        identity: Identity,
        key: bytes,
        target: str,
        nonce: bytes,
        purpose: Purpose = "link",
    ) -> None:
        super().__init__(_Role.DIALER, identity, key, nonce)
        self._target = target
        self._purpose = purpose
        self._send_hello(target, purpose)

    def _check_purpose(self, hello: _Hello) -> None:
        if hello.name != self._target:
            self._refuse(
                Code.TARGET,
                f"{self._identity.name!r} wanted {self._target!r} and reached {hello.name!r}",
            )
        if (hello.target, hello.purpose) != (self._identity.name, self._purpose):
            self._refuse(Code.PROTOCOL, f"{hello.name!r} answers somebody else's hello")

    def _proven(self) -> None:
        self._prove()


class Accepting(_Handshake):
    """The acceptor's side.

    Args:
        identity: What we say about ourselves.
        key: The ring's key; empty when the ring has none.
        nonce: 32 random bytes, never used before.
        refusal: When given, whoever has proved to be a neighbour is refused with this code
            and text.
    """

    def __init__(
        self,
        identity: Identity,
        key: bytes,
        nonce: bytes,
        refusal: tuple[Code, str] | None = None,
    ) -> None:
        super().__init__(_Role.ACCEPTOR, identity, key, nonce)
        self._refusal = refusal

    def _check_purpose(self, hello: _Hello) -> None:
        own = self._identity
        if hello.target != own.name:
            self._refuse(
                Code.TARGET, f"{hello.name!r} wanted {hello.target!r} and reached {own.name!r}"
            )
        side, step = ("left", -1) if hello.purpose == "link" else ("right", 1)
        neighbour = own.members[(own.rank + step) % len(own.members)]
        if hello.name != neighbour or neighbour == own.name:
            self._refuse(
                Code.NEIGHBOUR,
                f"a {hello.purpose} to {own.name!r} must come from its {side} neighbour "
                f"{neighbour!r}, not from {hello.name!r}",
            )

    def _greeted(self, hello: _Hello) -> None:
        self._send_hello(hello.name, hello.purpose)
        self._prove()

    def _proven(self) -> None:
        if self._refusal is not None:
            self._refuse(*self._refusal)
        self._send(_Kind.ACCEPT, _Accept())


def _roster_difference(us: str, ours: tuple[str, ...], them: str, theirs: tuple[str, ...]) -> str:
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
