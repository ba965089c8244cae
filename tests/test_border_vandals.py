"""Bytes that are no message, and clients that never read: they harm themselves alone."""

import random
import socket
import struct

import msgspec
import pytest
import zmq
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually
from structlog.testing import capture_logs

from ringd.border.limits import Limits
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border


def test_frames_that_are_no_message_are_denied(daemon):
    """Garbage, wrong types, too many or too large frames: denied, counted, forgotten."""
    good = border.pack(border.AskStatus(border.VERSION))

    def framed(head, length=None, has_payload=0):
        return head + struct.pack("<IB", len(head) if length is None else length, has_payload)

    rubbish = [
        [b"hello!"],
        [b"\xc1" * 6],
        [bytes(20000)],
        [framed(msgspec.msgpack.encode(["submit", "not a number"]))],
        [framed(b"\x92\xa6st\xddtus\x01")],
        [framed(b"\x93\xa6status\x01" + b"\x91" * 16000)],
        [framed(msgspec.msgpack.encode(["status", *[1] * border.MAX_REQUEST]))],
        [framed(good[:-5], length=2**32 - 1)],
        [framed(good[:-5], has_payload=2)],
        [b"extra" + good],
        [border.pack(border.AskStatus(border.VERSION), b"extra")],
        [border.pack(border.Detach(5)), b"a"],
        [border.pack(border.Detach(5)), b"a", b"b"],
        [b"", b"", b"", b"hello!"],
    ]
    with Raw(daemon, attach=False, with_lifeline=False) as raw:
        for frames in rubbish:
            raw.dealer.send_multipart(frames)
            reply = raw.receive()
            assert (type(reply), reply.join_id) == (border.Denied, 0)
        assert daemon.server.counters.denied_messages == len(rubbish)


def test_random_bytes_harm_nobody(daemon):
    """A thousand mutated messages later a decent client is served as before."""
    seed = random.Random(20240806)
    with Raw(daemon) as raw, Raw(daemon, attach=False, with_lifeline=False) as vandal:
        seeds = [
            border.pack(message)
            for message in (raw.submit(), vandal.attach(), border.Detach(5), border.AskTrace(1))
        ]
        for _ in range(1000):
            data = bytearray(seed.choice(seeds))
            for _ in range(seed.randrange(1, 6)):
                data[seed.randrange(len(data))] = seed.randrange(256)
            vandal.dealer.send_multipart(
                [bytes(data), *[seed.randbytes(seed.randrange(20))] * seed.randrange(3)]
            )
        raw.send(raw.submit(), struct.pack("<2f", 1, 2))
        assert raw.receive(30) == border.Completed(5, 0, 1, 7)


def test_oversized_message_ends_that_connection_alone(tmp_path):
    """A frame over the cap costs its sender the connection, and nobody else anything."""
    with FakeDaemon(tmp_path / "s", limits=Limits(max_message=100_000)) as daemon:
        with Raw(daemon) as raw, Raw(daemon, attach=False, with_lifeline=False) as vandal:
            monitor = vandal.dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            vandal.send(bytes(200_000))
            assert monitor.poll(10_000)
            vandal.dealer.disable_monitor()
            monitor.close()
            assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        assert daemon.server.counters.denied_messages == 0


def test_zmq_port_scanned_by_a_plain_socket(daemon):
    """Bytes that are no ZeroMQ at all, on both sockets, disturb nobody."""
    with Raw(daemon) as raw:
        for suffix in ("", lifeline.SUFFIX):
            for _ in range(50):
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.connect(daemon.path + suffix)
                    stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        eventually(lambda: daemon.run(lambda: len(daemon.server._roster._by_token)) == 1)
        assert daemon.handler.gone == []  # who never attached is not mentioned


def test_reader_that_never_reads_is_parted_with(tmp_path):
    """Replies do not pile up without bound for a client that takes none."""
    with FakeDaemon(tmp_path / "s", limits=Limits(window=8)) as daemon, Raw(daemon) as raw:
        raw.dealer.setsockopt(zmq.RCVHWM, 1)
        reply = border.Released(5, 1)
        (client,) = daemon.run(lambda: daemon.server.clients)

        def flood():
            for _ in range(50_000):
                client.send(reply, bytes(1000))

        daemon.run(flood, 60)
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["it does not read what the daemon sends"]


