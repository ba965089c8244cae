"""Sealed frames, byte by byte: nothing that was not sent is believed, and no nonce comes twice."""

from __future__ import annotations

import mmap
import multiprocessing
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netkit import secrets
from test_wire_frames import headers

from ringd.wire.link import sealing
from ringd.wire.link.agreement import Secrets
from ringd.wire.link.frames import MAX_LENGTH, FrameError, FrameType, Header
from ringd.wire.link.sealing import AEADS, TAG_SIZE, SealedReader, SealedWriter

CIPHERS = list(AEADS)
WAYS = [(protect, cipher) for protect in ("integrity", "encrypt") for cipher in CIPHERS]
BROKEN = "the seal of frame"

GCM = (
    "feffe9928665731c6d6a8f9467308308" * 2,
    "cafebabefacedbaddecaf888",
    (
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    ),
    "feedfacedeadbeeffeedfacedeadbeefabaddad2",
    (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    ),
    "76fc6ece0f4e1768cddf8853bb2d551b",
)
"""Test case 16 of the specification of GCM: key, nonce, text, associated data, result, tag."""

CHACHA = (
    bytes(range(0x80, 0xA0)).hex(),
    "070000004041424344454647",
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it.".hex(),
    "50515253c0c1c2c3c4c5c6c7",
    (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116"
    ),
    "1ae10b594f09e26a7e902ecbd0600691",
)
"""That of RFC 8439, section 2.8.2."""

HEADER = Header(FrameType.DATA, 7, 5, 6, 7, 8, 9, 10, 11)
PLAIN = "04070000000500000000000000060000000000000007000000000000000800000009000a000b00"
ANSWERS = {
    ("AES-256-GCM", "encrypt", 0): (
        "454fa37b8510fe356cfc9429b7d5784ad8724c7eefd7819fe97725dced59b9e519f81ccb"
        "6a8e17b3cd94975cc85fa1b0da36f6ca9cf7a22c73f5daac2bad9756731ea428f565977b"
        "8831c19a0713"
    ),
    ("AES-256-GCM", "integrity", 0): (
        PLAIN + "afa064be5553c69cd34615c01005a2507061796c6f61646188f6644874c63b148e2f8c45b2701e"
    ),
    ("AES-256-GCM", "encrypt", 1 << 20): (
        "3c7cab2ee6761bcd10adfde1e3a2258ecee36d25a22e3a34ebc1056e24578554b9b83e0d"
        "84ee1ae00c900b19e6b59ba2b47651f274e0aae3bbfe28e073c040320974061c628d0d2e"
        "e300840418c5"
    ),
    ("AES-256-GCM", "integrity", 1 << 20): (
        PLAIN + "6939abdfa357b8a4c92a6340533a20837061796c6f616446e6d310152885bb6a8d33ea13fa4eda"
    ),
    ("ChaCha20-Poly1305", "encrypt", 0): (
        "d0ef788392202a31cb8480de619dd79db49f6f85be88a381648edaa47d9e029b03ac7ecb"
        "83f3aabcf47e73f93c3daeb4857010397bf0c947173cb26e294a6aa32994e3bac4db6d38"
        "e3f0cabab4f6"
    ),
    ("ChaCha20-Poly1305", "integrity", 0): (
        PLAIN + "a117bd3542675d9f5cd134ce1cc825097061796c6f616401fde5163d0a7029d8e393a894a1565c"
    ),
    ("ChaCha20-Poly1305", "encrypt", 1 << 20): (
        "c09fec5c9d338db018a954320f4089cfcd8fc5c6916ca24164e85af0717a98ab27057f31"
        "b8f31ee1d05529e9b88746cf9acd27167a15183925f556bed7546e16f0fec258fa310546"
        "b69ccd9ae99b"
    ),
    ("ChaCha20-Poly1305", "integrity", 1 << 20): (
        PLAIN + "0ae69e7ede38d3307f1fd59d60e4eae57061796c6f6164262fe262b654c7f33e2ae1265698f34d"
    ),
}
"""Of one frame, by cipher, protection and number: computed with another implementation."""
FIRST = bytes.fromhex("1fcf59e8ffe84bbea16202464cd1a4f864f22ea09b42e45dbe1cd49eb5a979a1")


