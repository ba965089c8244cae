"""The handshake, byte by byte, without sockets."""

from __future__ import annotations

import random
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netkit import KEY, MEMBERS, identity

from ringd.wire.link import hello as messages
from ringd.wire.link.handshake import (
    Accepting,
    Code,
    Dialing,
    HandshakeError,
    Peer,
)
from ringd.wire.link.hello import NONCE_SIZE, VERSION, Kind

NONCES = b"d" * 32, b"a" * 32
PRIVATE = b"D" * 32, b"A" * 32
PREFIX = struct.Struct("<4sBBH")


def sides(dialer=None, acceptor=None, *, target="b", keys=(KEY, KEY), purpose="link", **accepting):
    """Return a dialer and an acceptor: rank 0 dials rank 1 unless told otherwise."""
    return (
        Dialing(dialer or identity(0), keys[0], target, NONCES[0], PRIVATE[0], purpose=purpose),
        Accepting(acceptor or identity(1), keys[1], NONCES[1], PRIVATE[1], **accepting),
    )


def play(one, other, cut=lambda size: size):
    """Carry bytes both ways until neither speaks; return each side's error, or None."""
    errors = {}
    moved = True
    while moved:
        moved = False
        for side, far in ((one, other), (other, one)):
            data = side.outgoing()
            while data:
                moved = True
                size = max(1, cut(len(data)))
                if far not in errors:
                    try:
                        far.receive(data[:size])
                    except HandshakeError as error:
                        errors[far] = error
                    if isinstance(far, Accepting) and far.candidate:
                        far.admit()
                data = data[size:]
    return errors.get(one), errors.get(other)


def message(kind, body, *, magic=b"RNGD", version=VERSION):
    """Return a message with any body."""
    return PREFIX.pack(magic, version, kind, len(body)) + body


@given(st.randoms(use_true_random=False))
def test_agreement(rng):
    """Neighbours with one key believe each other, however the stream is cut."""
    dialing, accepting = sides()
    assert play(dialing, accepting, lambda size: rng.randint(1, size)) == (None, None)
    assert dialing.peer == Peer("b", 1, 8, "link")
    assert accepting.peer == Peer("a", 0, 7, "link")
    assert (dialing.leftover, accepting.leftover) == (b"", b"")


def test_knock():
    """A knock comes from the right neighbour."""
    dialing, accepting = sides(identity(1), identity(0), target="a", purpose="knock")
    assert play(dialing, accepting) == (None, None)
    assert accepting.peer == Peer("b", 1, 8, "knock")


def judged():
    """Return a dialer that has proved itself, and the acceptor that is to judge it."""
    dialing, accepting = sides(identity(0, instance=5))
    accepting.receive(dialing.outgoing())
    dialing.receive(accepting.outgoing())
    accepting.receive(dialing.outgoing())
    assert accepting.candidate == Peer("a", 0, 7, "link", 5)
    assert (accepting.peer, accepting.outgoing()) == (None, b"")
    return dialing, accepting


def test_who_is_turned_away():
    """The acceptor's owner may refuse who has proved itself; both sides learn why."""
    dialing, accepting = judged()
    with pytest.raises(HandshakeError) as refused:
        accepting.turn_away("two of that name")
    with pytest.raises(HandshakeError) as told:
        dialing.receive(accepting.outgoing())
    for error in (refused.value, told.value):
        assert (error.code, error.text) == (Code.NAMESAKE, "two of that name")
    assert (accepting.candidate, accepting.peer, dialing.peer) == (None, None, None)
    with pytest.raises(RuntimeError):
        accepting.admit()


def test_nobody_talks_without_end_before_it_is_let_in():
    """What comes before the accept is kept, up to the size of a message."""
    dialing, accepting = judged()
    accepting.receive(b"early")
    with pytest.raises(HandshakeError) as caught:
        accepting.receive(bytes(messages.MAX_MESSAGE))
    assert caught.value.code is Code.PROTOCOL
    dialing, accepting = judged()
    accepting.receive(b"early")
    accepting.admit()
    dialing.receive(accepting.outgoing())
    assert accepting.leftover == b"early"
    assert dialing.peer is not None


