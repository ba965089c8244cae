"""Links: what goes in comes out, and whatever the other side does ends in words."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netkit import Recorder, control, data, open_fds, run_until, tcp_pair

from ringd.net import link as links
from ringd.net.link import Link
from ringd.net.loop import Loop
from ringd.wire import frames
from ringd.wire.frames import CHECKSUM, FrameError, FrameType, Header
from ringd.wire.handshake import Peer

PEER = Peer("b", 1, 8, "link")


@pytest.fixture
def loop():
    """A loop that is closed afterwards."""
    made = Loop()
    yield made
    made.close()


def make(loop, sock, side="left", **changes):
    """Return a link and its recorder."""
    recorder = Recorder()
    values = {"address": "x:1", "handler": recorder, "heartbeat": 60.0, "lost_after": 180.0}
    return Link(loop, sock, PEER, side=side, **(values | changes)), recorder


@pytest.fixture
def pair(loop):
    """Two links over one connection, in one loop: (link, recorder) of the right and the left."""
    one, other = tcp_pair()
    right, left = make(loop, one, "right"), make(loop, other)
    yield right, left
    right[0].close("over")
    left[0].close("over")


@pytest.fixture
def raw(loop):
    """A link, its recorder, and the bare socket at the other end."""
    sock, far = tcp_pair()
    link, recorder = make(loop, sock)
    far.settimeout(10)
    yield link, recorder, far
    link.close("over")
    far.close()


def framed(header, payload=b"", number=0):
    """Return the bytes of a frame that *number* others go before."""
    return frames.pack(header, number) + bytes(payload)


SIZES = [0, 1, 47, 48, 8144, 8192, 8193, 16383, 16384, 16385, 40_000, 262_144, 1 << 20]


def test_control_frames_arrive_in_order(loop, pair):
    """Frames of every size arrive whole, and in the order in which they were sent."""
    (right, _), (left, received) = pair
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


def test_a_payload_may_be_reused_at_once(loop, pair):
    """What was given to send is the caller's again, although the other side did not read yet."""
    (right, _), (_, received) = pair
    buffer = bytearray(1 << 20)
    for number in range(12):  # more than the kernel holds
        buffer[:] = bytes([number]) * len(buffer)
        right.send(control(buffer, number), buffer)
    buffer[:] = bytes(len(buffer))
    run_until(loop, lambda: len(received.frames) == 12)
    for number, (_, payload) in enumerate(received.frames):
        assert payload == bytes([number]) * (1 << 20)


def test_data_goes_straight_to_its_buffer(loop, pair):
    """Chunks land where the handler says, and the sender learns when each has left."""
    (right, sender), (_, receiver) = pair
    rng = random.Random(2)
    chunks = [rng.randbytes(size) for size in [*SIZES, 4 << 20]]
    for index, chunk in enumerate(chunks):
        sender.to_send.append(data(index, chunk))
        receiver.buffers[index] = memoryview(bytearray(len(chunk)))
    right.kick()
    run_until(loop, lambda: len(receiver.received) == len(chunks))
    assert sender.sent == receiver.received == list(range(len(chunks)))
    assert [bytes(receiver.buffers[index]) for index in range(len(chunks))] == chunks


def test_control_goes_before_data(loop, pair):
    """A control frame overtakes all data that was not begun."""
    (right, sender), (_, receiver) = pair
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


def test_data_asked_for_inside_callbacks(loop, pair):
    """A handler may kick and send from inside its callbacks: nothing is lost or doubled."""
    (right, sender), (_, receiver) = pair
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


def test_unwanted_data_is_discarded(loop, pair):
    """A chunk without a buffer is read and forgotten; what follows is in step."""
    (right, sender), (_, receiver) = pair
    sender.to_send = [data(0, bytes(300_000)), data(1, b"yes")]
    receiver.buffers = {1: memoryview(bytearray(3))}
    right.kick()
    run_until(loop, lambda: receiver.received == [1])
    assert receiver.asked == [0, 1]
    assert bytes(receiver.buffers[1]) == b"yes"


