"""The border against real sockets: decent clients, strangers, vandals and the dead."""

import os
import random
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import zmq
from fake_daemon import FakeDaemon, eventually, mapped, open_fds

from ringd.border import client as client_module
from ringd.border import lifeline as lifeline_module
from ringd.border import server as server_module
from ringd.border.server import Limits
from ringd.host import memory
from ringd.wire import border, control, lifeline


class Raw:
    """A client made of bare sockets."""

    def __init__(self, daemon, *, attach=True, group="g", with_lifeline=True):
        self.daemon = daemon
        self.context = zmq.Context.instance()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.dealer.connect(f"ipc://{daemon.path}")
        self.lifeline = None
        self.token = b""
        self.group = group
        if with_lifeline:
            self.lifeline = socket.socket(socket.AF_UNIX)
            self.lifeline.settimeout(10)
            self.lifeline.connect(daemon.path + lifeline.SUFFIX)
            self.token = self.lifeline.recv(border.TOKEN_BYTES)
        if attach:
            assert isinstance(self.ask(self.attach()), border.Attached)

    def attach(self, **changes):
        """Return an Attach, with changes."""
        fields = {
            "version": border.VERSION,
            "token": self.token,
            "group": self.group,
            "join_id": 5,
            "next_seq": 0,
            "released": 0,
            "on_loss": "wait",
            "pid": os.getpid(),
            "program": "raw",
        }
        return border.Attach(**{**fields, **changes})

    def submit(self, **changes):
        """Return a Submit of two float32, with changes."""
        fields = {
            "join_id": 5,
            "seq": 0,
            "call": control.Call("all_reduce", "sum", "float32", (2,), ""),
            "timeout": None,
            "source": None,
            "target": None,
            "acked": 0,
            "hold": False,
            "outcome": "",
            "message": "",
        }
        return border.Submit(**{**fields, **changes})

    def send(self, message, payload=None):
        """Send a message, or bytes."""
        self.dealer.send(message if isinstance(message, bytes) else border.pack(message, payload))

    def receive(self, timeout=10.0):
        """Return the next reply; its payload is in :attr:`payload`."""
        assert self.dealer.poll(timeout * 1000), "no reply"
        reply, payload = border.unpack_reply(self.dealer.recv())
        self.payload = None if payload is None else bytes(payload)
        return reply

    def ask(self, message, payload=None):
        """Send, and return the reply."""
        self.send(message, payload)
        return self.receive()

    def pass_segment(self, number, size, fd=None, record=None):
        """Send a segment; make it if *fd* is None."""
        made = memory.create_segment(size) if fd is None else fd
        record = record or lifeline.pack(lifeline.ADD, number, size)
        socket.send_fds(self.lifeline, [record], [made])
        mapping = memory.map_segment(made, size) if fd is None else None
        if fd is None:
            os.close(made)
        return mapping

    def hung_up(self):
        """Whether the daemon ends the lifeline."""
        try:
            return self.lifeline.recv(1) == b""
        except ConnectionError:
            return True

    def close(self):
        """Close both sockets."""
        self.dealer.close(0)
        if self.lifeline is not None:
            self.lifeline.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def daemon(tmp_path):
    """A fake daemon in a thread."""
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


def test_client_is_known_by_the_kernels_word(daemon):
    """The pid is the kernel's, the program's name its own."""
    with Raw(daemon):
        (client,) = daemon.run(lambda: daemon.server.clients)
        assert (client.pid, client.program) == (os.getpid(), "raw")
        assert client.alive
        assert repr(client) == f"<Client raw pid={os.getpid()}>"


def test_inline_tensor_comes_back_reduced(daemon):
    """Small tensors travel inside the messages, both ways."""
    with Raw(daemon) as raw:
        reply = raw.ask(raw.submit(), struct.pack("<2f", 1, 2))
        assert reply == border.Completed(5, 0, 1, 7)
        assert struct.unpack("<2f", raw.payload) == (2, 4)


