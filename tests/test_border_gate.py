"""The gate before the ZeroMQ socket: names are its own to give, and nobody keeps others out."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import threading
import time
from types import SimpleNamespace

import pytest
import zmq
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually, open_fds
from zmtpkit import DEALER, GREETING, NAME, frame, prop, ready

from ringd.border import admission
from ringd.border.gate import _Relay
from ringd.border.limits import Limits
from ringd.host.credentials import Credentials
from ringd.loop import Loop
from ringd.wire.border import lifeline, zmtp
from ringd.wire.border import messages as border


@pytest.fixture
def users(monkeypatch):
    """Have whoever connects be the user that is set here: the kernel's word, made up."""
    here = [501]
    monkeypatch.setattr(admission, "peer_credentials", lambda _: Credentials(1, here[0], 1))
    return here


def names(daemon):
    """Return the names of the connections that the gate has."""
    return daemon.run(lambda: list(daemon.server._router._gate._relays))


def test_nobody_speaks_or_hears_in_the_place_of_another(daemon):
    """Who comes in another's name, and knows all its numbers, is a stranger all the same."""
    daemon.handler.hold = True
    with Raw(daemon) as victim:
        victim.send(victim.submit(), struct.pack("<2f", 1, 2))
        eventually(lambda: daemon.handler.submitted)
        (name,) = names(daemon)
        with Raw(daemon, attach=False, routing_id=name) as thief:
            for message, payload in ((victim.submit(seq=1), EIGHT), (border.Ack(5, 1), None)):
                denied = border.Denied(5, "refused", "attach to a group first")
                assert thief.ask(message, payload) == denied
            thief.send(border.Detach(5, 1))
            assert isinstance(thief.ask(border.AskStatus(border.VERSION)), border.Answer)
            assert (daemon.handler.detached, len(daemon.handler.submitted)) == (0, 1)
            daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
            assert victim.receive() == border.Completed(5, 0, 1, 7)
            assert victim.payload == struct.pack("<2f", 3, 6)  # of three members
            assert isinstance(thief.ask(border.AskStatus(border.VERSION)), border.Answer)


def test_a_token_that_is_guessed_opens_nothing(daemon):
    """Only who reads the lifeline knows it."""
    with Raw(daemon) as victim, Raw(daemon, attach=False, with_lifeline=False) as thief:
        guess = bytes([victim.token[0] ^ 1]) + victim.token[1:]
        assert isinstance(thief.ask(victim.attach(token=guess, join_id=9)), border.Denied)
        assert victim.ask(victim.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


def test_an_opening_may_come_a_byte_at_a_time(daemon):
    """What follows is answered under the name that the gate gave."""
    question = frame(border.pack(border.AskStatus(border.VERSION)))
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(10)
        slow.connect(daemon.path)
        said = b""
        for words, answer in (
            (GREETING, bytes(31)),  # libzmq hangs up on who does not wait for its own
            (ready(DEALER, prop(b"Identity", NAME)), b"\x05READY"),
            (question, b'{"schema_version": 1}'),
        ):
            for byte in words:
                slow.sendall(bytes([byte]))
            while answer not in said:
                data = slow.recv(4096)
                assert data
                said += data


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.0",
        GREETING + frame(b"no READY"),
        GREETING[:10] + b"\1",
        GREETING[:9] + b"\0" + b"named by itself",
        GREETING + ready(DEALER) + 100_000 * frame(b"", 1),
        GREETING + ready(DEALER) + frame(b"short"),
        GREETING + ready(DEALER) + 10_000 * frame(b"\x04PING\x00\x00", 4),
    ],
    ids=[
        "HTTP",
        "no READY",
        "ZMTP 1",
        "ZMTP without a version",
        "a message without end",
        "short",
        "PING",
    ],
)
def test_who_speaks_something_else_is_hung_up_on(daemon, said):
    """And all that it had is given back."""
    fds = open_fds()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(daemon.path)
        with contextlib.suppress(ConnectionError):
            stranger.sendall(said)
            while stranger.recv(4096):
                pass
    assert daemon.server.counters.refused_programs == {"protocol": 1}
    eventually(lambda: open_fds() <= fds)
    used = daemon.run(
        lambda: {name: each.used() for name, each in daemon.server.accounts.resources().items()}
    )
    assert set(used.values()) == {0}