def ends(protect="encrypt", cipher="AES-256-GCM"):
    """Return what one end writes with, and what the other reads with."""
    near, far = secrets(protect, cipher)
    return SealedWriter(near), SealedReader(far)


def read(reader, data, target=None):
    """Return the frame that *data* begins with, read in both ways, and what follows it."""
    view = memoryview(bytearray(data))
    header = reader.header(view[: reader.header_size])
    end = reader.header_size + (header.length + reader.tail if header.length else 0)
    if len(view) < end:
        raise EOFError
    data = view[reader.header_size : end]

    def by_way_of_a_room():
        room = reader.room(header, target)
        room[:] = data
        return bytes(reader.payload(header, room, target))

    if header.type is FrameType.DATA or not header.length:
        return header, by_way_of_a_room(), bytes(view[end:])
    try:
        payload = bytes(reader.whole(header, data))
    except FrameError as error:
        with pytest.raises(FrameError, match=str(error)):
            by_way_of_a_room()
        raise
    assert by_way_of_a_room() == payload
    return header, payload, bytes(view[end:])


def read_all(reader, data):
    """Return the frames that are believed, and whether a seal was broken."""
    got = []
    while len(data) >= reader.header_size:
        try:
            header, payload, data = read(reader, data)
        except FrameError:
            return got, True
        except EOFError:
            return got, False
        got.append((header, payload))
    return got, False


@pytest.mark.parametrize(("cipher", "vector"), [(CIPHERS[0], GCM), (CIPHERS[1], CHACHA)])
def test_published_vectors(cipher, vector):
    """The ciphers are those that their names say."""
    key, nonce, text, data, result, tag = map(bytes.fromhex, vector)
    sealed = bytearray(len(text) + TAG_SIZE)
    assert AEADS[cipher](key).encrypt_into(nonce, text, data, sealed) == len(sealed)
    assert sealed == result + tag


@pytest.mark.parametrize(("cipher", "protect", "number"), list(ANSWERS))
def test_known_answers(cipher, protect, number):
    """The bytes on the wire are those of the documentation, for ever in this version."""
    writer = SealedWriter(Secrets(cipher, protect == "encrypt", FIRST, bytes(32)))
    reader = SealedReader(Secrets(cipher, protect == "encrypt", bytes(32), FIRST))
    for keys in (writer._keys, reader._keys):
        if number:
            keys.renew()
            keys.number = number - 1
    frame = writer.whole(HEADER, b"payload")
    assert frame.hex() == ANSWERS[cipher, protect, number]
    assert read(reader, frame) == (HEADER, b"payload", b"")


@pytest.mark.parametrize(("protect", "cipher"), WAYS)
@given(plan=st.lists(st.tuples(headers(), st.integers(0, 300), st.booleans()), max_size=6))
def test_round_trip(protect, cipher, plan):
    """What is written is read, whole or in parts, wherever it is wanted."""
    writer, reader = ends(protect, cipher)
    for header, longest, apart in plan:
        length = min(longest, MAX_LENGTH[header.type])
        has_message = header.type in {FrameType.GROUP, FrameType.STREAM}
        index = min(header.index, length) if has_message else header.index
        fields = (header.generation, header.group, header.seq, index)
        sent = Header(header.type, length, *fields, header.origin, header.until, header.rank)
        payload = random.Random(length).randbytes(length)
        frame = b"".join(writer.parts(sent, payload)) if apart else writer.whole(sent, payload)
        target = memoryview(bytearray(length)) if apart else None
        assert read(reader, frame, target) == (sent, payload, b"")
        assert target is None or target == payload