def test_segment_sent_just_before_the_call_is_found(daemon):
    """The two connections may race: what was sent first is there first, a hundred times."""
    with Raw(daemon) as raw:
        for seq in range(100):
            mapping = raw.pass_segment(seq, 4096)
            mapping[:8] = struct.pack("<2f", seq, 2)
            ref, target = border.Ref(seq, 0, 8), border.Ref(seq, 64, 8)
            reply = raw.ask(raw.submit(seq=seq, source=ref, target=target))
            assert reply == border.Completed(5, seq, seq + 1, 7)
            assert struct.unpack("<2f", mapping[64:72]) == (2 * seq, 4)
            assert border.SEAL.unpack(mapping[80:96]) == (5, seq)
            raw.lifeline.send(lifeline.pack(lifeline.DROP, seq, 0))


def test_lifeline_is_read_in_portions(daemon, monkeypatch):
    """A flood of records cannot keep the daemon from others, nor the rest of it from being read."""
    monkeypatch.setattr(lifeline_module, "_RECORDS_PER_EVENT", 2)
    reads, drain = [], lifeline_module.Lifeline.drain

    def noted(self, wanted=None):
        before = len(self.segments)
        drain(self, wanted)
        reads.append((wanted, len(self.segments) - before))

    monkeypatch.setattr(lifeline_module.Lifeline, "drain", noted)
    with Raw(daemon) as raw:

        def flood():
            for number in range(9):
                raw.pass_segment(number, 4096)
            (client,) = daemon.server.clients
            client.view(border.Ref(4, 0, 8), writable=False)

        daemon.run(flood)
        portions = [(4, 5), (None, 2), (None, 2)]
        eventually(lambda: [read for read in reads if read[1]] == portions)


def test_name_in_use_goes_to_who_comes_last(daemon):
    """Else what a second one of that name sends would be kept for ever, and never be read."""
    context = zmq.Context.instance()
    with context.socket(zmq.DEALER) as first, context.socket(zmq.DEALER) as second:
        for dealer in (first, second):
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.ROUTING_ID, b"same")
            dealer.connect(f"ipc://{daemon.path}")
            dealer.send(border.pack(border.AskStatus(border.VERSION)))
            assert dealer.poll(10_000)


def test_questions_need_no_lifeline(daemon):
    """Status, rejoin and trace are answered to anyone who may open the socket."""
    with Raw(daemon, attach=False, with_lifeline=False) as raw:
        version = border.VERSION
        assert raw.ask(border.AskStatus(version)) == border.Answer(b'{"schema_version": 1}')
        assert raw.ask(border.AskRejoin(version)) == border.Answer(b"{}")
        assert raw.ask(border.AskTrace(version)) == border.Answer(b"[]")


def test_other_version_is_told_so(daemon):
    """Questions and attachments of another version are refused in words."""
    with Raw(daemon, attach=False) as raw:
        for message in (border.AskStatus(9), raw.attach(version=9)):
            reply = raw.ask(message)
            assert isinstance(reply, border.Denied)
            assert "version 9" in reply.message


