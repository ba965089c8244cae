"""The daemon's end of a call socket, and who may say what there."""

import socket
from types import SimpleNamespace

import numpy as np
import pytest
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually

from ringd.border import callsocket
from ringd.border import client as clients
from ringd.border.accounts import unlimited
from ringd.border.callsocket import CallSocket
from ringd.border.client import Client
from ringd.border.limits import Limits
from ringd.loop import EVENT_READ
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
            raw.call_end.sendall(stream[start : start + piece])
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


@pytest.fixture
def holder(loop, monkeypatch):
    """Give a program for which 100,000 bytes of streams wait, its socket, and why it was ended."""
    monkeypatch.setattr(clients, "MOST_UNREAD", 100_000)
    ours, theirs = socket.socketpair()
    ended = []
    calls = CallSocket(
        loop,
        ours,
        max_message=0,
        messages=unlimited(),
        on_message=print,
        on_end=ended.append,
    )
    credentials = SimpleNamespace(pid=1, uid=1)
    lifeline = SimpleNamespace(token=b"", credentials=credentials, account=None)
    with theirs:
        yield Client(None, lifeline, calls, loop), theirs, ended
    calls.close()


CARRY = border.Carry(1, 2, 3, 4, b"head")


def test_a_holder_of_streams_that_does_not_read_is_ended_at_a_bound_in_bytes(holder):
    """Whatever it granted the other ends."""
    client, _, ended = holder
    sent = 0
    while not ended:
        client.tell(CARRY, memoryview(bytes(5000)))
        sent += 5000
        assert client.calls._waiting <= 100_000
    assert ended == ["it does not read what the daemon sends"]
    assert sent > 100_000
    assert client.calls._waiting == 0


def test_a_holder_of_streams_that_reads_is_never_ended(holder, loop):
    """What it has read counts no more."""
    client, theirs, ended = holder
    for _ in range(5):
        while client.calls._waiting < 90_000:
            client.tell(CARRY, memoryview(bytes(5000)))

        def read(_events):
            theirs.recv(1 << 20)
            if not client.calls._waiting:
                loop.remove(theirs)
                loop.stop()

        loop.add(theirs, EVENT_READ, read)
        loop.run()
    assert ended == []


@pytest.mark.parametrize("length", [100_001, 2**32 - 1])
def test_a_message_above_the_limit_ends_the_connection(daemon, length):
    """At its length: nothing of it is kept."""
    with Raw(daemon, call_socket=True) as raw:
        raw.call_end.sendall(LENGTH.pack(length))
        assert raw.hung_up()
        (reason,) = daemon.handler.gone
        assert reason == "it sent a message of more than 100000 bytes"


def test_an_empty_message_ends_the_connection(daemon):
    """It is never complete: what comes behind it would be kept without an end."""
    with Raw(daemon, call_socket=True) as raw:
        raw.call_end.sendall(LENGTH.pack(0) + bytes(1000))
        assert raw.hung_up()
    assert daemon.handler.gone == ["it sent an empty message"]


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
    assert daemon.server.counters.denied_messages == 1


def test_an_attach_that_is_denied_is_answered_there(daemon):
    """Its sender looks nowhere else."""
    with Raw(daemon, attach=False, call_socket=True) as raw:
        denied = raw.ask(raw.attach(version=border.VERSION + 1))
        assert isinstance(denied, border.Denied)


def test_nothing_is_taken_before_an_attach(daemon):
    """A lifeline alone makes no client."""
    with Raw(daemon, attach=False, call_socket=True) as raw:
        raw.call(raw.submit(), PAYLOAD)
        assert "attach to a group over ZeroMQ first" in raw.receive().message
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


def test_who_is_attached_joins_other_groups_there(daemon):
    """In order with what is said of the others: one stay of a group ends before the next begins."""
    with Raw(daemon, call_socket=True) as raw:
        for join_id in range(6, 40):
            raw.call(border.Detach(join_id - 1))
            raw.call(raw.attach(join_id=join_id, session=()))
            raw.call(raw.submit(join_id=join_id), PAYLOAD)
        replies = [raw.receive() for _ in range(3 * 34)]
        kinds = [type(reply).__name__ for reply in replies]
        assert kinds == ["Detached", "Attached", "Completed"] * 34
        assert [attach.join_id for attach in daemon.handler.attaches] == [5, *range(6, 40)]