def test_a_probe():
    """A probe comes from the left neighbour, as a link does."""
    dialing, accepting = sides(purpose="probe")
    assert play(dialing, accepting) == (None, None)
    assert accepting.peer == Peer("a", 0, 7, "probe")


def test_two_members():
    """In a ring of two, each is the other's left and right neighbour."""
    pair = {"members": ("a", "b")}
    for purpose in ("link", "knock"):
        dialing, accepting = sides(identity(0, **pair), identity(1, **pair), purpose=purpose)
        assert play(dialing, accepting) == (None, None)


def test_no_key():
    """Without a key the handshake is the same."""
    assert play(*sides(keys=(b"", b""))) == (None, None)


@given(st.binary(max_size=200))
def test_what_follows_is_untouched(behind):
    """Bytes behind the handshake are left over, on both sides, wherever the stream is cut."""
    dialing, accepting = sides()
    accepting.receive(dialing.outgoing())
    dialing.receive(accepting.outgoing())
    accepting.receive(dialing.outgoing() + behind)
    accepting.admit()
    dialing.receive(accepting.outgoing() + behind[:100])
    dialing.receive(behind[100:])
    assert accepting.peer is not None
    assert (dialing.leftover, accepting.leftover) == (behind, behind)


REFUSALS = [
    (
        {"acceptor": identity(1, ring="lab")},
        Code.RING,
        "'b' belongs to ring 'lab', 'a' to ring 'home'",
    ),
    (
        {"acceptor": identity(1, members=("a", "b", "d"))},
        Code.ROSTER,
        "the rosters differ at position 2: 'b' has 'd', 'a' has 'c'",
    ),
    (
        {"acceptor": identity(1, members=("a", "b", "c", "d"))},
        Code.ROSTER,
        "the rosters differ: 'b' lists 4 members, 'a' lists 3",
    ),
    (
        {"acceptor": identity(1, settings="chunk=1")},
        Code.SETTINGS,
        "settings differ that must be equal: 'b' has 'chunk=1 protect=off', 'a' has 'protect=off'",
    ),
    ({"target": "c"}, Code.TARGET, "'a' wanted 'c' and reached 'b'"),
    (
        {"dialer": identity(2)},
        Code.NEIGHBOUR,
        "a link to 'b' must come from its left neighbour 'a', not from 'c'",
    ),
    (
        {"purpose": "knock"},
        Code.NEIGHBOUR,
        "a knock to 'b' must come from its right neighbour 'c', not from 'a'",
    ),
    (
        {"dialer": identity(1)},
        Code.NEIGHBOUR,
        "a link to 'b' must come from its left neighbour 'a', not from 'b'",
    ),
]


@pytest.mark.parametrize(("change", "code", "text"), REFUSALS)
def test_refusals(change, code, text):
    """The acceptor refuses, and both sides learn the same code and text."""
    dialing, accepting = sides(**change)
    told, refused = play(dialing, accepting)
    assert (refused.code, refused.text, refused.by_peer) == (code, text, False)
    assert (told.code, told.text, told.by_peer) == (code, text, True)
    assert (dialing.peer, accepting.peer) == (None, None)


@pytest.mark.parametrize("keys", [(KEY, b"other"), (KEY, b""), (b"", KEY)])
def test_wrong_key(keys):
    """Different keys, or one that is missing, are found by the dialer and told to both."""
    refused, told = play(*sides(keys=keys))
    assert (refused.code, refused.by_peer) == (Code.KEY, False)
    assert (told.code, told.by_peer) == (Code.KEY, True)
    assert refused.text == ("'a' and 'b' have different keys: give every member the same key file")
    assert told.text == refused.text


def test_alone():
    """A ring of one has no neighbours."""
    alone = identity(0, members=("a",))
    _, refused = play(*sides(alone, alone, target="a"))
    assert refused.code is Code.NEIGHBOUR