def test_divert_receiving(loop, raw):
    """Memory of an aborted op is not written any more, in the middle of a payload."""
    link, recorder, far = raw
    target = bytearray(10_000)
    recorder.buffers = {0: memoryview(target), 1: memoryview(bytearray(3))}
    far.sendall(framed(*data(0, b"x" * 10_000, group=3, seq=4))[:5048])
    run_until(loop, lambda: target.count(b"x") == 5000)
    link.divert(3, 5)
    link.divert(3, 4)
    link.divert(3, 4)
    recorder.buffers[0] = None
    target += b"the memory can be taken away"  # impossible while it is exported
    far.sendall(b"x" * 5000 + framed(*data(1, b"end", group=3, seq=4), 1))
    run_until(loop, lambda: recorder.received == [1])
    assert target.count(b"x") == 5000


def test_divert_sending(loop, pair):
    """Memory of an aborted op is not read any more; the receiver gets what was there before."""
    (right, sender), (_, receiver) = pair
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


def test_memory_is_free_in_callbacks(loop, pair):
    """In data_received and data_sent the link has let go of the memory already."""
    (right, sender), (_, receiver) = pair
    source, target = bytearray(100_000), bytearray(100_000)
    freed = []
    receiver.data_buffer = lambda _link, _header: memoryview(target)
    receiver.data_received = lambda _link, _header: (target.clear(), freed.append("target"))
    sender.data_sent = lambda _link, _header: (source.clear(), freed.append("source"))
    sender.to_send = [data(0, source)]
    right.kick()
    run_until(loop, lambda: len(freed) == 2)


@pytest.mark.parametrize("kind", [FrameType.DATA, FrameType.GROUP])
def test_checksums(loop, raw, kind):
    """A payload that differs from its checksum never reaches the handler."""
    _, recorder, far = raw
    payload = b"payload" * 3000
    right = Header(kind, len(payload), flags=CHECKSUM, payload_crc=frames.checksum(payload))
    recorder.buffers = {0: memoryview(bytearray(len(payload)))}
    far.sendall(framed(right, payload) + framed(right, b"P" + payload[1:], 1))
    run_until(loop, lambda: recorder.lost)
    assert len(recorder.received) + len(recorder.frames) == 1
    assert recorder.lost == [f"protocol error: the checksum of a {kind.name} payload is wrong"]


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\n" * 4, "protocol error: magic 0x4547"),
        (frames.pack(control(b""))[:-1] + b"\0", "protocol error: the header's checksum"),
    ],
)
def test_garbage(loop, raw, garbage, reason):
    """A peer that is out of step is dropped, once, with the reason; good frames count."""
    link, recorder, far = raw
    far.sendall(framed(control(b"good"), b"good") + garbage)
    run_until(loop, lambda: recorder.lost)
    assert [payload for _, payload in recorder.frames] == [b"good"]
    assert len(recorder.lost) == 1
    assert recorder.lost[0].startswith(reason)
    assert link.closed
    assert far.recv(1) == b""


def test_the_handler_may_object(loop, raw):
    """A FrameError of the handler ends the link like one of the decoder."""
    _, recorder, far = raw

    def object_to(_link, _header):
        raise FrameError("chunk 7 out of order")

    recorder.data_buffer = object_to
    far.sendall(framed(*data(7, b"abc")))
    run_until(loop, lambda: recorder.lost)
    assert recorder.lost == ["protocol error: chunk 7 out of order"]


@pytest.mark.parametrize("cut", [0, 1, 47, 48, 49, 5000])
def test_cut_anywhere(loop, raw, cut):
    """A connection that ends, wherever in a frame, is reported once; half a chunk is not given."""
    _, recorder, far = raw
    recorder.buffers = {0: memoryview(bytearray(10_000))}
    far.sendall(framed(*data(0, bytes(10_000)))[:cut])
    far.close()
    run_until(loop, lambda: recorder.lost)
    run_until(loop, lambda: True)
    assert recorder.lost == ["connection closed by peer"]
    assert recorder.received == []