def test_nobody_attaches_there_with_the_token_of_another(daemon):
    """Nor before it has come over ZeroMQ."""
    with Raw(daemon, call_socket=True) as raw, Raw(daemon, call_socket=True, group="h") as other:
        raw.call(other.attach(join_id=9, group="i"))
        assert "belongs on the ZeroMQ socket" in raw.receive().message
    with Raw(daemon, attach=False, call_socket=True) as early:
        early.call(early.attach(group="j"))
        assert "attach to a group over ZeroMQ first" in early.receive().message


def test_the_first_attach_says_how_a_connection_is_spoken_to(daemon):
    """Another one cannot change that under the stays that there are."""
    with Raw(daemon, call_socket=True) as raw:
        raw.send(raw.attach(join_id=6, group="h", call_socket=False))
        assert "for all that it says, or for nothing" in raw.receive().message
        raw.call(raw.submit(), PAYLOAD)
        assert raw.receive().seq == 0


def test_who_closes_its_call_socket_is_parted_with(daemon):
    """It would hear nothing, and others would wait for it."""
    with Raw(daemon, call_socket=True) as raw:
        raw.call_end.close()
        assert raw.hung_up()
    assert daemon.handler.gone == ["it closed its call socket"]


def test_who_has_no_use_for_it_may_close_it(daemon):
    """As one that speaks nothing but ZeroMQ, which never knew that it was there."""
    with Raw(daemon) as raw:
        raw.call_end.close()
        raw.send(raw.submit(), PAYLOAD)
        assert raw.receive().seq == 0


def test_a_large_message_is_kept_no_longer_than_its_call(daemon):
    """An idle client costs what a client costs."""
    with Raw(daemon, call_socket=True) as raw:
        call = border.Call("all_reduce", "sum", "float32", (24_000,), "")
        raw.call(raw.submit(call=call), bytes(96_000))
        raw.receive()
        (client,) = daemon.run(lambda: daemon.server.clients)
        assert daemon.run(lambda: len(client.calls._stream.obj)) == 0


def test_a_message_that_comes_for_long_leaves_the_loop_to_others(tmp_path):
    """However fast it comes: a turn has a few reads."""
    with FakeDaemon(tmp_path / "s") as daemon, Raw(daemon, call_socket=True) as raw:
        most, reads = callsocket._READS, []
        (client,) = daemon.run(lambda: daemon.server.clients)
        read, drain = client.calls._read, client.calls.drain
        turns = []

        def counted():
            reads.append(1)
            return read()

        def turn(*most):
            reads.clear()
            more = drain(*most)
            turns.append(len(reads))
            return more

        client.calls._read, client.calls.drain = counted, turn
        call = border.Call("all_reduce", "sum", "float32", (4_000_000,), "")
        raw.call(raw.submit(call=call), bytes(16_000_000))
        assert raw.receive().seq == 0
        assert max(turns) <= most
        assert sum(turns) > 100


def test_what_is_unread_counts_with_what_all_programs_have(tmp_path):
    """Results that travel inside messages may be large; who leaves them there is parted with."""
    limits = Limits(message_total=8 << 20)
    with (
        FakeDaemon(tmp_path / "s", limits=limits) as daemon,
        Raw(daemon, call_socket=True) as raw,
    ):
        (client,) = daemon.run(lambda: daemon.server.clients)

        def flood():
            for seq in range(100):
                client.send(border.Completed(5, seq, 0, 7), bytes(1 << 20))

        daemon.run(flood)
        assert raw.hung_up()
        (reason,) = daemon.handler.gone
        assert reason.startswith("it does not read what the daemon sends: ")
        assert reason.endswith("of 8388608 (ipc.message_total)")
        eventually(lambda: not daemon.run(daemon.server.accounts.messages.used))