def test_what_was_said_before_the_end_is_heard(daemon):
    """All of it, though the daemon is busy, and takes few messages at a time; and in order."""
    heard = []
    daemon.handler.on_submit = lambda call: heard.append(call.message.seq)
    with Raw(daemon) as raw:
        raw.dealer.setsockopt(zmq.LINGER, 10_000)
        busy, go_on = threading.Event(), threading.Event()

        def be_busy():
            busy.set()
            assert go_on.wait(30)

        daemon.loop.call_threadsafe(be_busy)
        assert busy.wait(10)
        for seq in range(800):
            raw.send(raw.submit(seq=seq), EIGHT)
        raw.dealer.close()
        raw.lifeline.close()
        go_on.set()
        eventually(lambda: daemon.handler.gone)
    assert heard == list(range(800))


def test_a_user_who_floods_keeps_nobody_else_out(tmp_path, users):
    """Neither at the lifeline nor at the ZeroMQ socket; programs that are in notice nothing."""
    limits = Limits(connections=40)
    with FakeDaemon(tmp_path / "s", limits=limits) as daemon, Raw(daemon, group="a") as early:
        users[0] = 666
        flood = []
        for _ in range(100):
            for suffix in ("", lifeline.SUFFIX):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(daemon.path + suffix)
                flood.append(sock)
        for sock in flood[:-60]:  # each that finds no room takes the place of the oldest one
            sock.settimeout(30)
            with contextlib.suppress(ConnectionError):
                while sock.recv(100):
                    pass
        assert daemon.run(lambda: daemon.server.accounts.connections.used(666)) <= 28
        users[0] = 502
        with Raw(daemon, group="b") as late:
            for raw in (early, late):
                assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        for sock in flood:
            sock.close()
        eventually(lambda: not daemon.run(lambda: daemon.server.accounts.connections.used(666)))


@pytest.mark.usefixtures("users")
def test_of_a_users_connections_the_first_to_go_is_for_nothing_yet(tmp_path):
    """So its own next program gets in, too; those that are in groups stay."""
    limits = Limits(connections=8)  # of which a user may have six
    with FakeDaemon(tmp_path / "s", limits=limits) as daemon:
        with Raw(daemon, group="a") as first:
            idle = []
            for _ in range(4):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(10)
                sock.connect(daemon.path + lifeline.SUFFIX)
                assert len(sock.recv(border.TOKEN_BYTES)) == border.TOKEN_BYTES
                idle.append(sock)
            with Raw(daemon, group="b") as second:
                for raw in (first, second):
                    assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
                assert [sock.recv(1) for sock in idle[:2]] == [b"", b""]
        for sock in idle:
            sock.close()


def test_memory_of_one_user_leaves_some_for_others(tmp_path, users):
    """Segments beyond its part fail its own calls alone, with the setting in the error."""
    limits = Limits(segment_budget=64 << 10, segment_total=128 << 10)
    with FakeDaemon(tmp_path / "s", limits=limits) as daemon:
        hogs = [Raw(daemon, group=f"hog{n}") for n in range(2)]
        for hog in hogs:
            hog.pass_segment(1, 48 << 10).close()
        hogs[1].pass_segment(2, 4096)
        failed = hogs[1].ask(hogs[1].submit(source=border.Ref(2, 0, 8)))
        assert failed.code == "resource_exhausted"
        assert "programs of user 501" in failed.message
        assert f"{128 << 10} (ipc.segment_total)" in failed.message
        users[0] = 502
        with Raw(daemon, group="other") as other:
            other.pass_segment(1, 16 << 10).close()
            assert other.ask(
                other.submit(source=border.Ref(1, 0, 8), target=border.Ref(1, 64, 8))
            ) == border.Completed(5, 0, 1, 7)
        for hog in hogs:
            hog.close()
        eventually(lambda: not daemon.run(daemon.server.accounts.memory.used))


