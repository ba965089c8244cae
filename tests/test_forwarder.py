"""Connections and questions between the streams of two processes, in one loop, no daemons."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial

import pytest

from ringd.forward import connection, forwarder
from ringd.forward.connection import Target
from ringd.forward.forwarder import Forwarder
from ringd.forward.question import Answer
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.streams.table import Outlet, Refusal
from tests.ownports import free_ports

LOOPBACK = ("127.0.0.1", 0)


class Pair:
    """Two forwarders, whose messages reach each other."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.accepts: Callable[[End, str], Target | Outlet] | None = None
        self.resets: list[str] = []
        self.sides = [self._side(number) for number in (0, 1)]
        for side in self.sides:
            side.table.up()

    def _side(self, number: int) -> Forwarder:
        return Forwarder(
            self.loop,
            send=partial(self._send, number),
            accepts=self._accept,
            on_reset=lambda _member, reason: self.resets.append(reason),
            in_program=False,
        )

    def _accept(self, end: End, service: str) -> Target | Outlet:
        return self.accepts(end, service)

    def _send(self, source: int, member: int, *message: object) -> None:
        *message, data = message
        received = self.sides[member].table.received
        self.loop.call_soon(partial(received, source, *message, memoryview(data)))

    def connect(self, *, patient: bool = False) -> socket.socket:
        """Return a program's connection, which is led to the other side."""
        ours, theirs = socket.socketpair()
        self.sides[0].connect(theirs, 1, "service", patient=patient)
        ours.settimeout(10)
        return ours

    def run_until(self, done: Callable[[], object]) -> None:
        """Run the loop until *done* comes true, for a while."""
        tries = 0

        def look() -> None:
            nonlocal tries
            tries += 1
            assert tries < 1000
            if done():
                self.loop.stop()
            else:
                self.loop.call_later(0.005, look)

        self.loop.call_soon(look)
        self.loop.run()

    def accept(self, listener: socket.socket) -> socket.socket:
        """Run the loop until somebody has come to *listener*."""
        listener.setblocking(False)
        found: list[socket.socket] = []

        def accepted() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(listener.accept()[0])
            return bool(found)

        self.run_until(accepted)
        return found[0]