def every_kind():
    """Return a frame of each kind."""
    for kind in FrameType:
        empty = kind in (FrameType.HEARTBEAT, FrameType.CREDIT)
        payload = b"" if empty else b"payload of " + kind.name.encode()
        yield Header(kind, len(payload), 3, 4, 5, 6, 1, 2, 3), payload


@pytest.mark.parametrize(("protect", "cipher"), WAYS)
@pytest.mark.parametrize("header_payload", list(every_kind()), ids=lambda pair: pair[0].type.name)
def test_every_flipped_bit_is_found(protect, cipher, header_payload):
    """No single bit of a frame can change, wherever: what is changed is not believed."""
    writer, _ = ends(protect, cipher)
    frame = writer.whole(*header_payload)
    for bit in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError, match=BROKEN):
            read(ends(protect, cipher)[1], damaged)


def altered(frames, rng):
    """Yield what somebody on the way may make of a stream of frames, and how many stay good."""
    at = rng.randrange(len(frames) - 1)
    before, after = b"".join(frames[:at]), b"".join(frames[at + 1 :])
    yield "drop", before + after, at
    yield "repeat", before + frames[at] * 2 + after, at + 1
    yield "swap", before + frames[at + 1] + frames[at] + b"".join(frames[at + 2 :]), at
    cut = rng.randrange(1, 40)  # so few that what follows makes up for their number
    yield "truncate", before + frames[at][:-cut] + after, at
    yield "append", before + frames[at] + rng.randbytes(rng.randrange(1, 100)) + after, at + 1
    yield "replace", before + rng.randbytes(len(frames[at])) + after, at
    yield "reflect", before + b"".join(frames_of("2", frames)) + after, at


def frames_of(end, like):
    """Return as many frames that the other end has sent."""
    near, far = secrets("encrypt")
    writer = SealedWriter(far if end == "2" else near)
    return [writer.whole(HEADER, b"payload") for _ in like]


@pytest.mark.parametrize(("protect", "cipher"), WAYS)
@pytest.mark.parametrize("seed", range(20))
def test_streams_that_somebody_alters(protect, cipher, seed):
    """Frames up to the first that is wrong are believed, and none behind it."""
    rng = random.Random(seed)
    writer, _ = ends(protect, cipher)
    sent, stream = [], []
    for number in range(6):
        payload = rng.randbytes(rng.choice([0, 1, 60, 2000]))
        header = Header(FrameType.DATA, len(payload), seq=number)
        sent.append((header, payload))
        stream.append(writer.whole(header, payload))
    stream.append(writer.whole(Header(FrameType.HEARTBEAT), b""))
    for what, data, good in altered(stream, rng):
        got, broken = read_all(ends(protect, cipher)[1], data)
        assert got == sent[:good], what
        assert broken, what


@pytest.mark.parametrize("protect", ["integrity", "encrypt"])
def test_a_tensor_behind_a_message_is_aligned(protect):
    """As an array's memory is, however long the message; and it stays when the buffer changes."""
    for index in (0, 1, 15, 16, 33):
        writer, reader = ends(protect)
        header = Header(FrameType.GROUP, index + 64, index=index)
        frame = memoryview(bytearray(writer.whole(header, bytes(index) + b"\1" * 64)))
        reader.header(frame[: reader.header_size])
        tensor = reader.whole(header, frame[reader.header_size :])[index:]
        assert np.frombuffer(tensor, np.uint8).ctypes.data % 16 == 0
        frame[:] = bytes(len(frame))
        assert tensor == b"\1" * 64


def test_a_length_is_not_believed_before_its_seal():
    """A header with another length leads to no buffer of that length."""
    writer, reader = ends("integrity")
    frame = bytearray(writer.whole(HEADER, b"payload"))
    frame[1:5] = (4 << 20).to_bytes(4, "little")
    with pytest.raises(FrameError, match=BROKEN):
        read(reader, frame)
    assert len(reader._room._memory) == 0


