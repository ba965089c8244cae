"""How a link ends: whatever the other side does, once, in words, and with nothing left open."""

from __future__ import annotations

import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netkit import control, data, framed, make_link, open_fds, run_until, tcp_pair

from ringd.loop import Loop
from ringd.net import link as link_module
from ringd.net import link as links
from ringd.wire.link import frames
from ringd.wire.link.frames import CHECKSUM, HEADER_SIZE, FrameError, FrameType, Header


@pytest.mark.parametrize("kind", [FrameType.DATA, FrameType.GROUP])
def test_checksums(loop, raw_link, kind):
    """A payload that differs from its checksum never reaches the handler."""
    _, recorder, far = raw_link
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
def test_garbage(loop, raw_link, garbage, reason):
    """A peer that is out of step is dropped, once, and told the reason; good frames count."""
    _, recorder, far = raw_link
    far.sendall(framed(control(b"good"), b"good") + garbage)
    run_until(loop, lambda: recorder.lost)
    assert [payload for _, payload in recorder.frames] == [b"good"]
    assert len(recorder.lost) == 1
    assert recorder.lost[0].startswith(reason)
    assert reason.encode() in far.recv(4096)
    assert far.recv(1) == b""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=HEADER_SIZE, max_size=300), st.integers(0, 3))
def test_random_bytes(garbage, good):
    """Random bytes behind good frames end the link in words, and nothing else."""
    loop = Loop()
    sock, far = tcp_pair()
    _, recorder = make_link(loop, sock)
    stream = b"".join(framed(control(b"good"), b"good", number) for number in range(good))
    far.sendall(stream + garbage)
    run_until(loop, lambda: recorder.lost)
    assert len(recorder.frames) == good
    assert recorder.lost[0].startswith("protocol error: ")
    far.close()
    loop.close()


@pytest.mark.parametrize("numbers", [(0, 2), (0, 0), (1,)])
def test_missing_and_repeated_frames(loop, raw_link, numbers):
    """A frame that is missing, or comes twice, is found by its successor at the latest."""
    _, recorder, far = raw_link
    far.sendall(b"".join(framed(control(b"good"), b"good", number) for number in numbers))
    run_until(loop, lambda: recorder.lost)
    assert len(recorder.frames) == len(numbers) - 1
    assert recorder.lost == ["protocol error: the header's checksum is wrong"]


def test_the_handler_may_object(loop, raw_link):
    """A FrameError of the handler ends the link like one of the decoder."""
    _, recorder, far = raw_link

    def object_to(_link, _header):
        raise FrameError("chunk 7 out of order")

    recorder.data_buffer = object_to
    far.sendall(framed(*data(7, b"abc")))
    run_until(loop, lambda: recorder.lost)
    assert recorder.lost == ["protocol error: chunk 7 out of order"]


@pytest.mark.parametrize("cut", [0, 1, 51, 52, 53, 5000])
def test_cut_anywhere(loop, raw_link, cut):
    """A connection that ends, wherever in a frame, is reported once; half a chunk is not given."""
    _, recorder, far = raw_link
    recorder.buffers = {0: memoryview(bytearray(10_000))}
    far.sendall(framed(*data(0, bytes(10_000)))[:cut])
    far.close()
    run_until(loop, lambda: recorder.lost)
    run_until(loop, lambda: True)
    assert recorder.lost == ["connection closed by peer"]
    assert recorder.received == []


