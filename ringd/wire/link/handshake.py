"""Mutual authentication of two neighbours, before anything else is believed.

Sans-IO: bytes in, bytes out; what is random is passed in. The order of play::

    dialer                                   acceptor
    HELLO (who, whom, ring, nonce,    ->     compare with own values
        share)
    compare with own values           <-     HELLO, PROOF
    PROOF                             ->     verify
    (the acceptor's owner judges)     <-     ACCEPT

A proof is an HMAC-SHA256 under the ring's key over a label of its role and both hellos, so
it binds all that both sides have said, and one side's proof is never the other's. Whoever
finds a difference says so in a REFUSE, in words that read the same on both sides.

What seals the frames that follow is agreed on under the same proofs
(:mod:`ringd.wire.link.agreement`).

The messages, and who takes part, are in :mod:`ringd.wire.link.hello`.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import NoReturn

import msgspec

from ringd.wire.link.agreement import Secrets, Share
from ringd.wire.link.hello import (
    BODIES,
    MAGIC,
    MAX_MESSAGE,
    MAX_TEXT,
    NONCE_SIZE,
    PREFIX,
    VERSION,
    Accept,
    Code,
    HandshakeError,
    Hello,
    Identity,
    Kind,
    Message,
    Peer,
    Proof,
    Purpose,
    Refuse,
    roster_difference,
)
from ringd.wire.text import printable

__all__ = [
    "NONCE_SIZE",
    "Accepting",
    "Code",
    "Dialing",
    "HandshakeError",
    "Identity",
    "Peer",
    "Purpose",
]


class _Role(enum.Enum):
    DIALER = b"ringd dialer"
    ACCEPTOR = b"ringd acceptor"


class _State(enum.Enum):
    AWAIT_HELLO = "a hello"
    AWAIT_PROOF = "a proof"
    AWAIT_ACCEPT = "an accept"
    JUDGED = "nothing before the accept"
    DONE = "nothing"
    FAILED = "nothing more"


# What each side may receive in each state, and the state that follows. A REFUSE may come
# in any state but JUDGED, DONE and FAILED; whatever else comes is an error of the other
# side. An acceptor leaves JUDGED by a call of its owner.
_TABLE: dict[tuple[_Role, _State], tuple[Kind, _State]] = {
    (_Role.DIALER, _State.AWAIT_HELLO): (Kind.HELLO, _State.AWAIT_PROOF),
    (_Role.DIALER, _State.AWAIT_PROOF): (Kind.PROOF, _State.AWAIT_ACCEPT),
    (_Role.DIALER, _State.AWAIT_ACCEPT): (Kind.ACCEPT, _State.DONE),
    (_Role.ACCEPTOR, _State.AWAIT_HELLO): (Kind.HELLO, _State.AWAIT_PROOF),
    (_Role.ACCEPTOR, _State.AWAIT_PROOF): (Kind.PROOF, _State.JUDGED),
}


class _Handshake:
    """What both roles share: the buffer, the table, the checks, the proofs."""

    def __init__(
        self, role: _Role, identity: Identity, key: bytes, nonce: bytes, private: bytes
    ) -> None:
        self._role = role
        self._identity = identity
        self._key = key
        self._nonce = nonce
        self._private = private
        self._share: Share | None = None
        self._secrets: Secrets | None = None
        self._state = _State.AWAIT_HELLO
        self._in = bytearray()
        self._out = bytearray()
        self._transcript: list[bytes] = []
        self._hello: Hello | None = None
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
        if self._state is _State.JUDGED and len(self._in) > MAX_MESSAGE:
            self._refuse(Code.PROTOCOL, f"{len(self._in)} bytes came before the accept")
        while self._state not in (_State.JUDGED, _State.DONE):
            message = self._next_message()
            if message is None:
                return
            self._take(*message)

    def _take(self, kind: Kind, body: bytes) -> None:
        message = self._decode(kind, body)
        if isinstance(message, Refuse):
            self._state = _State.FAILED
            text = printable(message.text, MAX_TEXT)
            raise HandshakeError(message.code, text, by_peer=True)
        expected, then = _TABLE[self._role, self._state]
        if kind is not expected:
            self._refuse(
                Code.PROTOCOL, f"a message of kind {kind.name} came in place of {self._state.value}"
            )
        if isinstance(message, Hello):
            self._compare(message)
            self._hello = message
            self._transcript.append(body)
            self._greeted(message)
        elif isinstance(message, Proof):
            self._verify(message)
            self._agree()
            self._proven()
        self._state = then
        if then is _State.DONE:
            self._peer = self._described()

    def _greeted(self, hello: Hello) -> None:
        """Go on after a hello that agrees with ours."""

    def _proven(self) -> None:
        """Go on after a right proof."""

    def _check_purpose(self, hello: Hello) -> None:
        """Refuse a hello whose target or purpose does not fit."""
        raise NotImplementedError

    # --- messages ---------------------------------------------------------------------

    def _next_message(self) -> tuple[Kind, bytes] | None:
        """Cut the next whole message from the buffer."""
        # Judged from the first byte on: a stranger need not be given a prefix's worth.
        if not MAGIC.startswith(self._in[: len(MAGIC)]):
            self._state = _State.FAILED  # whoever it is would not understand a refusal
            raise HandshakeError(Code.PROTOCOL, "the other side does not speak ringd's protocol")
        if len(self._in) < PREFIX.size:
            return None
        _, version, number, length = PREFIX.unpack_from(self._in)
        if version != VERSION:
            self._refuse(
                Code.VERSION,
                f"{self._identity.name!r} speaks version {VERSION} of the handshake, "
                f"the other side version {version}",
            )
        if number not in BODIES:
            self._refuse(Code.PROTOCOL, f"unknown kind of message: {number}")
        if length > MAX_MESSAGE:
            self._refuse(Code.PROTOCOL, f"a message of {length} bytes: {MAX_MESSAGE} are allowed")
        end = PREFIX.size + length
        if len(self._in) < end:
            return None
        body = bytes(self._in[PREFIX.size : end])
        del self._in[:end]
        return Kind(number), body

    def _decode(self, kind: Kind, body: bytes) -> Message:
        try:
            return msgspec.msgpack.decode(body, type=BODIES[kind])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._refuse(Code.PROTOCOL, f"a {kind.name} that cannot be read: {error}")

    def _send(self, kind: Kind, message: Message) -> bytes:
        body = msgspec.msgpack.encode(message)
        if len(body) > MAX_MESSAGE:
            raise ValueError(f"a {kind.name} of {len(body)} bytes: {MAX_MESSAGE} are allowed")
        self._out += PREFIX.pack(MAGIC, VERSION, kind, len(body)) + body
        return body

    def _send_hello(self, target: str, purpose: Purpose) -> None:
        own = self._identity
        # Not earlier: who only connects is not worth a key.
        self._share = None if own.protect == "off" else Share(self._private)
        hello = Hello(
            own.ring,
            own.members,
            own.name,
            target,
            purpose,
            self._nonce,
            own.incarnation,
            own.shared,
            own.instance,
            self._share.public if self._share else b"",
            own.fast_aes,
        )
        self._transcript.append(self._send(Kind.HELLO, hello))

    def _refuse(self, code: Code, text: str) -> NoReturn:
        text = printable(text, MAX_TEXT)
        self._state = _State.FAILED
        self._send(Kind.REFUSE, Refuse(code, text))
        raise HandshakeError(code, text)

    # --- belief -----------------------------------------------------------------------

    def _compare(self, theirs: Hello) -> None:
        """Refuse a hello that differs from ours in what must be equal."""
        own = self._identity
        us, them = repr(own.name), repr(theirs.name)
        if theirs.ring != own.ring:
            self._refuse(
                Code.RING,
                f"{us} belongs to ring {own.ring!r}, {them} to ring {theirs.ring!r}",
            )
        if theirs.members != own.members:
            self._refuse(Code.ROSTER, roster_difference(us, own.members, them, theirs.members))
        if theirs.name not in own.members:
            self._refuse(Code.PROTOCOL, f"{them} is not in its own roster")
        if theirs.settings != own.shared:
            self._refuse(
                Code.SETTINGS,
                f"settings differ that must be equal: {us} has {own.shared!r}, "
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

    def _verify(self, proof: Proof) -> None:
        other = _Role.ACCEPTOR if self._role is _Role.DIALER else _Role.DIALER
        if not hmac.compare_digest(proof.mac, self._mac(other)):
            them = self._hello.name if self._hello else ""
            self._refuse(
                Code.KEY,
                f"{self._identity.name!r} and {them!r} have different keys: "
                "give every member the same key file",
            )

    def _agree(self) -> None:
        """Find the secrets of the link, and forget what led to them."""
        share, hello = self._share, self._hello
        self._share, self._private = None, b""
        if share is None or hello is None:
            return
        try:
            secrets = share.agree(hello.share, self._key, self._transcript)
        except ValueError:
            self._refuse(Code.PROTOCOL, f"the share of {hello.name!r} agrees on nothing")
        own = self._identity
        sending, receiving = secrets if self._role is _Role.DIALER else reversed(secrets)
        self._secrets = Secrets(
            "AES-256-GCM" if own.fast_aes and hello.fast_aes else "ChaCha20-Poly1305",
            own.protect == "encrypt",
            sending,
            receiving,
        )

    def _prove(self) -> None:
        self._send(Kind.PROOF, Proof(self._mac(self._role)))

    def _described(self) -> Peer:
        hello = self._hello
        assert hello is not None  # noqa: S101 - the table: no proof without a HELLO
        return Peer(
            hello.name,
            self._identity.members.index(hello.name),
            hello.incarnation,
            hello.purpose,
            hello.instance,
            self._secrets,
        )


class Dialing(_Handshake):
    """The dialer's side.

    Args:
        identity: What we say about ourselves.
        key: The ring's key; empty when the ring has none.
        target: Name of the member to be reached.
        nonce: 32 random bytes, never used before.
        private: As many others, which stay here.
        purpose: To stay as a link, to knock, or to see whether an address can be reached.
    """

    def __init__(
        self,
        identity: Identity,
        key: bytes,
        target: str,
        nonce: bytes,
        private: bytes,
        *,
        purpose: Purpose = "link",
    ) -> None:
        super().__init__(_Role.DIALER, identity, key, nonce, private)
        self._target = target
        self._purpose = purpose
        self._send_hello(target, purpose)

    def _check_purpose(self, hello: Hello) -> None:
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
        private: As many others, which stay here.
    """

    def __init__(self, identity: Identity, key: bytes, nonce: bytes, private: bytes) -> None:
        super().__init__(_Role.ACCEPTOR, identity, key, nonce, private)

    def _check_purpose(self, hello: Hello) -> None:
        own = self._identity
        if hello.target != own.name:
            self._refuse(
                Code.TARGET, f"{hello.name!r} wanted {hello.target!r} and reached {own.name!r}"
            )
        side, step = ("right", 1) if hello.purpose == "knock" else ("left", -1)
        neighbour = own.members[(own.rank + step) % len(own.members)]
        if hello.name != neighbour or neighbour == own.name:
            self._refuse(
                Code.NEIGHBOUR,
                f"a {hello.purpose} to {own.name!r} must come from its {side} neighbour "
                f"{neighbour!r}, not from {hello.name!r}",
            )

    def _greeted(self, hello: Hello) -> None:
        self._send_hello(hello.name, hello.purpose)
        self._prove()

    @property
    def candidate(self) -> Peer | None:
        """Who has proved to be a member, and waits for :meth:`admit` or :meth:`turn_away`."""
        return self._described() if self._state is _State.JUDGED else None

    def admit(self) -> None:
        """Let the candidate in."""
        if self._state is not _State.JUDGED:
            raise RuntimeError("there is nobody to be judged")
        self._send(Kind.ACCEPT, Accept())
        self._state = _State.DONE
        self._peer = self._described()

    def turn_away(self, text: str) -> None:
        """Refuse the candidate, whose place another machine holds.

        Raises:
            HandshakeError: Always, as :meth:`receive` would.
        """
        self._refuse(Code.NAMESAKE, text)