GOOD_CALL = control.Call("all_reduce", "sum", "float32", (2,), "")
EIGHT = bytes(8)
UNSOUND = [
    ({"seq": -1}, "sequence number"),
    ({"seq": 2**62 + 1}, "sequence number"),
    ({"acked": -1}, "sequence number"),
    ({"acked": 2**62 + 1}, "sequence number"),
    ({"join_id": 0}, "join id"),
    ({"timeout": float("nan")}, "timeout"),
    ({"timeout": float("inf")}, "timeout"),
]
SHARED = control.Call("all_reduce", "sum", "float32", (1024,), "")
FAULTS = [
    ({}, [bytes(7)], "has 8 bytes, but 7 came"),
    ({}, [], "input is missing"),
    ({"source": border.Ref(1, 0, 8)}, [EIGHT], "came twice"),
    ({"source": border.Ref(1, 0, 9)}, [], "has 8 bytes, but 9 came"),
    ({"target": border.Ref(1, 0, 4)}, [EIGHT], "target 4"),
    (
        {"call": SHARED, "source": border.Ref(1, 4096, 4096), "target": border.Ref(1, 0, 4096)},
        [],
        "overlap 0 to 4112, the target and its seal",
    ),
    (
        {"call": SHARED, "source": border.Ref(1, 0, 4096), "target": border.Ref(1, 4095, 4096)},
        [],
        "overlap",
    ),
    ({"message": "x" * 5000}, [EIGHT], "too long"),
    ({"call": control.Call("scatter", "sum", "float32", (2,), "")}, [EIGHT], "unknown kind"),
    ({"call": control.Call("all_reduce", "xor", "float32", (2,), "")}, [EIGHT], "unknown op"),
    ({"call": control.Call("all_reduce", "sum", "object", (2,), "")}, [EIGHT], "dtype"),
    ({"call": control.Call("all_reduce", "mean", "int64", (1,), "")}, [EIGHT], "mean"),
    ({"call": control.Call("all_reduce", "sum", "float32", (-2,), "")}, [EIGHT], "shape"),
    ({"call": control.Call("all_reduce", "sum", "float32", (1 << 62, 4), "")}, [EIGHT], "large"),
    ({"call": control.Call("all_reduce", "sum", "float32", (1,) * 65, "")}, [EIGHT], "shape"),
    ({"call": control.Call("all_reduce", "sum", "float32", (2,), "n" * 257)}, [EIGHT], "name"),
    ({"call": control.Call("barrier", "sum", "", (), "")}, [], "barrier has no data"),
    ({"call": control.Call("barrier", "", "", (), "")}, [EIGHT], "0 bytes, but 8 came"),
]


@pytest.mark.parametrize(("changes", "frames", "text"), FAULTS)
def test_call_that_cannot_be_fails_alone(daemon, changes, frames, text):
    """What contradicts itself fails with the reason, and the session goes on."""
    with Raw(daemon) as raw:
        reply = raw.ask(raw.submit(**changes), *frames)
        assert (type(reply), reply.join_id, reply.seq) == (border.Failed, 5, 0)
        assert reply.code == "refused"
        assert text in reply.message
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        assert daemon.server.denied == 1


@pytest.mark.parametrize(("changes", "text"), UNSOUND)
def test_call_that_cannot_be_numbered_is_denied(daemon, changes, text):
    """A message with numbers to which no answer could refer is denied as a whole."""
    with Raw(daemon) as raw:
        reply = raw.ask(raw.submit(**changes), EIGHT)
        assert (type(reply), reply.code) == (border.Denied, "refused")
        assert text in reply.message
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


def test_input_beside_its_target_is_no_overlap(daemon):
    """Source and target may share a segment, as long as the seal has room between them."""
    with Raw(daemon) as raw:
        raw.pass_segment(1, 16384)
        for seq, (source, target) in enumerate([(0, 4096), (4112, 0)]):
            refs = {"source": border.Ref(1, source, 4096), "target": border.Ref(1, target, 4096)}
            reply = raw.ask(raw.submit(seq=seq, call=SHARED, **refs))
            assert reply == border.Completed(5, seq, seq + 1, 7)