def test_reset(loop, raw_link):
    """A reset is said in words, with its number."""
    _, recorder, far = raw_link
    far.setsockopt(links.socket.SOL_SOCKET, links.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    run_until(loop, lambda: recorder.lost)
    assert recorder.lost[0].startswith("connection reset by peer (errno ")


def test_what_the_peer_said_before_it_went_is_read(loop, raw_link):
    """When writing fails, frames and the goodbye that are still unread come first."""
    link, recorder, far = raw_link
    text = b"restart"
    far.sendall(framed(control(b"1"), b"1") + framed(Header(FrameType.BYE, len(text)), text, 1))
    far.close()
    while not link._mute:  # the second write meets the closed socket
        link.send(control(bytes(20_000)), bytes(20_000))
        link._write()
    run_until(loop, lambda: recorder.lost)
    assert [payload for _, payload in recorder.frames] == [b"1"]
    assert recorder.lost == ["closed by peer: restart"]


def test_goodbye(loop, link_pair):
    """The reason of a close reaches the other side, behind all that was said before."""
    (right, closer), (_, told) = link_pair
    right.send(control(b"last words"), b"last words")
    right.close("upgrade\n" + "é" * 200, goodbye=True)
    run_until(loop, lambda: told.lost)
    assert [payload for _, payload in told.frames] == [b"last words"]
    assert told.lost == ["closed by peer: upgrade?" + "é" * 124]
    assert closer.lost == []


def test_close_is_final(loop, link_pair):
    """After close nothing is called or sent, and closing again is harmless."""
    (right, closer), (left, told) = link_pair
    right.close("first")
    right.close("second", goodbye=True)
    right.send(control(b"x"), b"x")
    right.kick()
    right.divert(0, 0)
    run_until(loop, lambda: told.lost)
    assert told.lost == ["connection closed by peer"]
    assert closer.lost == []
    left.close("later")


def test_close_before_the_loss_is_told(loop, raw_link):
    """Whoever closes a link himself does not hear of its loss afterwards."""
    link, recorder, far = raw_link
    far.sendall(bytes(HEADER_SIZE))
    while link._loss is None:
        link._read()
    link.close("mine")
    run_until(loop, lambda: True)
    assert recorder.lost == []


def test_close_inside_callbacks(loop, raw_link):
    """A handler may close the link from inside a callback; later frames are not delivered."""
    _, recorder, far = raw_link
    recorder.on_frame = lambda link, _header: link.close("enough")
    far.sendall(framed(control(b"1"), b"1") + framed(control(b"2"), b"2", 1))
    run_until(loop, lambda: recorder.frames)
    assert far.recv(1) == b""
    assert [payload for _, payload in recorder.frames] == [b"1"]
    assert recorder.lost == []


def test_bugs_of_the_caller(loop, raw_link):
    """A length that is not the payload's is never sent."""
    link, recorder, far = raw_link
    with pytest.raises(ValueError, match="2 bytes, 3 announced"):
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
        right, _ = make_link(loop, one, "right")
        _, recorder = make_link(loop, other)
        right.close("over", goodbye=number % 2 == 0)
        run_until(loop, lambda recorder=recorder: recorder.lost)
    assert open_fds() == before
    assert loop._pause_callbacks == []


@pytest.mark.parametrize(
    ("last", "cause", "explained"),
    [
        (b"", "closed", False),
        (bytes(HEADER_SIZE), "protocol", True),  # no frame
        (framed(Header(FrameType.BYE, 4), b"why?"), "goodbye", True),
    ],
)
def test_it_is_known_whether_somebody_said_why(loop, raw_link, last, cause, explained):
    """A link that one side ended for a reason is told from one that was cut off."""
    link, recorder, far = raw_link
    far.sendall(last)
    far.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: recorder.lost)
    assert (link.cause, link.explained) == (cause, explained)


def test_who_does_not_read_is_given_up(loop, raw_link, monkeypatch):
    """What waits for a peer is bounded, so that a slow one costs no more than that."""
    monkeypatch.setattr(link_module, "MAX_WAITING", 1 << 20)
    link, recorder, _ = raw_link
    payload = bytes(1000)
    for _ in range(20_000):
        link.send(control(payload), payload)
        loop._iterate(0.0)
        if recorder.lost:
            break
    run_until(loop, lambda: recorder.lost)
    assert recorder.lost[0].startswith("it does not read")
