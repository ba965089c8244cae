"""What the two ends of a link agree on in its handshake, to seal what they send.

Each side adds an X25519 *share* to its hello. The link's secrets follow from both shares and from
the ring's key, by HKDF-SHA256: without the key nobody can be in between, and without the private
halves, which are forgotten with the handshake, the key opens no recording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Protection = Literal["off", "integrity", "encrypt"]
"""What is done to the frames of a link: nothing; a seal on each; a seal, and none can read them."""
Cipher = Literal["AES-256-GCM", "ChaCha20-Poly1305"]

SECRET_SIZE = 32
"""Bytes of a secret, of a share, and of the private half of a share."""

_LABEL = b"ringd link"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Of one end of one link."""

    cipher: Cipher
    encrypt: bool
    """Whether frames are encrypted, too; else they are sealed only."""
    sending: bytes = field(repr=False)
    """32 bytes, for what this end sends."""
    receiving: bytes = field(repr=False)
    """32 bytes, for what it receives."""

    def __str__(self) -> str:
        return f"{'encrypt' if self.encrypt else 'integrity'}, {self.cipher}"


class Share:
    """One side's part in the agreement.

    Args:
        private: 32 random bytes, never used before.
    """

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()
        """What the other side is told: 32 bytes."""

    def agree(self, theirs: bytes, key: bytes, transcript: Iterable[bytes]) -> tuple[bytes, bytes]:
        """Return two secrets that only who has *key* and a private half can find.

        Args:
            theirs: The other side's public share.
            key: The ring's.
            transcript: Both hellos, the dialer's first.

        Returns:
            The secret of what the dialer sends, and of what the acceptor sends.

        Raises:
            ValueError: *theirs* is no share that agrees on anything.
        """
        shared = self._private.exchange(X25519PublicKey.from_public_bytes(theirs))
        said = hashlib.sha256()
        for part in transcript:
            said.update(len(part).to_bytes(4, "little"))
            said.update(part)
        info = _LABEL + said.digest()
        both = HKDF(SHA256(), 2 * SECRET_SIZE, salt=key, info=info).derive(shared)
        return both[:SECRET_SIZE], both[SECRET_SIZE:]
