"""Sealed frames: each header and each payload stands under an AEAD of its own.

A frame is ``header 39 | tag 16``, and where there is a payload ``payload | tag 16``. The header is
that of a plain frame without magic, version, flags and CRCs (little-endian)::

    type u8 | length u32 | generation u64 | group u64 | seq u64 | index u32 | origin u16 |
    until u16 | rank u16

The nonce (big-endian) is ``part u32 | number u64``: 0 for a header, 1 for a payload, and how many
frames of this direction went before. So a frame that is altered, missing, repeated or out of its
place has a broken seal, and no nonce comes twice. Each direction has its own keys: one serves for
:data:`FRAMES_PER_KEY` frames, and the next follows from it, but not the other way round.

With *integrity* alone both are sent as they are, as the associated data of an empty text.

The memory of a chunk is shared with a program, which may write to it at any time. So what has a
seal never stands there: a chunk is sealed in a buffer of the link, and sent from it; what comes is
received in another one, and verified there. It is copied to its place after that, or decrypted to
its place meanwhile, where it counts for nothing until the seal has proved right.
"""

from __future__ import annotations

import struct
from typing import Union

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ringd.wire.link import frames
from ringd.wire.link.agreement import SECRET_SIZE, Cipher, Secrets
from ringd.wire.link.frames import Buffer, FrameError, FrameType, Header
from ringd.wire.link.framing import (
    ALIGNMENT,
    PlainReader,
    PlainWriter,
    Reader,
    Writer,
    room_of_its_own,
)

TAG_SIZE = 16

FRAMES_PER_KEY = 1 << 20
"""Of at most 4 MiB each: 2^38 blocks, where AES-GCM tells itself from chance with 2^-53."""

AEAD = Union[AESGCM, ChaCha20Poly1305]
AEADS: dict[Cipher, type[AESGCM | ChaCha20Poly1305]] = {
    "AES-256-GCM": AESGCM,
    "ChaCha20-Poly1305": ChaCha20Poly1305,
}

_BODY = struct.Struct("<BIQQQIHHH")
_SEALED_SIZE = _BODY.size + TAG_SIZE
_NONCE = struct.Struct(">IQ")
_HEADER, _PAYLOAD = 0, 1
_NOTHING = memoryview(b"")


class _Keys:
    """The keys of one direction, one after the other, and the nonces of its frames."""

    def __init__(self, cipher: Cipher, secret: bytes) -> None:
        self._make = AEADS[cipher]
        self._secret = secret
        self.number = -1
        """Of the frame that was begun last. Whoever begins one raises it, and asks for a new key
        at every multiple of :data:`FRAMES_PER_KEY`: that is a function less for each frame."""
        self.aead: AEAD
        """For this frame."""

    def renew(self) -> None:
        """Take the next key, as there is to be one for this frame."""
        self.aead = self._make(_expand(self._secret, b"ringd key"))
        self._secret = _expand(self._secret, b"ringd next")


def _expand(secret: bytes, label: bytes) -> bytes:
    return HKDFExpand(SHA256(), SECRET_SIZE, info=label).derive(secret)


