"""Links: what goes in at one end comes out at the other, in order and untouched."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import random
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netkit import PEER, control, data, framed, make_link, run_until, secrets, tcp_pair

from ringd.loop import Loop
from ringd.net.incoming import READ_BUFFER
from ringd.net.link import SHORT_TURN, TURN, TURN_SECONDS, UNSENT
from ringd.wire.link.frames import HEADER_SIZE
from ringd.wire.link.framing import ALIGNMENT
from ringd.wire.link.sealing import SealedWriter

SIOCOUTQNSD = 0x894B
"""Of linux/sockios.h: the bytes of a socket that are not sent yet."""
LARGEST_SEGMENT = 64 << 10
"""Bytes that TCP makes one of, to be cut by the network's card."""

SIZES = [0, 1, 51, 52, 8140, 8192, 8193, 16383, 16384, 16385, 40_000, 262_144, 1 << 20]


def test_control_frames_arrive_in_order(loop, link_pair):
    """Frames of every size arrive whole, and in the order in which they were sent."""
    (right, _), (left, received) = link_pair
    rng = random.Random(1)
    sent = []
    for number in range(200):
        payload = rng.randbytes(SIZES[number % len(SIZES)])
        header = control(payload, number)
        right.send(header, memoryview(bytearray(payload)))
        sent.append((header, payload))
    run_until(loop, lambda: len(received.frames) == len(sent))
    assert received.frames == sent
    run_until(loop, lambda: (left.bytes_in, right.bytes_in) == (right.bytes_out, left.bytes_out))


def test_small_frames_take_turns_with_all_else(loop, link_pair, monkeypatch):
    """A turn is bounded in time, too: a thousand small calls' messages do not hold the loop."""
    (right, _), (_, received) = link_pair
    clock = itertools.count()
    monkeypatch.setattr(loop, "now", lambda: next(clock) * TURN_SECONDS / 3)
    for number in range(2000):
        right.send(control(b"x" * 80, number), b"x" * 80)
    most = 0
    while len(received.frames) < 2000:
        before = len(received.frames)
        loop._iterate(loop._settle())
        most = max(most, len(received.frames) - before)
    assert most <= 4 * READ_BUFFER // 128


def test_what_somebody_waits_for_leaves_at_once(loop, link_pair, monkeypatch):
    """Once in each iteration: what follows in the same one leaves together, at its end."""
    (right, _), (_, received) = link_pair
    for _ in range(2):  # what a link says first
        loop._settle()
        loop._iterate(0.0)
    begun = right.bytes_out
    pushes = []
    push = right._push
    monkeypatch.setattr(right, "_push", lambda: pushes.append(push()) or pushes[-1])
    for turn in range(2):
        for number in range(4):
            right.send(control(b"x", number), b"x")
            right.hurry()
        assert len(pushes) == 2 * turn + 1
        assert right.bytes_out - begun == sum(pushes)
        loop._iterate(loop._settle())
        assert len(pushes) == 2 * turn + 2
        assert pushes[-1] == 3 * pushes[0]
    right.hurry()  # where there is nothing
    loop._settle()
    assert len(pushes) == 4
    run_until(loop, lambda: len(received.frames) == 8)
    assert [header.seq for header, _ in received.frames] == [0, 1, 2, 3] * 2


def test_no_chunk_leaves_in_a_hurry(loop, link_pair):
    """It would hold up what is to be done here; it leaves at the end, as ever."""
    (right, sender), (_left, receiver) = link_pair
    run_until(loop, lambda: not right._pull)
    chunks = [data(0, bytes(1000))]
    sent = []
    buffer = memoryview(bytearray(1000))
    sender.next_data = lambda _link: chunks.pop() if chunks else None
    sender.data_sent = lambda _link, header: sent.append(header)
    receiver.data_buffer = lambda _link, _header: buffer
    receiver.data_received = lambda _link, _header: None
    right.send(control(b"x", 1), b"x")
    right._pull = True
    begun = right.bytes_out
    right.hurry()
    assert right.bytes_out > begun
    assert len(chunks) == 1
    loop._settle()
    assert [header.length for header in sent] == [1000]