@pytest.mark.parametrize("rejoins", [False, True])
def test_who_leaves_many_groups_has_not_left_them_unread(tmp_path, rejoins):
    """Of each it was told that it is lost: what it never acknowledges counts no more then."""
    limits = Limits(window=8, groups=1 << 20)
    with FakeDaemon(tmp_path / "s", limits=limits) as daemon, Raw(daemon) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        stays = range(10, 1510)
        for join_id in stays:
            raw.ask(raw.attach(join_id=join_id, group=f"g{join_id}"))
        daemon.run(lambda: [client.send(border.Lost(i, 0, "group_lost", "")) for i in stays])
        for _ in stays:
            assert isinstance(raw.receive(), border.Lost)
        assert daemon.run(lambda: client.unread.count) == len(stays)
        for join_id in stays:
            if rejoins:
                new = {"join_id": join_id + 10_000, "former": join_id}
                assert isinstance(raw.ask(raw.attach(group=f"g{join_id}", **new)), border.Attached)
            else:
                raw.leave(join_id)
        assert daemon.run(lambda: client.unread.count) == 0
        assert isinstance(raw.ask(raw.submit(), EIGHT), border.Completed)
        assert client.alive


def test_what_is_unread_counts_for_each_group(tmp_path):
    """A program that reads nothing may be in many groups with all their windows full, and no more.

    What it says that it has is read; also what it had of a group that it has left.
    """
    with FakeDaemon(tmp_path / "s", limits=Limits(window=8)) as daemon, Raw(daemon) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        for join_id in range(10, 60):
            raw.ask(raw.attach(join_id=join_id, group=f"g{join_id}"))
        daemon.handler.release = False
        for seq in range(30):
            for join_id in range(10, 60):
                raw.send(raw.submit(join_id=join_id, seq=seq), EIGHT)
        eventually(lambda: len(daemon.handler.submitted) == 1500)
        assert daemon.run(lambda: client.unread.count) == 1500
        assert client.alive
        for _ in range(1500):
            raw.receive()
        raw.send(border.Ack(10, 30))
        assert isinstance(raw.ask(border.Detach(59, 30)), border.Detached)
        assert daemon.run(lambda: client.unread.count) == 0
        for seq in range(3000):
            raw.send(raw.submit(join_id=10, seq=seq), EIGHT)
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["it does not read what the daemon sends"]


def test_what_is_unread_counts_for_each_channel(tmp_path):
    """A program that computes may have hundreds of messages under way in each of its channels."""
    with FakeDaemon(tmp_path / "s", limits=Limits(window=8)) as daemon, Raw(daemon):
        (client,) = daemon.run(lambda: daemon.server.clients)

        def tell(count):
            for number in range(100, 200):
                client.opens(number, 5)
                for seq in range(count):
                    client.send(border.Completed(number, seq, 0, 1))

        daemon.run(lambda: tell(30))
        assert daemon.run(lambda: (client.alive, client.unread.count)) == (True, 3000)
        daemon.run(lambda: tell(30))
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["it does not read what the daemon sends"]


def test_a_lifeline_that_is_not_read_holds_what_hundreds_of_groups_are_told(daemon):
    """In order, and to a bound; then the client is out."""
    with Raw(daemon) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        told = [(5, (n, n + 1), ()) for n in range(2000)]
        daemon.run(lambda: [client.tell_session(*word) for word in told])
        stream, heard = bytearray(), []
        while len(heard) < len(told):
            stream += raw.lifeline.recv(65536)
            while (word := lifeline.take_session(stream)) is not None:
                heard.append(word)
        assert heard == told
        daemon.run(lambda: [client.tell_session(*word) for word in told * 40])
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["it does not read what the daemon sends"]


def test_who_asks_and_asks_without_reading_is_hung_up_on(tmp_path):
    """An answer may have a megabyte; what is read counts no more."""
    body = b"x" * 100_000
    limits = Limits(message_total=4 << 20)
    with (
        capture_logs() as logged,
        FakeDaemon(tmp_path / "s", limits=limits) as daemon,
        Raw(daemon, group="other") as other,
        Raw(daemon, attach=False, with_lifeline=False) as raw,
    ):
        answer = {border.AskTrace: lambda _, say: say(body)}
        daemon.run(lambda: daemon.server._questions._answers.update(answer))
        for _ in range(200):
            assert raw.ask(border.AskTrace(border.VERSION)) == border.Answer(body)
        assert daemon.run(daemon.server.accounts.messages.used) == 0
        with Raw(daemon, attach=False, with_lifeline=False, rcvhwm=1) as deaf:
            for _ in range(200):
                deaf.send(border.AskTrace(border.VERSION))
            said = "a connection does not read its answers"
            eventually(lambda: [line["event"] for line in logged].count(said) == 1)
            assert "4194304 (ipc.message_total)" in logged[-1]["reason"]
        assert isinstance(other.ask(border.AskTrace(border.VERSION)), border.Answer)
        eventually(lambda: daemon.run(daemon.server.accounts.messages.used) == 0)
