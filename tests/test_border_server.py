"""The border and decent clients: who attaches as whom, questions, answers, news."""

import os
import struct
from functools import partial
from pathlib import Path

import zmq
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon

from ringd.host.credentials import Credentials
from ringd.wire.border import messages as border
from tests.cluster import wait_until


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
        assert struct.unpack("<2f", raw.payload) == (3, 6)


def test_news_reach_every_client(daemon):
    """All that are attached can be told of the ring."""
    with Raw(daemon, group="a") as one, Raw(daemon, group="b") as two:
        daemon.broadcast(border.RingState("forming", 8))
        assert [one.receive(), two.receive()] == [border.RingState("forming", 8)] * 2


def test_questions_need_no_lifeline(daemon):
    """Status and trace are answered to anyone who may open the socket."""
    with Raw(daemon, attach=False, with_lifeline=False) as raw:
        version = border.VERSION
        assert raw.ask(border.AskStatus(version)) == border.Answer(b'{"schema_version": 1}')
        assert raw.ask(border.AskTrace(version)) == border.Answer(b"[]")


def test_orders_need_one(daemon):
    """The kernel says by it whose process asks: the daemon's user may, without it nobody."""
    version = border.VERSION
    with Raw(daemon, attach=False) as raw:
        assert raw.ask(border.AskRejoin(version, raw.token)) == border.Answer(b"{}")
        assert raw.ask(border.AskReload(version, raw.token)) == border.Answer(b'{"refused": null}')
        for token in (b"", b"another token...", bytes(16)):
            reply = raw.ask(border.AskRejoin(version, token))
            assert isinstance(reply, border.Denied)
            assert "must hold a lifeline, and name its token" in reply.message


def test_orders_of_other_users(daemon, monkeypatch):
    """They are refused, with who may and what to do."""
    own = os.geteuid()
    stranger = Credentials(os.getpid(), own + 2, os.getegid())
    monkeypatch.setattr("ringd.border.lifeline.peer_credentials", lambda _: stranger)
    with Raw(daemon, attach=False) as raw:
        reply = raw.ask(border.AskRejoin(border.VERSION, raw.token))
        assert isinstance(reply, border.Denied)
        assert f"the daemon's user (uid {own}), and you are uid {own + 2}" in reply.message
        assert 'ipc.control = "group"' in reply.message


def test_other_version_is_told_so(daemon):
    """Questions and attachments of another version are refused in words."""
    with Raw(daemon, attach=False) as raw:
        for message in (border.AskStatus(9), raw.attach(version=9)):
            reply = raw.ask(message)
            assert isinstance(reply, border.Denied)
            assert "version 9" in reply.message


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


def test_close_releases_the_path(tmp_path):
    """A closed daemon leaves only its lock file; the next one can start at once."""
    for _ in range(3):
        with FakeDaemon(tmp_path / "s") as daemon, Raw(daemon):
            assert Path(daemon.path).exists()
            daemon.run(daemon.server.close)
            daemon.run(daemon.server.close)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s.lock"]


def test_a_daemon_that_reads_nothing_does_not_serve(daemon, monkeypatch):
    """A message of its own, which nobody reads then, tells; later all goes on."""
    server = daemon.server

    def served() -> bool:
        return daemon.run(server.selfcheck.passed)

    assert all(wait_until(served) for _ in range(5))
    with monkeypatch.context() as deaf:
        deaf.setattr(server._router, "_receive", lambda: None)
        wait_until(lambda: not served())
        assert [served() for _ in range(5)] == [False] * 5
    assert wait_until(served)
    with Raw(daemon) as raw:
        assert isinstance(raw.ask(raw.submit(), struct.pack("<2f", 1, 2)), border.Completed)
    assert server.counters.denied_messages == 0


def test_a_proof_that_is_asked_for_comes_when_it_was_read(daemon, monkeypatch):
    """Not from one that reads nothing; and who asks for proof does not starve the watchdog."""
    server, told = daemon.server, []

    def prove(word) -> None:
        daemon.run(lambda: server.selfcheck.prove(partial(told.append, word)))

    prove("first")
    wait_until(lambda: told == ["first"])
    assert daemon.run(lambda: (server.selfcheck.passed(), server.selfcheck.prove(lambda: None))[0])
    wait_until(lambda: daemon.run(lambda: not server.selfcheck._provers))
    assert daemon.run(lambda: (server.selfcheck.prove(lambda: None), server.selfcheck.passed())[1])
    with monkeypatch.context() as deaf:
        deaf.setattr(server._router, "_receive", lambda: None)
        wait_until(lambda: not daemon.run(server.selfcheck.passed))
        given_up = partial(told.append, "given up")
        daemon.run(lambda: server.selfcheck.prove(given_up))
        prove("late")
        daemon.run(lambda: server.selfcheck.forget(given_up))
        assert told == ["first"]
    wait_until(lambda: told == ["first", "late"])
    daemon.run(lambda: server.selfcheck.forget(given_up))