@pytest.mark.parametrize(("last_small_call", "turn"), [(-math.inf, TURN), (math.inf, SHORT_TURN)])
@pytest.mark.parametrize("length", [1000, 4 << 20])
def test_endless_data_takes_turns_with_all_else(loop, link_pair, length, last_small_call, turn):
    """However much there is to read and to write, the loop looks at others after a few of it."""
    (right, sender), (left, receiver) = link_pair
    for link in right, left:
        link._small_calls.at = last_small_call
    chunk = bytes(length)
    buffer = memoryview(bytearray(length))
    receiver.data_buffer = lambda _link, _header: buffer
    sender.next_data = lambda _link: data(0, chunk)
    sender.data_sent = receiver.data_received = lambda _link, _header: None
    right.kick()
    most = 0
    while left.bytes_in < 64 * turn:
        before = right.bytes_out, left.bytes_in
        loop._iterate(loop._settle())
        most = max(most, right.bytes_out - before[0], left.bytes_in - before[1])
    assert 0 < most < turn + length + 2 * READ_BUFFER


@pytest.mark.skipif(sys.platform != "linux", reason="macOS says it of the events alone")
def test_little_waits_in_the_system(loop, raw_link):
    """What it has taken and cannot send, no later message overtakes."""
    link, sender, _ = raw_link
    chunk = bytes(512 << 10)
    sender.next_data = lambda _link: data(0, chunk)
    link.kick()
    for _ in range(200):
        loop._iterate(0.0)
    unsent = fcntl.ioctl(link._sock, SIOCOUTQNSD, bytes(4))
    assert link.bytes_out > 0
    assert int.from_bytes(unsent, sys.byteorder) <= UNSENT + LARGEST_SEGMENT
    assert len(sender.sent) == link.bytes_out // (len(chunk) + HEADER_SIZE)


def test_a_payload_may_be_reused_at_once(loop, link_pair):
    """What was given to send is the caller's again, although the other side did not read yet."""
    (right, _), (_, received) = link_pair
    buffer = bytearray(1 << 20)
    for number in range(12):  # more than the kernel holds
        buffer[:] = bytes([number]) * len(buffer)
        right.send(control(buffer, number), buffer)
    buffer[:] = bytes(len(buffer))
    run_until(loop, lambda: len(received.frames) == 12)
    for number, (_, payload) in enumerate(received.frames):
        assert payload == bytes([number]) * (1 << 20)


@pytest.mark.parametrize("message", [1, 16, 61, 300])
def test_a_tensor_behind_a_message(loop, link_pair, message):
    """It is sent from where it stands, and stands at a multiple of 16 where it is received."""
    (right, _), (_, received) = link_pair
    head = bytes(message)
    for length in SIZES[1:-1]:
        header = msgspec.structs.replace(control(bytes(message + length)), index=message)
        right.send(header, head, memoryview(np.full(length, 7, np.uint8)))
    run_until(loop, lambda: len(received.frames) == len(SIZES) - 2)
    for length, (header, payload) in zip(SIZES[1:-1], received.frames, strict=True):
        tensor = np.frombuffer(payload[header.index :], np.uint8)
        assert tensor.ctypes.data % ALIGNMENT == 0
        assert tensor.tolist() == [7] * length


def test_data_goes_straight_to_its_buffer(loop, link_pair):
    """Chunks land where the handler says, and the sender learns when each has left."""
    (right, sender), (_, receiver) = link_pair
    rng = random.Random(2)
    chunks = [rng.randbytes(size) for size in [*SIZES, 4 << 20]]
    for index, chunk in enumerate(chunks):
        sender.to_send.append(data(index, chunk))
        receiver.buffers[index] = memoryview(bytearray(len(chunk)))
    right.kick()
    run_until(loop, lambda: len(receiver.received) == len(chunks))
    assert sender.sent == receiver.received == list(range(len(chunks)))
    assert [bytes(receiver.buffers[index]) for index in range(len(chunks))] == chunks


def test_a_link_keeps_no_secrets(link_pair):
    """From those that it began with, all keys that ever follow could be found."""
    for link, _ in link_pair:
        assert link.peer.secrets is None