@pytest.fixture
def pair(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Give one that loses no time."""
    monkeypatch.setattr(forwarder, "RETRY_AFTER", 0.01)
    monkeypatch.setattr(connection, "LOOK_AGAIN", 0.01)
    return Pair(loop)


def received(sock: socket.socket) -> bytes:
    """Return what can be read without waiting."""
    try:
        return sock.recv(1000, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def test_a_target_is_dialed_when_it_may_be_and_listens(pair: Pair) -> None:
    """Until then what was said for it waits."""
    (port,) = free_ports(1)
    allowed: list[bool] = []
    pair.accepts = lambda _end, _service: Target(port, lambda: bool(allowed))
    with pair.connect() as ours:
        ours.sendall(b"hello")
        pair.run_until(lambda: len(pair.sides[1].table) == 1)
        allowed.append(True)
        with socket.create_server(("127.0.0.1", port)) as listener, pair.accept(listener) as theirs:
            pair.run_until(lambda: received(theirs) == b"hello")
    assert pair.resets == []


def test_what_came_before_a_reset_reaches_a_target_that_was_still_dialed(pair: Pair) -> None:
    """As with TCP, a connection that has ended can still be read to where it did."""
    ends: list[End] = []
    with contextlib.ExitStack() as stack, socket.create_server(LOOPBACK, backlog=0) as listener:
        address = listener.getsockname()

        def accepts(end: End, _service: str) -> Target:
            ends.append(end)
            return Target(address[1])

        pair.accepts = accepts
        filling = stack.enter_context(socket.create_connection(address))  # so the next one waits
        ours = stack.enter_context(pair.connect())
        ours.sendall(b"hello")
        pair.run_until(lambda: ends and ends[0].inbox)
        pair.sides[0].table.close("the program has ended")
        pair.run_until(lambda: not len(pair.sides[1].table))
        with pair.accept(listener) as first:
            assert first.getpeername() == filling.getsockname()
        with pair.accept(listener) as theirs:
            pair.run_until(lambda: received(theirs) == b"hello")
            with pytest.raises(ConnectionResetError):
                pair.run_until(lambda: received(theirs) is None)


def test_a_program_is_not_dialed_any_more_for_a_stream_that_has_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing came by it, as it had yet to be answered."""
    monkeypatch.setattr(connection, "LOOK_AGAIN", 0.001)
    asked: list[None] = []

    def may_dial() -> bool:
        asked.append(None)
        return False

    pair.accepts = lambda _end, _service: Target(1, may_dial)
    with pair.connect() as ours:
        ours.sendall(b"hello")
        pair.run_until(lambda: len(asked) > 3)
        pair.sides[0].table.close("the program has ended")
        pair.run_until(lambda: not len(pair.sides[1].table))
        before = -1

        def at_rest() -> bool:
            nonlocal before
            before, last = len(asked), before
            return before == last

        pair.run_until(at_rest)


def test_a_target_that_is_in_vain(pair: Pair) -> None:
    """Resets the other end, with the reason."""

    def in_vain() -> bool:
        raise Refusal("the program has ended")

    pair.accepts = lambda _end, _service: Target(1, in_vain)
    with pair.connect() as ours:
        pair.run_until(lambda: pair.resets)
        assert ours.recv(1) == b""
    assert pair.resets == ["the program has ended"]
    assert [len(side.table) for side in pair.sides] == [0, 0]


def test_who_is_patient_waits_for_somebody_to_be_there(pair: Pair) -> None:
    """Others are told at once that there is nobody."""
    answers: list[str] = []

    def absent(_end: End, _service: str) -> Target:
        answers.append("absent")
        raise Refusal("nobody is there yet", absent=True)

    pair.accepts = absent
    with pair.connect() as hasty:
        pair.run_until(lambda: pair.resets)
        assert hasty.recv(1) == b""
    with pair.connect(patient=True) as ours, socket.create_server(("127.0.0.1", 0)) as listener:
        pair.run_until(lambda: len(answers) > 3)
        pair.accepts = lambda _end, _service: Target(listener.getsockname()[1])
        ours.sendall(b"hello")
        with pair.accept(listener) as theirs:
            pair.run_until(lambda: received(theirs) == b"hello")
    assert pair.resets == ["nobody is there yet"]


def test_who_waits_for_a_target_waits_for_the_next_one_where_that_ends(pair: Pair) -> None:
    """Before it was dialed: nothing was said, so nothing is lost, and nobody is told."""
    pair.accepts = lambda _end, _service: Target(1, lambda: False)
    with pair.connect(patient=True) as ours, socket.create_server(LOOPBACK) as listener:
        ours.sendall(b"hello")
        pair.run_until(lambda: len(pair.sides[1].table))
        pair.sides[1].table.close("the program has ended")
        made: list[None] = []
        target = Target(listener.getsockname()[1], lambda: True, lambda: made.append(None))
        pair.accepts = lambda _end, _service: target
        with pair.accept(listener) as theirs:
            pair.run_until(lambda: received(theirs) == b"hello")
        assert len(made) == 1
    assert pair.resets == []


def test_what_is_under_way_arrives_though_nothing_is_waited_for_any_more(pair: Pair) -> None:
    """A program may end before its last connection was heard of; what it said by it is not lost."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pair.accepts = lambda _end, _service: Target(listener.getsockname()[1])
        with pair.connect(patient=True) as ours:
            ours.sendall(b"hello")
        assert pair.sides[0].table.unsaid == 1
        pair.sides[0].wait_no_more("the program has ended")
        pair.run_until(lambda: not pair.sides[0].table.unsaid)
        with pair.accept(listener) as theirs:
            pair.run_until(lambda: received(theirs) == b"hello")
    assert pair.resets == []


@pytest.mark.parametrize("tried", [False, True])
def test_who_waits_no_more_gives_up_those_that_nobody_is_there_for(
    pair: Pair, *, tried: bool
) -> None:
    """Whether that is known already, or found out when they are tried once more."""
    refused: list[str] = []

    def absent(_end: End, service: str) -> Target:
        refused.append(service)
        raise Refusal("nobody is there yet", absent=True)

    pair.accepts = absent
    with pair.connect(patient=True) as ours:
        pair.sides[0].ask(1, "who?", b"me", pytest.fail)
        if tried:
            pair.run_until(lambda: len(refused) > 3)
        pair.sides[0].wait_no_more("the program has ended")
        pair.sides[0].ask(1, "who?", b"me", pytest.fail)
        pair.run_until(lambda: not len(pair.sides[0].table))
        assert ours.recv(1) == b""
    assert len(pair.resets) == 1


def test_who_waits_no_more_and_has_said_nothing_does_not_wait_for_an_answer(pair: Pair) -> None:
    """Which may come minutes later; whoever has yet to give it hears that it is wanted no more."""
    pair.accepts = lambda _end, _service: Target(1, lambda: False)
    with pair.connect(patient=True) as ours:
        pair.run_until(lambda: len(pair.sides[1].table))
        pair.sides[0].wait_no_more("the program has ended")
        assert pair.sides[0].table.unsaid == 1
        pair.sides[0].wait_no_more("the program has ended", unanswered=True)
        assert pair.sides[0].table.unsaid == 0
        pair.run_until(lambda: not len(pair.sides[1].table))
        assert ours.recv(1) == b""


def test_who_waits_no_more_does_not_wait_for_a_way(pair: Pair) -> None:
    """Nobody knows when there is one."""
    pair.accepts = pytest.fail
    pair.sides[0].table.down()
    with pair.connect(patient=True) as ours:
        pair.sides[0].wait_no_more("the program has ended")
        assert ours.recv(1) == b""
    assert pair.resets == ["the program has ended"]


def test_a_question_is_asked_until_there_is_an_answer(pair: Pair) -> None:
    """Which comes once, and leaves nothing behind; who answers has heard the word by then."""
    asked: list[str] = []
    heard: list[bytes] = []
    told: list[bytes] = []

    def accepts(end: End, service: str) -> Outlet:
        asked.append(service)
        if len(asked) < 3:
            raise Refusal("not yet", absent=len(asked) == 1)
        return Answer(pair.sides[1].table, end, b"here", heard.append)

    pair.accepts = accepts
    pair.sides[0].ask(1, "who?", b"me", told.append)
    pair.run_until(lambda: told and not any(len(side.table) for side in pair.sides))
    assert (heard, told) == ([b"me"], [b"here"])
    assert asked == ["who?"] * 3
