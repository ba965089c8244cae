"""The daemon's end of a call socket, and who may say what there."""

import numpy as np
import pytest
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually

from ringd.border import callsocket
from ringd.border.server import Limits
from ringd.wire.border import messages as border
from ringd.wire.border.stream import LENGTH

PAYLOAD = np.arange(2, dtype=np.float32).tobytes()
TWICE = (2 * np.arange(2, dtype=np.float32)).tobytes()


@pytest.fixture
def daemon(tmp_path):
    """Give a fake daemon whose messages may have 100,000 bytes."""
    with FakeDaemon(tmp_path / "s", limits=Limits(max_message=100_000)) as daemon:
        yield daemon


def test_who_says_so_is_spoken_to_there_alone(daemon):
    """From the answer to its Attach on, which comes over ZeroMQ."""
    with Raw(daemon, call_socket=True) as raw:
        raw.call(raw.submit(), PAYLOAD)
        assert (raw.receive().seq, raw.payload) == (0, TWICE)
        daemon.broadcast(border.RingState("forming", 8))
        assert raw.receive() == border.RingState("forming", 8)
        assert not raw.dealer.poll(50)


def test_who_does_not_say_so_is_spoken_to_over_zeromq(daemon):
    """The documented socket suffices."""
    with Raw(daemon) as raw:
        raw.send(raw.submit(), PAYLOAD)
        assert (raw.receive().seq, raw.payload) == (0, TWICE)


@pytest.mark.parametrize("piece", [1, 3, 7, 1000])
def test_messages_come_in_any_pieces(daemon, piece):
    """Cut anywhere, or several at once."""
    with Raw(daemon, call_socket=True) as raw:
        frames = [border.pack(raw.submit(seq=seq), PAYLOAD) for seq in range(5)]
        stream = b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)
        for start in range(0, len(stream), piece):
            raw.calls.sendall(stream[start : start + piece])
        assert [raw.receive().seq for _ in frames] == [0, 1, 2, 3, 4]


def test_large_messages_go_both_ways(daemon):
    """What is larger than one read, and than the socket holds."""
    large = np.arange(20_000, dtype=np.float32)
    with Raw(daemon, call_socket=True) as raw:
        call = border.Call("all_reduce", "sum", "float32", large.shape, "")
        for seq in range(20):
            raw.call(raw.submit(seq=seq, call=call), large.tobytes())
        for _ in range(20):
            raw.receive()
            np.testing.assert_array_equal(np.frombuffer(raw.payload, np.float32), 2 * large)


def test_who_does_not_read_is_kept_and_loses_nothing(daemon):
    """What the socket has no room for waits here; calls are bounded by the window."""
    large = np.ones(20_000, dtype=np.float32)
    with Raw(daemon, call_socket=True) as raw:
        call = border.Call("all_reduce", "sum", "float32", large.shape, "")
        for seq in range(50):
            raw.call(raw.submit(seq=seq, call=call), large.tobytes())
        eventually(lambda: len(daemon.handler.submitted) == 50)
        assert [raw.receive().seq for _ in range(50)] == list(range(50))


@pytest.mark.parametrize("length", [100_001, 2**32 - 1])
def test_a_message_above_the_limit_ends_the_connection(daemon, length):
    """At its length: nothing of it is kept."""
    with Raw(daemon, call_socket=True) as raw:
        raw.calls.sendall(LENGTH.pack(length))
        assert raw.hung_up()
        (reason,) = daemon.handler.gone
        assert reason == "it sent a message of more than 100000 bytes"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\xc1garbage", "not a message of this protocol"),
        (border.AskStatus(border.VERSION), "belongs on the ZeroMQ socket"),
        (border.Ack(5, -1), "a sequence number lies between"),
    ],
    ids=["garbage", "question", "numbers"],
)
def test_what_has_no_place_there_is_denied(daemon, message, text):
    """And the next call is served."""
    with Raw(daemon, call_socket=True) as raw:
        raw.call(message)
        denied = raw.receive()
        assert isinstance(denied, border.Denied)
        assert text in denied.message
        raw.call(raw.submit(), PAYLOAD)
        assert raw.receive().seq == 0
    assert daemon.server.denied == 1


def test_an_attach_that_is_denied_is_answered_there(daemon):
    """Its sender looks nowhere else."""
    with Raw(daemon, attach=False, call_socket=True) as raw:
        denied = raw.ask(raw.attach(version=border.VERSION + 1))
        assert isinstance(denied, border.Denied)


def test_nothing_is_taken_before_an_attach(daemon):
    """A lifeline alone makes no client."""
    with Raw(daemon, attach=False, call_socket=True) as raw:
        raw.call(raw.submit(), PAYLOAD)
        assert "attach to a group first" in raw.receive().message
        assert daemon.handler.submitted == []


def test_what_a_program_sent_before_it_died_counts(daemon):
    """Both sockets are read to their ends."""
    daemon.handler.hold = True
    taken = []
    daemon.handler.on_submit = taken.append
    with Raw(daemon, call_socket=True) as raw:
        for seq in range(200):
            raw.call(raw.submit(seq=seq), EIGHT)
    eventually(lambda: daemon.handler.gone)
    assert len(taken) == 200


def test_who_reads_nothing_is_parted_with(daemon, monkeypatch):
    """What is not of calls, and so not counted with those, has a bound of its own."""
    monkeypatch.setattr(callsocket, "_MOST_QUEUED", 100)
    with Raw(daemon, call_socket=True) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        state = border.RingState("forming", 8, "x" * 10_000)
        while not daemon.handler.gone:
            daemon.run(lambda: client.send(state))
        assert raw.hung_up()
    assert daemon.handler.gone == ["it does not read what the daemon sends"]