def test_acknowledgement_reaches_the_handler(daemon):
    """Of a client that is attached; others are denied, as are numbers that cannot be."""
    with Raw(daemon) as raw, Raw(daemon, attach=False) as stranger:
        assert "attach" in stranger.ask(border.Ack(5, 1)).message
        assert "sequence number" in raw.ask(border.Ack(5, 2**62 + 1)).message
        raw.send(border.Ack(5, 3))
        eventually(lambda: daemon.handler.acks == [3])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group": ""}, "group's name"),
        ({"group": "g" * 65}, "group's name"),
        ({"group": "a\nb"}, "group's name"),
        ({"join_id": 0}, "join id"),
        ({"next_seq": 1, "released": 2}, "contradict"),
        ({"next_seq": 2**62 + 1}, "sequence number"),
        ({"former": -1}, "former stay"),
        ({"former": 7, "loss": "x" * 513}, "former stay"),
        ({"released": -1}, "sequence number"),
        ({"on_loss": "panic"}, "on_loss"),
        ({"program": "p" * 2000}, "program"),
        ({"token": bytes(16)}, "token"),
    ],
)
def test_attachment_that_cannot_be_is_denied(daemon, changes, text):
    """An Attach is checked field by field."""
    with Raw(daemon, attach=False) as raw:
        reply = raw.ask(raw.attach(**changes))
        assert isinstance(reply, border.Denied)
        assert text in reply.message
        assert isinstance(raw.ask(raw.attach()), border.Attached)


def test_call_without_attachment_is_denied(daemon):
    """Nobody submits without a lifeline."""
    with Raw(daemon, attach=False) as raw:
        assert "attach" in raw.ask(raw.submit(), EIGHT).message
        raw.send(border.Detach(5))  # nothing to leave: no answer, no harm
        assert isinstance(raw.ask(border.AskStatus(border.VERSION)), border.Answer)


def test_token_of_another_is_no_way_in(daemon):
    """One ZeroMQ connection cannot take over two lifelines."""
    with Raw(daemon) as first, Raw(daemon, attach=False, group="h") as second:
        reply = first.ask(first.attach(token=second.token))
        assert isinstance(reply, border.Denied)
        assert isinstance(second.ask(second.attach()), border.Attached)