def test_wrong_version():
    """Each side finds the other's version in the first eight bytes, and says both."""
    dialing, accepting = sides()
    newer = bytearray(dialing.outgoing())
    newer[4] = VERSION + 1
    with pytest.raises(HandshakeError) as caught:
        accepting.receive(bytes(newer))
    assert caught.value.code is Code.VERSION
    assert (
        caught.value.text
        == f"'b' speaks version {VERSION} of the handshake, the other side version {VERSION + 1}"
    )
    with pytest.raises(HandshakeError) as caught:
        dialing.receive(accepting.outgoing())
    assert caught.value.code is Code.VERSION
    assert caught.value.by_peer


@pytest.mark.parametrize(("version", "more"), [(1, ()), (3, (5,))])
def test_the_hello_of_an_older_version(version, more):
    """An older release, whose hello is shorter, is told of the versions, and can tell them too."""
    _, accepting = sides()
    old = ("home", ("a", "b", "c"), "a", "b", "link", bytes(NONCE_SIZE), 7, "", *more)
    with pytest.raises(HandshakeError) as caught:
        accepting.receive(message(Kind.HELLO, msgspec.msgpack.encode(old), version=version))
    assert caught.value.code is Code.VERSION
    told = f"'b' speaks version {VERSION} of the handshake, the other side version {version}"
    assert caught.value.text == told
    assert PREFIX.unpack_from(accepting.outgoing())[1] == VERSION  # it looks there before all else


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\0", b"RNGd", b"\x16\x03\x01"])
def test_not_our_protocol(garbage):
    """Whoever speaks something else is found at the first wrong byte and told nothing."""
    _, accepting = sides()
    with pytest.raises(HandshakeError) as caught:
        accepting.receive(garbage)
    assert caught.value.code is Code.PROTOCOL
    assert accepting.outgoing() == b""
    with pytest.raises(RuntimeError):
        accepting.receive(b"more")


def test_replay():
    """What a dialer said once proves nothing to an acceptor with another nonce."""
    dialing, accepting = sides()
    hello = dialing.outgoing()
    accepting.receive(hello)
    dialing.receive(accepting.outgoing())
    proof = dialing.outgoing()
    again = Accepting(identity(1), KEY, b"n" * 32, PRIVATE[1])
    again.receive(hello)
    with pytest.raises(HandshakeError) as caught:
        again.receive(proof)
    assert caught.value.code is Code.KEY


def test_reflection():
    """A dialer's own words prove nothing to it, and an acceptor's nothing to the acceptor."""
    pair = {"members": ("a", "b")}
    dialing = Dialing(identity(0, **pair), KEY, "b", NONCES[0], PRIVATE[0])
    with pytest.raises(HandshakeError) as caught:
        dialing.receive(dialing.outgoing())
    assert caught.value.code is Code.TARGET
    dialing, accepting = sides(identity(0, **pair), identity(1, **pair))
    accepting.receive(dialing.outgoing())
    words = accepting.outgoing()
    length = PREFIX.unpack_from(words)[3] + PREFIX.size
    with pytest.raises(HandshakeError) as caught:
        accepting.receive(words[length:])
    assert caught.value.code is Code.KEY


@settings(max_examples=300)
@given(st.sampled_from("da"), st.integers(0, 10**6), st.integers(0, 7))
def test_no_flipped_bit_passes(direction, position, bit):
    """With one bit changed on its way, its receiver believes nobody."""
    dialing, accepting = sides()
    flipper = dialing if direction == "d" else accepting
    first = dialing.outgoing()
    stream = {"d": [first], "a": []}
    accepting.receive(first)
    stream["a"].append(accepting.outgoing())
    dialing.receive(stream["a"][0])
    stream["d"].append(dialing.outgoing())
    accepting.receive(stream["d"][1])
    accepting.admit()
    stream["a"].append(accepting.outgoing())
    position %= sum(map(len, stream[direction]))
    dialing, accepting = sides()
    flipper, victim = (dialing, accepting) if direction == "d" else (accepting, dialing)
    seen = 0
    for _ in range(4):
        for side, far in ((dialing, accepting), (accepting, dialing)):
            data = bytearray(side.outgoing())
            if side is flipper:
                if seen <= position < seen + len(data):
                    data[position - seen] ^= 1 << bit
                seen += len(data)
            try:
                far.receive(bytes(data))
            except (HandshakeError, RuntimeError):
                continue
            if far is accepting and accepting.candidate:
                accepting.admit()
    assert victim.peer is None


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_garbage(pieces):
    """Arbitrary bytes never make a peer, nor any other error than ours."""
    for side in sides():
        side.outgoing()
        try:
            for piece in pieces:
                side.receive(piece)
        except HandshakeError as error:
            assert error.code in (Code.PROTOCOL, Code.VERSION)  # noqa: PT017 - none is right, too
        assert side.peer is None


leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text()
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=12), max_leaves=20)


@settings(max_examples=300)
@given(st.sampled_from([0, 1, 2]), st.integers(0, 6), trees, st.binary(max_size=40))
def test_believable_garbage(state, kind, tree, tail):
    """Well-formed messages with any content, in any state, never make a peer."""
    dialing, accepting = sides()
    victim = accepting
    if state:
        accepting.receive(dialing.outgoing())
    if state == 2:
        dialing.receive(accepting.outgoing())
        victim = dialing
    victim.outgoing()
    body = msgspec.msgpack.encode(tree) + tail
    try:
        victim.receive(message(kind, body))
    except HandshakeError as error:
        assert error.text.isprintable()  # noqa: PT017 - no error is right, too
    assert victim.peer is None or (state, kind, body) == (2, 3, b"\x90")


def test_out_of_turn():
    """Every message that a state does not expect is an error of the other side."""
    dialing, accepting = sides()
    hello = dialing.outgoing()
    accepting.receive(hello)
    answer = accepting.outgoing()
    dialing.receive(answer)
    proof = dialing.outgoing()
    accept = message(3, b"\x90")
    moves = [
        (lambda: sides()[1], [proof, accept]),
        (lambda: sides()[0], [proof, accept]),
        (lambda: _greeted(hello), [hello, accept]),
        (lambda: dialing, [hello]),
    ]
    for make, wrong in moves:
        for move in wrong:
            with pytest.raises(HandshakeError) as caught:
                make().receive(move)
            assert caught.value.code is Code.PROTOCOL


def _greeted(hello):
    accepting = sides()[1]
    accepting.receive(hello)
    return accepting


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (PREFIX.pack(b"RNGD", VERSION, 1, 16385), "a message of 16385 bytes: 16384 are allowed"),
        (PREFIX.pack(b"RNGD", VERSION, 9, 0), "unknown kind of message: 9"),
        (message(1, b"\xc1"), "a HELLO that cannot be read"),
    ],
)
def test_bad_messages(data, text):
    """A bad message is refused at its prefix if that is enough, in words."""
    _, accepting = sides()
    with pytest.raises(HandshakeError, match=text) as caught:
        accepting.receive(data)
    assert caught.value.code is Code.PROTOCOL
    assert accepting.outgoing() != b""


def test_text_of_strangers_is_harmless():
    """A refusal's text is cut, and has no control characters."""
    body = msgspec.msgpack.encode([3, "\x1b[2J\n" + "x" * 1000])
    dialing, _ = sides()
    with pytest.raises(HandshakeError) as caught:
        dialing.receive(message(4, body))
    assert caught.value.text == "?[2J?" + "x" * (messages.MAX_TEXT - 5)
    accepting = Accepting(identity(1), KEY, NONCES[1], PRIVATE[1])
    loud = Dialing(identity(0, ring="\x1b]0;\x07"), KEY, "b", NONCES[0], PRIVATE[0])
    _, refused = play(loud, accepting)
    assert refused.text.isprintable()


def test_too_large_a_roster():
    """What does not fit into a hello is found before anything is sent."""
    members = tuple(f"{number:0200}" for number in range(100))
    with pytest.raises(ValueError, match="HELLO of"):
        Dialing(identity(0, members=members), KEY, members[1], NONCES[0], PRIVATE[0])


def test_key_and_secrets_stay():
    """The key is never among the bytes that are sent."""
    key = random.Random(1).randbytes(32)
    dialing, accepting = sides(keys=(key, key))
    sent = dialing.outgoing()
    accepting.receive(sent)
    answer = accepting.outgoing()
    dialing.receive(answer)
    sent += answer + dialing.outgoing()
    assert key not in sent
    assert dialing._identity.members == MEMBERS