def test_control_goes_before_data(loop, link_pair):
    """A control frame overtakes all data that was not begun."""
    (right, sender), (_, receiver) = link_pair
    order = []
    receiver.on_frame = lambda _link, header: order.append(("control", header.seq))
    receiver.data_received = lambda _link, header: order.append(("data", header.index))
    chunk = bytes(4 << 20)
    for index in range(8):
        receiver.buffers[index] = memoryview(bytearray(len(chunk)))
        sender.to_send.append(data(index, chunk))
    right.kick()
    assert 0 < len(sender.to_send) < 8  # the socket is full
    begun = 8 - len(sender.to_send)
    right.send(control(b"now", 5), b"now")
    run_until(loop, lambda: len(order) == 9)
    assert order.index(("control", 5)) == begun


def test_data_asked_for_inside_callbacks(loop, link_pair):
    """A handler may kick and send from inside its callbacks: nothing is lost or doubled."""
    (right, sender), (_, receiver) = link_pair
    receiver.buffers = {index: memoryview(bytearray(1000)) for index in range(50)}
    sent = []

    def data_sent(link, header):
        sent.append(header.index)
        if header.index < 49:
            sender.to_send.append(data(header.index + 1, bytes(1000)))
        link.send(control(b"c", header.index), b"c")
        link.kick()

    sender.data_sent = data_sent
    sender.to_send.append(data(0, bytes(1000)))
    right.kick()
    run_until(loop, lambda: len(receiver.received) == 50 and len(receiver.frames) == 50)
    assert sent == receiver.received == list(range(50))


def test_unwanted_data_is_discarded(loop, link_pair):
    """A chunk without a buffer is read and forgotten; what follows is in step."""
    (right, sender), (_, receiver) = link_pair
    sender.to_send = [data(0, bytes(300_000)), data(1, b"yes")]
    receiver.buffers = {1: memoryview(bytearray(3))}
    right.kick()
    run_until(loop, lambda: receiver.received == [1])
    assert receiver.asked == [0, 1]
    assert bytes(receiver.buffers[1]) == b"yes"


def test_divert_receiving(loop, raw_link):
    """Memory of an aborted op is not written any more, in the middle of a payload."""
    link, recorder, far = raw_link
    target = bytearray(10_000)
    recorder.buffers = {0: memoryview(target), 1: memoryview(bytearray(3))}
    far.sendall(framed(*data(0, b"x" * 10_000, group=3, seq=4))[: HEADER_SIZE + 5000])
    run_until(loop, lambda: target.count(b"x") == 5000)
    link.divert(3, 5)
    link.divert(3, 4)
    link.divert(3, 4)
    recorder.buffers[0] = None
    target += b"the memory can be taken away"  # impossible while it is exported
    far.sendall(b"x" * 5000 + framed(*data(1, b"end", group=3, seq=4), 1))
    run_until(loop, lambda: recorder.received == [1])
    assert target.count(b"x") == 5000


@pytest.mark.parametrize("protect", ["integrity", "encrypt"])
def test_divert_receiving_sealed(loop, protect):
    """Nothing of a sealed chunk reaches memory that was taken away meanwhile."""
    near, far = secrets(protect)
    writer = SealedWriter(near)
    sock, sender = tcp_pair()
    link, recorder = make_link(loop, sock, peer=replace(PEER, secrets=far))
    target = bytearray(10_000)
    recorder.buffers = {0: memoryview(target), 1: memoryview(bytearray(3))}
    first = writer.whole(*data(0, b"x" * 10_000, group=3, seq=4))
    sender.sendall(first[:5000])
    run_until(loop, lambda: link.bytes_in == 5000)
    link.divert(3, 4)
    recorder.buffers[0] = None
    target += b"the memory can be taken away"  # impossible while it is exported
    sender.sendall(first[5000:] + writer.whole(*data(1, b"end", group=3, seq=4)))
    run_until(loop, lambda: recorder.received == [1])
    assert target.count(b"x") == 0
    link.close("over")
    sender.close()


def test_divert_sending(loop, link_pair):
    """Memory of an aborted op is not read any more; the receiver gets what was there before."""
    (right, sender), (_, receiver) = link_pair
    chunk = bytearray(b"x" * (4 << 20))
    receiver.buffers = {index: memoryview(bytearray(len(chunk))) for index in range(4)}
    sender.to_send = [data(index, chunk, group=3, seq=4) for index in range(4)]
    right.kick()
    begun = 3 - len(sender.to_send)
    sender.to_send = []
    right.divert(3, 4)
    chunk.clear()  # impossible while it is exported
    run_until(loop, lambda: begun in receiver.received)
    assert bytes(receiver.buffers[begun]) == b"x" * (4 << 20)
    assert sender.sent == list(range(begun))