def test_what_is_sealed_is_still_checked():
    """A member with the right key cannot announce what no frame of a type may hold."""
    for header, text in [
        (Header(FrameType.DATA, (4 << 20) + 1), "over the limit"),
        (Header(FrameType.GROUP, 4, index=5), "a message of 5 bytes"),
    ]:
        writer, reader = ends()
        head = writer.whole(header)
        with pytest.raises(FrameError, match=text):
            reader.header(memoryview(head))


@pytest.mark.parametrize("protect", ["integrity", "encrypt"])
def test_no_nonce_comes_twice(protect, monkeypatch):
    """Under each key each nonce is used once, also when keys follow one another."""
    used = []

    class Spy:
        def __init__(self, key):
            self._aead, self._key = AEADS["AES-256-GCM"](key), key

        def encrypt(self, nonce, *texts):
            used.append((self._key, nonce))
            return self._aead.encrypt(nonce, *texts)

        def encrypt_into(self, nonce, *texts):
            used.append((self._key, nonce))
            return self._aead.encrypt_into(nonce, *texts)

    monkeypatch.setattr(sealing, "AEADS", {"AES-256-GCM": Spy})
    monkeypatch.setattr(sealing, "FRAMES_PER_KEY", 4)
    for own in secrets(protect):
        writer = SealedWriter(own)
        for number in range(10):
            frame = writer.parts if number % 2 else writer.whole
            frame(HEADER, b"payload")
            frame(Header(FrameType.HEARTBEAT), b"")
    assert len(used) == len(set(used)) == 2 * 10 * 3
    assert len({key for key, _ in used}) == 2 * 5
    both = [nonce for _, nonce in used[: len(used) // 2]]
    assert len(set(both)) == len(both)  # not even under different keys of one direction


@pytest.mark.parametrize("protect", ["integrity", "encrypt"])
def test_keys_follow_one_another(protect, monkeypatch):
    """Both ends change keys at the same frame, and frames of either side of it are believed."""
    monkeypatch.setattr(sealing, "FRAMES_PER_KEY", 3)
    writer, reader = ends(protect)
    keys = set()
    for number in range(10):
        assert read(reader, writer.whole(HEADER, b"payload"))[1] == b"payload"
        assert writer._keys._secret == reader._keys._secret
        keys.add(writer._keys._secret)
        assert len(keys) == number // 3 + 1


def test_buffers_are_those_of_the_longest_frame():
    """Chunks are sealed and opened in the same memory each time, and targets are not kept."""
    for protect in ("integrity", "encrypt"):
        writer, reader = ends(protect)
        target = bytearray(50_000)
        for length in (10, 50_000, 300, 50_000):
            header = Header(FrameType.DATA, length)
            frame = b"".join(writer.parts(header, bytes(length)))
            read(reader, frame, memoryview(target)[:length])
        for room in (writer._room, reader._room):
            assert len(room._memory) == 50_000 + TAG_SIZE
        target += b"x"  # impossible while it is exported


def scribble(memory, begun):
    """Write to *memory* without a pause, as a program may that shares it."""
    rng = random.Random(1)
    patterns = [bytes([value]) * len(memory) for value in range(8)]
    begun.set()
    while True:
        memory[:] = rng.choice(patterns)


@pytest.mark.parametrize(("protect", "cipher"), WAYS)
def test_memory_that_changes_meanwhile(protect, cipher):
    """A program that writes to what is sent, and to where it is received, breaks no seal."""
    size = 256 * 1024
    with mmap.mmap(-1, size) as memory:
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        vandal = context.Process(target=scribble, args=(memory, begun), daemon=True)
        vandal.start()
        try:
            assert begun.wait(30)
            writer, reader = ends(protect, cipher)
            header = Header(FrameType.DATA, size)
            torn = 0  # payloads that were written to while they were sealed
            deadline = time.monotonic() + 30
            with memoryview(memory) as shared:
                while torn < 20 and time.monotonic() < deadline:
                    frame = b"".join(writer.parts(header, shared))
                    payload = read(reader, frame, shared)[1]
                    torn += len(set(payload[::1024])) > 1
            assert torn == 20
        finally:
            vandal.kill()
            vandal.join()