def test_reset(loop, raw):
    """A reset is said in words, with its number."""
    _, recorder, far = raw
    far.setsockopt(links.socket.SOL_SOCKET, links.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    run_until(loop, lambda: recorder.lost)
    assert recorder.lost[0].startswith("connection reset by peer (errno ")


def test_goodbye(loop, pair):
    """The reason of a close reaches the other side, behind all that was said before."""
    (right, closer), (left, told) = pair
    right.send(control(b"last words"), b"last words")
    right.close("upgrade\n" + "é" * 200, goodbye=True)
    run_until(loop, lambda: told.lost)
    assert [payload for _, payload in told.frames] == [b"last words"]
    assert told.lost == ["closed by peer: upgrade?" + "é" * 124]
    assert closer.lost == []
    assert left.closed


def test_close_is_final(loop, pair):
    """After close nothing is called or sent, and closing again is harmless."""
    (right, closer), (left, told) = pair
    right.close("first")
    right.close("second", goodbye=True)
    right.send(control(b"x"), b"x")
    right.kick()
    right.divert(0, 0)
    run_until(loop, lambda: told.lost)
    assert told.lost == ["connection closed by peer"]
    assert closer.lost == []
    left.close("later")


def test_close_before_the_loss_is_told(loop, raw):
    """Whoever closes a link himself does not hear of its loss afterwards."""
    link, recorder, far = raw
    far.sendall(b"\0" * 48)
    while not link.closed:
        link._read()
    link.close("mine")
    run_until(loop, lambda: True)
    assert recorder.lost == []


@pytest.mark.parametrize("numbers", [(0, 2), (0, 0), (1,)])
def test_missing_and_repeated_frames(loop, raw, numbers):
    """A frame that is missing, or comes twice, is found by its successor at the latest."""
    _, recorder, far = raw
    far.sendall(b"".join(framed(control(b"good"), b"good", number) for number in numbers))
    run_until(loop, lambda: recorder.lost)
    assert len(recorder.frames) == len(numbers) - 1
    assert recorder.lost == ["protocol error: the header's checksum is wrong"]


def test_close_inside_callbacks(loop, raw):
    """A handler may close the link from inside a callback; later frames are not delivered."""
    link, recorder, far = raw
    recorder.on_frame = lambda link, _header: link.close("enough")
    far.sendall(framed(control(b"1"), b"1") + framed(control(b"2"), b"2", 1))
    run_until(loop, lambda: link.closed)
    assert [payload for _, payload in recorder.frames] == [b"1"]
    assert recorder.lost == []


def test_what_the_peer_said_before_it_went_is_read(loop, raw):
    """When writing fails, frames and the goodbye that are still unread come first."""
    link, recorder, far = raw
    text = b"restart"
    far.sendall(framed(control(b"1"), b"1") + framed(Header(FrameType.BYE, len(text)), text, 1))
    far.close()
    while not link._mute:  # the second write meets the closed socket
        link.send(control(bytes(20_000)), bytes(20_000))
        link._write()
    run_until(loop, lambda: recorder.lost)
    assert [payload for _, payload in recorder.frames] == [b"1"]
    assert recorder.lost == ["closed by peer: restart"]


def test_leftover(loop):
    """Bytes that came behind the handshake are frames like others."""
    sock, far = tcp_pair()
    big = b"z" * 20_000
    stream = framed(control(b"1"), b"1") + framed(control(big), big, 1)
    link, recorder = make(loop, sock, leftover=stream[:9000])
    assert recorder.frames == []
    far.sendall(stream[9000:])
    run_until(loop, lambda: len(recorder.frames) == 2)
    assert [payload for _, payload in recorder.frames] == [b"1", big]
    assert link.bytes_in == len(stream)
    link.close("over")
    link, recorder = make(loop, tcp_pair()[0], leftover=b"\0" * 48)
    run_until(loop, lambda: recorder.lost)
    far.close()


def test_trickle(loop, raw):
    """A peer that sends byte by byte is understood."""
    _, recorder, far = raw
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
    link, recorder = make(loop, sock)
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
        size = rng.choice([1, 10, 48, 100, 5000, 30_000])
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


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=48, max_size=300), st.integers(0, 3))
def test_random_bytes(garbage, good):
    """Random bytes behind good frames end the link in words, and nothing else."""
    loop = Loop()
    sock, far = tcp_pair()
    _, recorder = make(loop, sock)
    stream = b"".join(framed(control(b"good"), b"good", number) for number in range(good))
    far.sendall(stream + garbage)
    run_until(loop, lambda: recorder.lost)
    assert len(recorder.frames) == good
    assert recorder.lost[0].startswith("protocol error: ")
    far.close()
    loop.close()


def test_a_peer_that_does_not_read(loop, raw):
    """Sending to a peer that reads nothing never blocks; all arrives when it reads."""
    link, _, far = raw
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


