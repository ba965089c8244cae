"""What two neighbours agree on to seal their link: published vectors, known answers, and relays."""

from __future__ import annotations

import hashlib
import hmac
import itertools

import msgspec
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from netkit import KEY, identity
from test_wire_handshake import NONCES, PREFIX, PRIVATE, message, play

from ringd.wire.link.agreement import Secrets, Share
from ringd.wire.link.handshake import Accepting, Code, Dialing, HandshakeError
from ringd.wire.link.hello import Hello, Kind
from ringd.wire.link.sealing import SealedReader, SealedWriter, framing

SEALED = ["integrity", "encrypt"]


def sides(protect="encrypt", *, acceptor="", aes=(True, True), private=PRIVATE, key=KEY):
    """Return a dialer and an acceptor that protect their link, each in its way."""
    own = identity(0, protect=protect, fast_aes=aes[0])
    theirs = identity(1, protect=acceptor or protect, fast_aes=aes[1])
    return (
        Dialing(own, key, "b", NONCES[0], private[0]),
        Accepting(theirs, key, NONCES[1], private[1]),
    )


def test_x25519():
    """The exchange of RFC 7748, section 6.1, leads to one shared secret on both sides."""
    alice = Share(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = Share(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    info = b"ringd link" + hashlib.sha256(b"").digest()
    both = HKDF(SHA256(), 64, salt=KEY, info=info).derive(shared)
    assert alice.agree(bob.public, KEY, []) == bob.agree(alice.public, KEY, [])
    assert b"".join(alice.agree(bob.public, KEY, [])) == both


def test_hkdf():
    """Test case 1 of RFC 5869."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    assert HKDF(SHA256(), 42, salt=salt, info=info).derive(b"\x0b" * 22).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_known_answers():
    """Two secrets, computed once with another implementation: for ever, in this version."""
    dialer, acceptor = (Share(private) for private in PRIVATE)
    said = [b"dialer says", b"acceptor says"]
    expected = (
        "1fcf59e8ffe84bbea16202464cd1a4f864f22ea09b42e45dbe1cd49eb5a979a1",
        "dc5628597c92a917174edef2b05275b8bf4a80af5e204b3b7b4ae22c4dd99708",
    )
    for one, other in ((dialer, acceptor), (acceptor, dialer)):
        assert tuple(map(bytes.hex, one.agree(other.public, KEY, said))) == expected
    others = [
        dialer.agree(acceptor.public, b"x" * 32, said),
        dialer.agree(acceptor.public, KEY, [b"dialer say", b"sacceptor says"]),
        Share(b"E" * 32).agree(acceptor.public, KEY, said),
    ]
    secrets = [*map(bytes.fromhex, expected), *itertools.chain(*others)]
    assert len(set(secrets)) == len(secrets)


@pytest.mark.parametrize("protect", SEALED)
@pytest.mark.parametrize(
    ("aes", "cipher"),
    [
        ((True, True), "AES-256-GCM"),
        ((True, False), "ChaCha20-Poly1305"),
        ((False, True), "ChaCha20-Poly1305"),
        ((False, False), "ChaCha20-Poly1305"),
    ],
)
def test_both_ends_find_the_same(protect, aes, cipher):
    """What one end sends with, the other receives with; AES only where it suits both."""
    dialing, accepting = sides(protect, aes=aes)
    assert play(dialing, accepting) == (None, None)
    one, other = dialing.peer.secrets, accepting.peer.secrets
    assert (one.sending, one.receiving) == (other.receiving, other.sending)
    assert one.sending != one.receiving
    for end in (one, other):
        assert (end.cipher, end.encrypt) == (cipher, protect == "encrypt")
        assert str(end) == f"{protect}, {cipher}"


def test_off():
    """A link that is not to be sealed has no secrets, and no share is made for it."""
    dialing, accepting = sides("off")
    hello = msgspec.msgpack.decode(dialing._transcript[0], type=Hello)
    assert hello.share == b""
    assert play(dialing, accepting) == (None, None)
    assert (dialing.peer.secrets, accepting.peer.secrets) == (None, None)


@pytest.mark.parametrize("pair", list(itertools.permutations(["off", *SEALED], 2)))
def test_mixed_settings(pair):
    """Members that protect their link in different ways tell both, and are no neighbours."""
    dialing, accepting = sides(pair[0], acceptor=pair[1])
    told, refused = play(dialing, accepting)
    for error in (told, refused):
        assert error.code is Code.SETTINGS
        assert f"'b' has 'protect={pair[1]}', 'a' has 'protect={pair[0]}'" in error.text
    assert (dialing.peer, accepting.peer) == (None, None)


@pytest.mark.parametrize("share", [b"", b"short", bytes(32), b"\1" + bytes(31)])
def test_a_share_that_agrees_on_nothing(share):
    """A member whose share is none, or leads to a secret that all know, is refused."""
    dialing, accepting = sides()
    liar = Dialing(identity(0, protect="encrypt"), KEY, "b", NONCES[0], PRIVATE[0])
    liar._transcript.clear()
    body = changed(dialing.outgoing(), share=share)
    liar._transcript.append(body[PREFIX.size :])
    accepting.receive(body)
    liar.receive(accepting.outgoing())
    liar.outgoing()
    with pytest.raises(HandshakeError) as caught:
        accepting.receive(message(Kind.PROOF, msgspec.msgpack.encode([liar._mac(liar._role)])))
    assert caught.value.code is Code.PROTOCOL
    assert caught.value.text == "the share of 'a' agrees on nothing"
    assert accepting.candidate is None


def changed(hello, **fields):
    """Return the bytes of a hello that somebody has rewritten on its way."""
    kind, length = PREFIX.unpack_from(hello)[2:]
    end = PREFIX.size + length
    said = msgspec.msgpack.decode(hello[PREFIX.size : end], type=Hello)
    body = msgspec.msgpack.encode(msgspec.structs.replace(said, **fields))
    return message(kind, body) + hello[end:]


REWRITES = [
    {"settings": "protect=off"},
    {"settings": "protect=off", "share": b""},
    {"fast_aes": False},
    {"share": Share(b"R" * 32).public},
    {"share": bytes(32)},
    {"nonce": bytes(32)},
]


@pytest.mark.parametrize("protect", SEALED)
@pytest.mark.parametrize("fields", REWRITES, ids=str)
@pytest.mark.parametrize("which", ["dialer's", "acceptor's", "both"])
def test_a_relay_cannot_change_what_is_agreed(protect, fields, which):
    """Somebody on the way who rewrites hellos gets no link: neither a weaker one nor his own."""
    dialing, accepting = sides(protect)
    hello = dialing.outgoing()
    errors = []
    try:
        accepting.receive(hello if which == "acceptor's" else changed(hello, **fields))
        answer = accepting.outgoing()
        dialing.receive(answer if which == "dialer's" else changed(answer, **fields))
        accepting.receive(dialing.outgoing())
    except HandshakeError as error:
        errors.append(error)
    (error,) = errors
    assert error.code in (Code.KEY, Code.SETTINGS)
    assert (dialing.peer, accepting.candidate) == (None, None)


def recorded():
    """Return all that a listener hears of a link, and the secrets of its dialer."""
    dialing, accepting = sides()
    heard = [dialing.outgoing()]
    accepting.receive(heard[0])
    heard.append(accepting.outgoing())
    dialing.receive(heard[1])
    heard.append(dialing.outgoing())
    accepting.receive(heard[2])
    accepting.admit()
    heard.append(accepting.outgoing())
    dialing.receive(heard[3])
    for side in (dialing, accepting):
        assert (side._private, side._share) == (b"", None)  # what could find it again is forgotten
    return heard, dialing._transcript, dialing.peer.secrets


def test_the_key_opens_no_recording():
    """Who has heard everything, and later gets the ring's key, finds none of the secrets.

    Whoever also has one private half, which no side keeps, does: the recording is complete.
    """
    heard, transcript, secrets = recorded()
    hellos = [msgspec.msgpack.decode(body, type=Hello) for body in transcript]
    parts = [
        *heard,
        *transcript,
        *(hello.share for hello in hellos),
        *(hello.nonce for hello in hellos),
        bytes(32),
        KEY,
        b"",
    ]
    info = (
        b"ringd link"
        + hashlib.sha256(
            b"".join(len(said).to_bytes(4, "little") + said for said in transcript)
        ).digest()
    )
    found = {
        HKDF(SHA256(), 64, salt=KEY, info=info).derive(one + other)
        for one in parts
        for other in parts
    }
    found |= {hmac.digest(KEY, one + other, "sha256") * 2 for one in parts for other in parts}
    both = secrets.sending + secrets.receiving
    assert all(both[at : at + 32] not in guess for guess in found for at in (0, 32))
    again, _ = sides(private=(b"N" * 32, PRIVATE[1]))
    assert again._transcript[0] != transcript[0]
    assert Share(PRIVATE[0]).agree(hellos[1].share, KEY, transcript) == (
        secrets.sending,
        secrets.receiving,
    )


def test_secrets_show_nowhere():
    """They are in no text that a log or a traceback could have."""
    secrets = Secrets("AES-256-GCM", True, b"s" * 32, b"r" * 32)
    dialing, accepting = sides()
    play(dialing, accepting)
    for text in (repr(secrets), str(secrets), repr(dialing.peer), repr(accepting.peer)):
        assert "ssss" not in text
        assert "sending" not in text
    writer, reader = framing(secrets)
    assert isinstance(writer, SealedWriter)
    assert isinstance(reader, SealedReader)