def test_groups_of_one_user_leave_some_for_others(tmp_path, users):
    """Stays, and ends of channels."""
    with FakeDaemon(tmp_path / "s", limits=Limits(groups=8)) as daemon, Raw(daemon) as hog:
        replies = [hog.ask(hog.attach(join_id=i, group=f"g{i}")) for i in range(6, 20)]
        assert sum(isinstance(reply, border.Attached) for reply in replies) == 5
        assert "of 8 (what other machines keep)" in replies[-1].message
        users[0] = 502
        with Raw(daemon, group="other") as other:
            assert other.ask(other.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        eventually(lambda: daemon.handler.gone)
        hog.leave(6)
        assert isinstance(hog.ask(hog.attach(join_id=30, group="again")), border.Attached)
        hog.close()
        eventually(lambda: not daemon.run(daemon.server.accounts.groups.used))


def test_questions_that_wait_for_their_answers_are_bounded(daemon, users):
    """A trace takes a while; who asks a thousand times is denied, and others are answered."""
    waiting = []
    slow = {border.AskTrace: lambda _, say: waiting.append(say)}
    daemon.run(lambda: daemon.server._questions._answers.update(slow))
    question = border.AskTrace(border.VERSION)
    with Raw(daemon, attach=False, with_lifeline=False) as hog:
        for _ in range(1000):
            hog.send(question)
        for _ in range(1000 - 192):
            assert "no more questions" in hog.receive().message
        users[0] = 502
        with Raw(daemon, attach=False, with_lifeline=False) as other:
            other.send(question)
            eventually(lambda: len(waiting) == 193)
            daemon.run(lambda: waiting.pop()(b"for the other"))
            assert other.receive() == border.Answer(b"for the other")
    eventually(lambda: not daemon.run(daemon.server.accounts.questions.used))
    for say in waiting:
        daemon.run(lambda say=say: say(b"late"))
    assert daemon.run(daemon.server.accounts.questions.used) == 0


def test_a_large_message_for_which_there_is_no_room_fails_its_call_alone(tmp_path):
    """Its end says whose it is, and the rest is dropped as it comes; the next call is complete."""
    limits = Limits(message_total=4 << 20)
    with (
        FakeDaemon(tmp_path / "s", limits=limits) as daemon,
        Raw(daemon, call_socket=True) as raw,
    ):
        for seq, size in enumerate((5 << 20, 2 << 20, 40 << 20, 8)):
            call = border.Call("all_reduce", "sum", "float32", (size // 4,), "")
            message = raw.submit(seq=seq, call=call)
            sender = threading.Thread(target=raw.call, args=(message, bytes(size)))
            sender.start()
            reply = raw.receive()
            sender.join()
            if size > 3 << 20:
                assert (reply.seq, reply.code) == (seq, "resource_exhausted")
                assert "4194304 (ipc.message_total)" in reply.message
            else:
                assert reply == border.Completed(5, seq, seq + 1, 7)
                assert raw.payload == bytes(size)
        assert [call.message.seq for call in daemon.handler.submitted] == [1, 3]
        eventually(lambda: not daemon.run(daemon.server.accounts.messages.used))


def test_half_a_large_message_counts_until_its_program_is_gone(tmp_path):
    """What was announced is kept free for it."""
    with FakeDaemon(tmp_path / "s", limits=Limits(message_total=4 << 20)) as daemon:
        with Raw(daemon, call_socket=True) as raw:
            raw.call_end.sendall(struct.pack("<I", 2 << 20) + bytes(100))
            messages = daemon.server.accounts.messages
            eventually(lambda: daemon.run(messages.used) == (2 << 20) + 4)
        eventually(lambda: not daemon.run(messages.used))


def test_descriptors_of_a_record_without_end_are_not_kept(daemon):
    """A record has one at most, whatever pieces it comes in."""
    fds = open_fds()
    with socket.socket(socket.AF_UNIX) as hog:
        hog.settimeout(10)
        hog.connect(daemon.path + lifeline.SUFFIX)
        _, ours, *_ = socket.recv_fds(hog, border.TOKEN_BYTES, 1)
        with contextlib.suppress(ConnectionError):
            for _ in range(15):
                socket.send_fds(hog, [b"x"], [hog.fileno()] * 4)
            assert hog.recv(1) == b""
        os.close(ours[0])
    eventually(lambda: open_fds() <= fds)


def test_a_large_message_in_the_smallest_pieces_costs_what_it_has(daemon):
    """What has arrived of it stands in one place."""
    with Raw(daemon, call_socket=True) as raw:
        message = raw.submit(call=border.Call("all_reduce", "sum", "float32", (4000,), ""))
        frame = border.pack(message, bytes(16_000))
        stream = struct.pack("<I", len(frame)) + frame
        for at in range(0, len(stream), 7):
            raw.call_end.sendall(stream[at : at + 7])
        assert raw.receive() == border.Completed(5, 0, 1, 7)
        assert raw.payload == bytes(16_000)


def test_a_question_that_takes_long_is_followed_by_a_rest(daemon):
    """So that whoever asks without end leaves the daemon most of its time."""
    asked = []

    def answer(_question, say):
        asked.append(daemon.loop.now())
        time.sleep(0.01)
        say(b"{}")

    daemon.run(lambda: daemon.server._questions._answers.update({border.AskStatus: answer}))
    with Raw(daemon, attach=False, with_lifeline=False) as raw:
        for _ in range(10):
            raw.send(border.AskStatus(border.VERSION))
        for _ in range(10):
            assert raw.receive() == border.Answer(b"{}")
    pauses = [later - before for before, later in itertools.pairwise(asked)]
    assert min(pauses) >= 0.05


def test_a_programs_name_is_cleaned_before_others_see_it(daemon):
    """A terminal would obey it."""
    with Raw(daemon, attach=False) as raw:
        raw.ask(raw.attach(program="evil\x1b[2J\x07"))
        (client,) = daemon.run(lambda: daemon.server.clients)
        assert client.program == "evil?[2J?"


def test_users_take_turns_with_their_questions(daemon, users):
    """Who asks a hundred times is no reason for others to wait for all of that."""
    answered = []

    def answer(_question, say):
        answered.append(1)
        time.sleep(0.01)
        say(b"{}")

    daemon.run(lambda: daemon.server._questions._answers.update({border.AskStatus: answer}))
    question = border.AskStatus(border.VERSION)
    with Raw(daemon, attach=False, with_lifeline=False) as hog:
        for _ in range(100):
            hog.send(question)
        assert hog.receive() == border.Answer(b"{}")
        users[0] = 502
        with Raw(daemon, attach=False, with_lifeline=False) as other:
            assert other.ask(question) == border.Answer(b"{}")
            assert len(answered) < 90


def test_what_libzmq_keeps_of_a_program_is_bounded_in_number_too(daemon):
    """Small messages by the thousand wait in the program, and are all heard in the end."""
    heard = []
    daemon.handler.on_submit = lambda call: heard.append(call.message.seq)
    with Raw(daemon) as raw:
        (name,) = names(daemon)
        busy, go_on = threading.Event(), threading.Event()
        # Frames of a piece that is read at once: one has two bytes before its own, at least.
        piece = (16 << 10) // (2 + len(border.pack(raw.submit(seq=0), EIGHT)))

        def be_busy():
            relay = daemon.server._router._gate._relays[name]
            busy.set()
            for _ in range(200):
                relay.read()
            assert relay._said.frames - relay._heard < 8 + piece
            assert go_on.wait(30)

        for seq in range(2000):
            raw.send(raw.submit(seq=seq), EIGHT)
        daemon.loop.call_threadsafe(be_busy)
        assert busy.wait(10)
        go_on.set()
        eventually(lambda: len(heard) == 2000)
    assert heard == list(range(2000))


def test_questions_of_those_that_are_gone_are_not_answered(daemon):
    """Else who asks and hangs up, again and again, would have the daemon work for nobody."""
    answered = []

    def answer(_question, say):
        answered.append(1)
        time.sleep(0.05)
        say(b"{}")

    daemon.run(lambda: daemon.server._questions._answers.update({border.AskStatus: answer}))
    with Raw(daemon, attach=False, with_lifeline=False) as raw:
        for _ in range(50):
            raw.send(border.AskStatus(border.VERSION))
        assert raw.receive() == border.Answer(b"{}")
    eventually(lambda: not daemon.run(lambda: daemon.server._questions._by_user))
    assert len(answered) < 40


@pytest.mark.parametrize("frames", [1, 8])
def test_half_a_message_is_given_up_when_its_program_ends(daemon, frames):
    """Of which the ZeroMQ socket gives nothing, however much has come."""
    fds = open_fds()
    with socket.socket(socket.AF_UNIX) as program:
        program.settimeout(10)
        program.connect(daemon.path)
        program.sendall(GREETING)
        said = b""
        while bytes(31) not in said:
            said += program.recv(4096)
        program.sendall(ready(DEALER))
        while b"\x05READY" not in said:
            said += program.recv(4096)
        for _ in range(frames):
            program.sendall(frame(b"a frame", 1))
        (relay,) = daemon.run(lambda: list(daemon.server._router._gate._relays.values()))
        eventually(lambda: relay._said.frames == frames)
    eventually(lambda: not daemon.run(daemon.server.accounts.connections.used))
    eventually(lambda: open_fds() <= fds)


def test_a_connection_that_the_system_cannot_watch_is_hung_up_on():
    """That one alone: there are limits on how much is watched, and memory may be short."""

    def no_more(*_args, **_options):
        raise OSError(errno.ENOSPC, "no more")

    with contextlib.closing(Loop()) as loop:
        loop.add = no_more
        (program, ours), (theirs, inner) = socket.socketpair(), socket.socketpair()
        ended = []
        account = SimpleNamespace(messages=SimpleNamespace(used=0, give=lambda _amount: None))
        relay = _Relay(
            None,
            loop,
            ours,
            theirs,
            zmtp.Program(b"name", 1000),
            account,
            on_greeted=lambda: None,
            on_end=lambda: ended.append(True),
        )
        relay.watch_both()
        with program, inner:
            assert ended == [True]
            assert (program.recv(1), inner.recv(1)) == (b"", b"")