def test_heartbeats_keep_an_idle_link(loop):
    """Two idle sides hear each other, know the round trip, and sleep in between."""
    one, other = tcp_pair()
    right, at_right = make(loop, one, "right", heartbeat=0.03)
    left, at_left = make(loop, other, heartbeat=0.03)
    turns = []

    def look():
        turns.append(1)
        if min(right.bytes_in, left.bytes_in) > 12 * 48:
            loop.stop()
        return False

    loop.add_prepare(look)
    loop.run()
    # About ten heartbeats of three frames; a loop that spins turns thousands of times.
    assert len(turns) < 150
    assert (at_right.lost, at_left.lost) == ([], [])
    for link in (right, left):
        assert link.round_trip is not None
        assert link.round_trip >= 0
        assert link.last_heard > link.since
        assert not link._blocked
    right.close("over")
    left.close("over")


def test_heartbeats_are_not_for_the_handler(loop, pair):
    """Heartbeats and their answers are the link's own business."""
    (right, at_right), (left, at_left) = pair
    run_until(loop, lambda: right.round_trip is not None and left.round_trip is not None)
    assert at_right.frames == at_left.frames == []


def test_forged_heartbeats(loop, raw):
    """An answer to a heartbeat that was never sent measures nothing."""
    link, _, far = raw
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=2**64 - 1, group=2**64 - 1, index=1)))
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=5, index=2), number=1))
    far.sendall(framed(Header(FrameType.HEARTBEAT, seq=5, index=99), number=2))
    run_until(loop, lambda: link.bytes_in == 3 * 48)
    assert link.round_trip is None
    assert not link.closed


def test_a_silent_peer_is_lost(loop):
    """A peer that says nothing is lost after the time that was given to it."""
    sock, far = tcp_pair()
    link, recorder = make(loop, sock, heartbeat=0.05, lost_after=0.15)
    run_until(loop, lambda: recorder.lost)
    assert loop.now() - link.since >= 0.15
    assert len(recorder.lost) == 1
    assert recorder.lost[0].startswith("nothing heard for ")
    far.close()


def test_a_side_that_only_receives_is_heard(loop):
    """A side that gets chunk after chunk and has nothing to send still says that it lives."""
    one, other = tcp_pair()
    right, sender = make(loop, one, "right", heartbeat=0.03)
    left, receiver = make(loop, other, heartbeat=0.03)
    receiver.data_buffer = lambda _link, header: memoryview(bytearray(header.length))
    chunk = memoryview(bytes(1000))
    run_until(loop, lambda: right.round_trip is not None)
    heard = right.bytes_in

    def feed():
        sender.to_send.append(data(0, chunk))
        right.kick()
        loop.call_later(0.005, feed)

    feed()
    run_until(loop, lambda: right.bytes_in > heard + 4 * 48 and len(receiver.received) > 10)
    right.close("over")
    left.close("over")


def test_our_own_pause_is_not_the_peers_silence(loop, monkeypatch):
    """After this process was asleep, the peer is not blamed for it."""
    sock, far = tcp_pair()
    link, recorder = make(loop, sock, heartbeat=1.0, lost_after=3.0)
    run_until(loop, lambda: True)
    real = loop.now
    monkeypatch.setattr(loop, "now", lambda: real() + 100)
    loop.call_soon(loop.stop)
    loop.run()
    loop.call_soon(loop.stop)
    loop.run()
    assert recorder.lost == []
    assert not link.closed
    monkeypatch.setattr(loop, "now", lambda: real() + 104.5)
    run_until(loop, lambda: recorder.lost)
    far.close()
    assert recorder.lost[0].startswith("nothing heard for ")


def test_bugs_of_the_caller(loop, raw):
    """A length that is not the payload's is never sent."""
    link, recorder, far = raw
    with pytest.raises(ValueError, match="2 bytes of payload, 3 announced"):
        link.send(Header(FrameType.GROUP, 3), b"ab")
    recorder.to_send = [(Header(FrameType.DATA, 3), memoryview(b"ab"))]
    with pytest.raises(ValueError, match="2 bytes, 3 announced"):
        link.kick()
    recorder.buffers = {0: memoryview(bytearray(2))}
    far.sendall(framed(*data(0, b"abc")))
    with pytest.raises(ValueError, match="a buffer of 2 for a payload of 3"):
        run_until(loop, lambda: recorder.received)


def test_no_descriptor_is_left(loop):
    """Links that are closed, lost or cut leave nothing open."""
    before = open_fds()
    for number in range(50):
        one, other = tcp_pair()
        right, _ = make(loop, one, "right")
        _, recorder = make(loop, other)
        right.close("over", goodbye=number % 2 == 0)
        run_until(loop, lambda recorder=recorder: recorder.lost)
    assert open_fds() == before
    assert loop._pause_callbacks == []