def test_memory_is_free_in_callbacks(loop, link_pair):
    """In data_received and data_sent the link has let go of the memory already."""
    (right, sender), (_, receiver) = link_pair
    source, target = bytearray(100_000), bytearray(100_000)
    freed = []
    receiver.data_buffer = lambda _link, _header: memoryview(target)
    receiver.data_received = lambda _link, _header: (target.clear(), freed.append("target"))
    sender.data_sent = lambda _link, _header: (source.clear(), freed.append("source"))
    sender.to_send = [data(0, source)]
    right.kick()
    run_until(loop, lambda: len(freed) == 2)


def test_leftover(loop):
    """Bytes that came behind the handshake are frames like others."""
    sock, far = tcp_pair()
    big = b"z" * 20_000
    stream = framed(control(b"1"), b"1") + framed(control(big), big, 1)
    link, recorder = make_link(loop, sock, leftover=stream[:9000])
    assert recorder.frames == []
    far.sendall(stream[9000:])
    run_until(loop, lambda: len(recorder.frames) == 2)
    assert [payload for _, payload in recorder.frames] == [b"1", big]
    assert link.bytes_in == len(stream)
    link.close("over")
    link, recorder = make_link(loop, tcp_pair()[0], leftover=bytes(HEADER_SIZE))
    run_until(loop, lambda: recorder.lost)
    far.close()


def test_trickle(loop, raw_link):
    """A peer that sends byte by byte is understood."""
    _, recorder, far = raw_link
    stream = framed(control(b"abc"), b"abc") + framed(*data(0, b"defg"), 1)
    recorder.buffers = {0: memoryview(bytearray(4))}
    for byte in stream:
        far.sendall(bytes([byte]))
        run_until(loop, lambda: True)
    run_until(loop, lambda: recorder.received == [0])
    assert recorder.frames == [(control(b"abc"), b"abc")]
    assert bytes(recorder.buffers[0]) == b"defg"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(["control", "data", "discard"]), st.integers(0, 20_000)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 2**32),
)
def test_any_frames_any_cuts(plan, seed):
    """Any sequence of frames is understood, wherever the stream is cut."""
    rng = random.Random(seed)
    loop = Loop()
    sock, far = tcp_pair()
    link, recorder = make_link(loop, sock)
    stream, payloads = b"", []
    for index, (kind, size) in enumerate(plan):
        payload = rng.randbytes(size)
        payloads.append(payload)
        if kind == "control":
            stream += framed(control(payload, index), payload, index)
        else:
            stream += framed(*data(index, payload), index)
            if kind == "data":
                recorder.buffers[index] = memoryview(bytearray(size))
    while stream:
        size = rng.choice([1, 10, HEADER_SIZE, 100, 5000, 30_000])
        far.sendall(stream[:size])
        stream = stream[size:]
        run_until(loop, lambda: True)
    kinds = [kind for kind, _ in plan]
    run_until(
        loop,
        lambda: (
            (len(recorder.frames), len(recorder.received))
            == (kinds.count("control"), kinds.count("data"))
        ),
    )
    for header, payload in recorder.frames:
        assert payload == payloads[header.seq]
    for index in recorder.received:
        assert bytes(recorder.buffers[index]) == payloads[index]
    assert recorder.lost == []
    link.close("over")
    far.close()
    loop.close()


def test_a_peer_that_does_not_read(loop, raw_link):
    """Sending to a peer that reads nothing never blocks; all arrives when it reads."""
    link, _, far = raw_link
    payload = bytes(100_000)
    for number in range(200):
        link.send(control(payload, number), payload)
    expected = b"".join(framed(control(payload, i), payload, i) for i in range(200))
    far.setblocking(False)
    got = bytearray()

    def read():
        with contextlib.suppress(BlockingIOError):
            got.extend(far.recv(1 << 20))
        return len(got) >= len(expected)

    run_until(loop, read)
    assert got == expected