def test_new_zmq_connection_takes_the_place_of_the_old(daemon):
    """The token ties a fresh ZeroMQ connection to the same client."""
    with Raw(daemon) as old, Raw(daemon, attach=False, with_lifeline=False) as new:
        assert isinstance(new.ask(old.attach()), border.Attached)
        assert "attach" in old.ask(old.submit(), EIGHT).message
        assert new.ask(old.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


def test_frames_that_are_no_message_are_denied(daemon):
    """Garbage, wrong types, too many or too large frames: denied, counted, forgotten."""
    good = border.pack(border.AskStatus(border.VERSION))

    def framed(head, length=None, has_payload=0):
        return head + struct.pack("<IB", len(head) if length is None else length, has_payload)

    rubbish = [
        [b""],
        [b"\xc1"],
        [b"hello"],
        [bytes(20000)],
        [framed(b"")],
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
        [b"", b"", b"", b""],
    ]
    with Raw(daemon, attach=False, with_lifeline=False) as raw:
        for frames in rubbish:
            raw.dealer.send_multipart(frames)
            reply = raw.receive()
            assert (type(reply), reply.join_id) == (border.Denied, 0)
        assert daemon.server.denied == len(rubbish)


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
        assert daemon.server.denied == 0


def test_zmq_port_scanned_by_a_plain_socket(daemon):
    """Bytes that are no ZeroMQ at all, on both sockets, disturb nobody."""
    with Raw(daemon) as raw:
        for suffix in ("", lifeline.SUFFIX):
            for _ in range(50):
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.connect(daemon.path + suffix)
                    stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        eventually(lambda: daemon.run(lambda: len(daemon.server._by_token)) == 1)
        assert daemon.handler.gone == []  # who never attached is not mentioned


def test_death_is_told_once_and_frees_everything(daemon):
    """The end of the lifeline is the end of the client, of its segments and its group."""
    before = mapped()
    with Raw(daemon) as raw:
        raw.pass_segment(1, 1 << 20).close()
        (client,) = daemon.run(lambda: daemon.server.clients)
        eventually(lambda: client.segment_bytes == 1 << 20)
        raw.lifeline.close()
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["its lifeline ended without a word"]
        assert (client.alive, client.segment_bytes, mapped()) == (False, 0, before)
        client.send(border.Released(5, 1))  # in vain, and harmless
        assert daemon.run(lambda: daemon.server.clients) == []
    with Raw(daemon):
        pass
    eventually(lambda: len(daemon.handler.gone) == 2)


@pytest.mark.parametrize("word", [True, False])
@pytest.mark.parametrize("lives", [True, False])
def test_one_that_hangs_up_is_dead_only_if_nothing_speaks_against_it(
    daemon, monkeypatch, word, lives
):
    """Of those that say that they live on, and whose process goes on, memory may yet change."""
    monkeypatch.setattr(lifeline_module, "ending", lambda _pid: not lives)
    with Raw(daemon) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        if word:
            raw.lifeline.send(lifeline.pack(lifeline.PART, 0, 0))
        raw.lifeline.shutdown(socket.SHUT_RDWR)
        eventually(lambda: daemon.handler.gone)
        assert client.parted is word
        assert client.died is not (word or lives)
        said = "hung up" if word else "without a word" if lives else "the process ended"
        assert said in daemon.handler.gone[0]


def test_last_word_is_heard_also_by_one_that_was_about_to_speak(daemon):
    """That nothing can be sent any more does not hide why."""
    with Raw(daemon) as raw:

        def part():
            """In the daemon's thread, so that it has read nothing yet."""
            raw.lifeline.send(lifeline.pack(lifeline.PART, 0, 0))
            raw.lifeline.close()
            (client,) = daemon.server.clients
            client.tell_session(5, (5,))

        daemon.run(part)
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["the program hung up"]


@pytest.mark.parametrize("end", ["death", "detach"])
def test_memory_is_given_back_after_the_handler_knows(daemon, end):
    """And after what it calls soon: that takes a while for a large client, and others wait."""
    held = []

    def note(client):
        daemon.loop.call_soon(lambda: held.append(client.segment_bytes))

    daemon.handler.on_leave = note
    with Raw(daemon) as raw:
        raw.pass_segment(1, 1 << 20).close()
        (client,) = daemon.run(lambda: daemon.server.clients)
        eventually(lambda: client.segment_bytes == 1 << 20)
        raw.lifeline.close() if end == "death" else raw.send(border.Detach(5))
        eventually(lambda: held)
        assert held == [1 << 20]
        eventually(lambda: client.segment_bytes == 0)


def nudged(raw, timeout):
    """Whether the daemon says on the lifeline that there is something to read."""
    raw.lifeline.settimeout(timeout)
    try:
        return raw.lifeline.recv(64) == lifeline.pack_session(0, ())
    except TimeoutError:
        return False


def test_one_that_acknowledges_nothing_is_woken(daemon):
    """Somebody waits for it: a program that computes learns over the lifeline that it has mail."""
    daemon.handler.ask_ack = True
    with Raw(daemon) as raw:
        assert raw.ask(raw.submit(), EIGHT).ack
        assert nudged(raw, 10)
        # What has to be acknowledged first came later, and nobody had asked for that.
        daemon.handler.ask_ack = False
        assert not raw.ask(raw.submit(seq=1), EIGHT).ack
        assert nudged(raw, 10)


def test_one_that_reads_nothing_is_woken_once(daemon, monkeypatch):
    """A stopped program with many calls open is not hung up on for a full lifeline."""
    monkeypatch.setattr(client_module, "NUDGE_AFTER", 0.001)
    daemon.handler.hold = daemon.handler.ask_ack = True
    with Raw(daemon) as raw:
        for seq in range(50):
            raw.send(raw.submit(seq=seq), EIGHT)
        eventually(lambda: len(daemon.handler.submitted) == 50)
        (client,) = daemon.run(lambda: daemon.server.clients)
        for call in list(daemon.handler.submitted):
            daemon.run(lambda call=call: daemon.handler.complete(call))
            eventually(lambda: daemon.run(lambda: client._nudge is None))
        raw.lifeline.settimeout(10)
        assert raw.lifeline.recv(4096) == lifeline.pack_session(0, ())
        # It speaks, but has read no more than the half of it: it is woken again.
        raw.send(border.Ack(5, 25))
        assert nudged(raw, 10)
        raw.send(border.Ack(5, 50))
        eventually(lambda: daemon.handler.acks == [25, 50])
        assert daemon.run(lambda: client._nudge) is None
        assert not nudged(raw, 0.01)


def test_one_that_acknowledges_is_left_alone(daemon, monkeypatch):
    """Nobody is woken for what has been said, be it by an Ack or with the next call."""
    monkeypatch.setattr(client_module, "NUDGE_AFTER", 0.2)
    daemon.handler.ask_ack = True
    with Raw(daemon) as raw:
        assert raw.ask(raw.submit(), EIGHT).ack
        assert raw.ask(raw.submit(seq=1, acked=1), EIGHT).ack
        raw.send(border.Ack(5, 2))
        eventually(lambda: daemon.handler.acks == [2])
        (client,) = daemon.run(lambda: daemon.server.clients)
        eventually(lambda: daemon.run(lambda: client._nudge is None))
        assert not nudged(raw, 0.01)


def test_what_was_handed_over_before_death_still_counts(daemon):
    """A call that is in the daemon's queue when the lifeline ends reaches the handler first."""
    seen = []

    def on_submit(call):
        view = call.client.view(call.message.source, writable=False)
        seen.append((call.message.seq, bytes(view), list(daemon.handler.gone)))

    daemon.handler.on_submit = on_submit
    held, closed = threading.Event(), threading.Event()
    with Raw(daemon) as raw:
        mapping = raw.pass_segment(1, 4096)
        mapping[:8] = b"handover"

        def hold():
            """In the daemon's thread: until the call is in its queue and the client gone."""
            held.set()
            eventually(lambda: daemon.server._router.getsockopt(zmq.EVENTS) & zmq.POLLIN)
            raw.lifeline.close()
            closed.set()

        daemon.loop.call_threadsafe(hold)
        assert held.wait(10)
        raw.send(raw.submit(source=border.Ref(1, 0, 8)))
        assert closed.wait(10)
        eventually(lambda: daemon.handler.gone)
    assert seen == [(0, b"handover", [])]


def test_detach_ends_the_lifeline_without_a_death(daemon):
    """Who leaves in good order is hung up on, and not reported as dead."""
    with Raw(daemon) as raw:
        raw.send(border.Detach(5))
        assert raw.hung_up()
        assert (daemon.handler.detached, daemon.handler.gone) == (1, [])


def test_lifeline_alone_is_dropped_after_a_while(daemon, monkeypatch):
    """A connection that never attaches does not stay for ever."""
    monkeypatch.setattr(server_module, "_ATTACH_WITHIN", 0.05)
    with Raw(daemon, attach=False) as raw:
        assert raw.hung_up()
        assert daemon.handler.gone == []


def garbage_record(raw):
    """Send a record of no known operation."""
    raw.lifeline.send(bytes([99]) + bytes(lifeline.RECORD_BYTES - 1))


def add_without_fd(raw):
    """Announce a segment and send none."""
    raw.lifeline.send(lifeline.pack(lifeline.ADD, 1, 4096))


def drop_with_fd(raw):
    """Send a descriptor where none belongs."""
    fd = memory.create_segment(4096)
    raw.pass_segment(1, 4096, fd, lifeline.pack(lifeline.DROP, 1, 0))
    os.close(fd)


def drop_unknown(raw):
    """Drop what was never added."""
    raw.lifeline.send(lifeline.pack(lifeline.DROP, 7, 0))


def add_twice(raw):
    """Use a number twice."""
    raw.pass_segment(1, 4096)
    raw.pass_segment(1, 4096)


def too_many_fds(raw):
    """Send twenty descriptors for one."""
    fd = memory.create_segment(4096)
    socket.send_fds(raw.lifeline, [lifeline.pack(lifeline.ADD, 1, 4096)], [fd] * 20)
    os.close(fd)


def fds_in_two_halves(raw):
    """Send a descriptor with each half of a record."""
    fd = memory.create_segment(4096)
    record = lifeline.pack(lifeline.ADD, 1, 4096)
    socket.send_fds(raw.lifeline, [record[:5]], [fd])
    socket.send_fds(raw.lifeline, [record[5:]], [fd])
    os.close(fd)


@pytest.mark.parametrize(
    "misdeed",
    [
        garbage_record,
        add_without_fd,
        drop_with_fd,
        drop_unknown,
        add_twice,
        too_many_fds,
        fds_in_two_halves,
    ],
)
def test_abuse_of_the_lifeline_ends_that_client(daemon, misdeed):
    """Whoever breaks the lifeline's rules is out, with nothing left open."""
    fds, maps = open_fds(), mapped()
    raw = Raw(daemon)
    misdeed(raw)
    assert raw.hung_up()
    eventually(lambda: daemon.handler.gone)
    assert "broke the lifeline's protocol" in daemon.handler.gone[0]
    raw.close()
    eventually(lambda: open_fds() <= fds)
    assert mapped() == maps


def test_record_in_pieces_is_put_together(daemon):
    """A record may arrive byte by byte; its descriptor comes with the first."""
    with Raw(daemon) as raw:
        fd = memory.create_segment(4096)
        record = lifeline.pack(lifeline.ADD, 1, 4096)
        socket.send_fds(raw.lifeline, [record[:1]], [fd])
        os.close(fd)
        for byte in record[1:]:
            raw.lifeline.send(bytes([byte]))
        reply = raw.ask(raw.submit(source=border.Ref(1, 0, 8), target=border.Ref(1, 8, 8)))
        assert reply == border.Completed(5, 0, 1, 7)


def unsealed():
    """Return a segment that its owner can shrink, or that is too short."""
    if not memory.SEALED_MEMORY:
        return memory.create_segment(1)  # of another size than announced
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    return fd


@pytest.mark.parametrize("source", [unsealed, lambda: memory.create_segment(1)])
def test_segment_that_could_shrink_never_kills_the_daemon(daemon, source):
    """A segment that is not sealed, or shorter than it claims, fails the calls that use it."""
    with Raw(daemon) as raw:
        fd = source()
        raw.pass_segment(1, 4096, fd)
        os.truncate(fd, 1)
        os.close(fd)
        reply = raw.ask(raw.submit(source=border.Ref(1, 4000, 8)))
        assert (type(reply), reply.code) == (border.Failed, "refused")
        assert raw.ask(raw.submit(seq=1), EIGHT) == border.Completed(5, 1, 2, 7)


def test_budget_is_kept(tmp_path):
    """Beyond the budget the call fails with the setting's name; the client stays."""
    with (
        FakeDaemon(tmp_path / "s", limits=Limits(segment_budget=10_000)) as daemon,
        Raw(daemon) as raw,
    ):
        raw.pass_segment(1, 8192)
        raw.pass_segment(2, 8192)
        reply = raw.ask(raw.submit(source=border.Ref(2, 0, 8)))
        assert (type(reply), reply.code) == (border.Failed, "resource_exhausted")
        assert "ipc.segment_budget" in reply.message
        raw.lifeline.send(lifeline.pack(lifeline.DROP, 2, 0))
        reply = raw.ask(raw.submit(source=border.Ref(1, 0, 8), target=border.Ref(1, 16, 8)))
        assert reply == border.Completed(5, 0, 1, 7)


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


def test_successor_of_a_dead_client_is_asked_to_wait(daemon):
    """Until the daemon has read a dead client's last words its group's next one comes again."""
    dead, other = Raw(daemon), Raw(daemon, group="other")
    new, elsewhere = Raw(daemon, attach=False), Raw(daemon, attach=False, group="elsewhere")
    attaching = daemon.server._attach

    def all_at_once():
        dead.lifeline.close()  # and nothing was read since
        for raw in (new, elsewhere):
            client = daemon.server._by_token[raw.token]
            attaching(b"id of " + raw.group.encode(), raw.attach())
            answered[raw.group] = client.routing_id is not None

    answered = {}
    daemon.run(all_at_once)
    assert answered == {"g": False, "elsewhere": True}
    eventually(lambda: daemon.handler.gone)
    assert isinstance(new.ask(new.attach()), border.Attached)
    for raw in (new, other, elsewhere):
        raw.close()


def test_hundreds_of_clients_leave_nothing_behind(daemon):
    """Descriptors and mappings are flat after hundreds of clients, decent and not."""
    with Raw(daemon) as raw:
        raw.pass_segment(1, 1 << 16)
        raw.ask(raw.submit(), EIGHT)
    eventually(lambda: daemon.handler.gone)
    fds, maps = open_fds(), mapped()
    for round_ in range(300):
        raw = Raw(daemon, group=f"g{round_}")
        raw.pass_segment(1, 1 << 16).close()
        if round_ % 3 == 0:
            raw.send(border.Detach(5))
        elif round_ % 3 == 1:
            garbage_record(raw)
        raw.close()
    eventually(lambda: daemon.run(lambda: len(daemon.server._by_token)) == 0)
    eventually(lambda: open_fds() <= fds)
    assert mapped() == maps
    assert daemon.run(lambda: (daemon.server._waiting, daemon.server._by_routing_id)) == ({}, {})


def test_lack_of_descriptors_pauses_accepting(daemon, monkeypatch):
    """Out of descriptors the daemon neither spins nor stops: it accepts again later."""
    monkeypatch.setattr(lifeline_module, "_ACCEPT_PAUSE", 0.05)
    listener = daemon.server._lifelines
    attempts = []

    class Exhausted:
        def accept(self):
            attempts.append(1)
            raise OSError(24, "Too many open files")

        def fileno(self):
            return real.fileno()

    real = listener._listener
    listener._listener = Exhausted()
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(daemon.path + lifeline.SUFFIX)
    eventually(lambda: len(attempts) >= 2)
    assert daemon.run(lambda: listener._watching) is False
    listener._listener = real
    waiting.settimeout(10)
    assert len(waiting.recv(border.TOKEN_BYTES)) == border.TOKEN_BYTES
    waiting.close()


def test_too_many_lifelines_are_hung_up_on(daemon, monkeypatch):
    """There is a cap; who comes beyond it is turned away."""
    monkeypatch.setattr(lifeline_module, "MAX_LIFELINES", 1)
    with Raw(daemon) as raw:
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(10)
            other.connect(daemon.path + lifeline.SUFFIX)
            assert other.recv(border.TOKEN_BYTES) == b""
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


def test_broadcast_reaches_every_client(daemon):
    """News of the ring goes to all that are attached."""
    with Raw(daemon, group="a") as one, Raw(daemon, group="b") as two:
        daemon.run(lambda: daemon.server.broadcast(border.RingState("forming", 8)))
        assert [one.receive(), two.receive()] == [border.RingState("forming", 8)] * 2


def test_killed_client_process_is_noticed(daemon):
    """SIGKILL of a client's process is its end here, at once."""
    code = (
        "import sys, ringd, time; ring = ringd.connect(sys.argv[1], 'k');"
        "print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, daemon.path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    (client,) = daemon.run(lambda: daemon.server.clients)
    assert client.pid == process.pid
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: daemon.handler.gone)


def test_close_releases_the_path(tmp_path):
    """A closed daemon leaves only its lock file; the next one can start at once."""
    for _ in range(3):
        with FakeDaemon(tmp_path / "s") as daemon, Raw(daemon):
            assert Path(daemon.path).exists()
            daemon.run(daemon.server.close)
            daemon.run(daemon.server.close)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s.lock"]