class _Room:
    """A buffer that grows to the longest that was asked for."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray())

    def take(self, size: int) -> memoryview:
        """Return *size* bytes, always from the same ones."""
        if size > len(self._memory):
            self._memory = memoryview(bytearray(size))
        return self._memory[:size]


class SealedWriter:
    """Seals what one end sends."""

    def __init__(self, secrets: Secrets) -> None:
        self._encrypt = secrets.encrypt
        self._keys = _Keys(secrets.cipher, secrets.sending)
        self._room = _Room()

    def whole(self, header: Header, *payload: Buffer) -> bytes:
        """See :class:`~ringd.wire.link.framing.Writer`."""
        keys = self._keys
        number = keys.number = keys.number + 1
        if not number % FRAMES_PER_KEY:
            keys.renew()
        body = _BODY.pack(
            header.type,
            header.length,
            header.generation,
            header.group,
            header.seq,
            header.index,
            header.origin,
            header.until,
            header.rank,
        )
        aead, encrypt = keys.aead, self._encrypt
        nonce = _NONCE.pack(_HEADER, number)
        head = aead.encrypt(nonce, body, None) if encrypt else body + aead.encrypt(nonce, b"", body)
        if not header.length or not payload:
            return head
        nonce = _NONCE.pack(_PAYLOAD, number)
        text = payload[0] if len(payload) == 1 else b"".join(payload)
        if encrypt:
            return head + aead.encrypt(nonce, text, None)
        return b"".join((head, text, aead.encrypt(nonce, b"", text)))

    def parts(self, header: Header, *payload: Buffer) -> list[Buffer]:
        """See :class:`~ringd.wire.link.framing.Writer`: the payload is a sealed copy."""
        head = self.whole(header)
        length = header.length
        if not length:
            return [head]
        sealed = self._room.take(length + TAG_SIZE)
        keys = self._keys
        nonce = _NONCE.pack(_PAYLOAD, keys.number)
        if self._encrypt:
            text = payload[0] if len(payload) == 1 else b"".join(payload)
            keys.aead.encrypt_into(nonce, text, None, sealed)
        else:
            start = 0
            for piece in payload:
                sealed[start : start + len(piece)] = piece
                start += len(piece)
            keys.aead.encrypt_into(nonce, b"", sealed[:length], sealed[length:])
        return [head, sealed]


class SealedReader:
    """Opens what one end receives; believes nothing before its seal."""

    header_size = _SEALED_SIZE
    tail = TAG_SIZE

    def __init__(self, secrets: Secrets) -> None:
        self._encrypt = secrets.encrypt
        self._keys = _Keys(secrets.cipher, secrets.receiving)
        self._room = _Room()
        self._body = memoryview(bytearray(_BODY.size))

    def header(self, data: memoryview) -> Header:
        """See :class:`~ringd.wire.link.framing.Reader`."""
        keys = self._keys
        number = keys.number = keys.number + 1
        if not number % FRAMES_PER_KEY:
            keys.renew()
        kind, length, generation, group, seq, index, origin, until, rank = _BODY.unpack(
            self._open(_HEADER, data, self._body)
        )
        known, most = frames.TYPES.get(kind, frames.UNKNOWN)
        if length > most or index > length:
            known = frames.checked(kind, length, index)
        return Header(known, length, generation, group, seq, index, origin, until, rank)

    def whole(self, header: Header, data: memoryview) -> memoryview:
        """See :class:`~ringd.wire.link.framing.Reader`."""
        # As room_of_its_own and _open do: for every small frame that is two functions less.
        start = -header.index % ALIGNMENT
        room = memoryview(bytearray(start + header.length))[start:]
        keys = self._keys
        nonce = _NONCE.pack(_PAYLOAD, keys.number)
        try:
            if self._encrypt:
                keys.aead.decrypt_into(nonce, data, None, room)
            else:
                room[:] = text = data[:-TAG_SIZE]
                keys.aead.decrypt(nonce, data[-TAG_SIZE:], text)
        except InvalidTag:
            raise _broken(keys.number) from None
        return room

    def room(self, header: Header, target: memoryview | None) -> memoryview:  # noqa: ARG002
        """See :class:`~ringd.wire.link.framing.Reader`: never in its place."""
        tail = TAG_SIZE if header.length else 0
        if header.type is FrameType.DATA:
            return self._room.take(header.length + tail)
        return room_of_its_own(header, tail=tail)

    def payload(self, header: Header, data: memoryview, target: memoryview | None) -> memoryview:
        """See :class:`~ringd.wire.link.framing.Reader`."""
        length = header.length
        if not length:
            return _NOTHING
        if self._encrypt:
            into = room_of_its_own(header, target)
            return self._open(_PAYLOAD, data, into)
        text = self._open(_PAYLOAD, data, _NOTHING)
        if target is not None:
            target[:] = text
        return text

    def _open(self, part: int, data: memoryview, into: memoryview) -> memoryview:
        """Return the text that *data* seals; where it is encrypted, it stands in *into*."""
        keys = self._keys
        nonce = _NONCE.pack(part, keys.number)
        try:
            if self._encrypt:
                keys.aead.decrypt_into(nonce, data, None, into)
                return into
            text = data[:-TAG_SIZE]
            keys.aead.decrypt(nonce, data[-TAG_SIZE:], text)
        except InvalidTag:
            raise _broken(keys.number) from None
        return text


def _broken(number: int) -> FrameError:
    return FrameError(
        f"the seal of frame {number} is broken: somebody altered it on its way, or left out, "
        "repeated or added one"
    )


def framing(secrets: Secrets | None) -> tuple[Writer, Reader]:
    """Return what writes and reads the frames of a link with these secrets; None: plain ones."""
    if secrets is None:
        return PlainWriter(), PlainReader()
    return SealedWriter(secrets), SealedReader(secrets)
