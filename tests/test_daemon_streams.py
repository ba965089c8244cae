"""Which streams a daemon lets in, and where they lead."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringd.config.load import load
from ringd.daemon import streams
from ringd.daemon.streams import Streams
from ringd.loop import Loop
from ringd.wire.border.messages import VERSION, Carry, Held, Hold, RingState
from ringd.wire.link import streams as wire
from ringd.wire.link.streams import Connect, Reset, State
from tests.ownports import free_ports

CONFIG = """
[ring]
name = "test"
members = [
  {name = "n0", addresses = ["127.0.0.1:5680"]},
  {name = "n1", addresses = ["127.0.0.1:5681"]},
  {name = "n2", addresses = ["127.0.0.1:5682"]},
]
[[streams]]
to = "n2:5000"
from = ["n0"]
[ops]
reattach = "20ms"
"""
N0, N1, N2 = range(3)
NOTHING = memoryview(b"")


class Member:
    """The daemon of n2, less all but its streams."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        path = directory / "ringd.toml"
        path.write_text(CONFIG)
        self.sent: list[tuple[int, int, object]] = []
        neighbours = SimpleNamespace(
            names=("n0", "n1", "n2"),
            rank=N2,
            size=3,
            machine=SimpleNamespace(in_ring=True, in_use=5, generation=5),
            send_stream=self._send,
        )
        self.loop = loop
        self.streams = Streams(loop, load(path, "n2"), neighbours)
        self.streams.ring_up()

    def _send(self, member: int, number: int, _offset: int, head: bytes, _data: bytes) -> None:
        self.sent.append((member, number, wire.decode(head)))

    def hear(self, member: int, number: int, message: wire.StreamMessage) -> None:
        """Have a message come from another member."""
        self.streams.stream_message(member, number, 0, message, NOTHING)

    def program(self, *serves: str) -> Program:
        """Return a program that holds ends."""
        program = Program()
        assert self.streams.hold(program, Hold(VERSION, "program", serves, ())) == ""
        assert [type(reply) for reply in program.told] == [Held, RingState]
        program.told.clear()
        return program

    def wait(self) -> None:
        """Let more time pass than a program has to come back."""
        self.loop.call_later(0.1, self.loop.stop)
        self.loop.run()


class Program:
    """As the daemon sees one."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.died = self.parted = False
        self.program, self.pid = "program", 1

    def tell(self, reply: object, _payload: object = None) -> None:
        """Take a reply."""
        self.told.append(reply)


@pytest.fixture
def member(loop: Loop, tmp_path: Path) -> Iterator[Member]:
    """Give one; nothing of it is left."""
    member = Member(loop, tmp_path)
    yield member
    member.streams.close("the test is over")


@pytest.mark.parametrize("served", [False, True])
def test_only_whom_the_config_names_gets_in(member: Member, *, served: bool) -> None:
    """Whether the daemon dials or a program does."""
    program = member.program("tcp:5000") if served else None
    member.hear(N1, 7, Connect("tcp:5000", 100, in_program=False))
    ((to, number, refusal),) = member.sent
    assert (to, number) == (N1, 7)
    assert isinstance(refusal, Reset)
    assert "the config of 'n2' does not let 'n1' reach port 5000; add it" in refusal.reason
    assert program is None or not program.told
    member.hear(N0, 8, Connect("tcp:5000", 100, in_program=False))
    if program is None:
        assert isinstance(member.sent[1][2], State)
    else:
        assert [(reply.number, reply.member) for reply in program.told] == [(8, N0)]


def test_what_a_program_held_waits_for_it_to_come_back(member: Member) -> None:
    """Only if it does not, the other end is told."""
    program = member.program("tcp:5000")
    for number in (7, 8):
        member.hear(N0, number, Connect("tcp:5000", 100, in_program=True))
    member.streams.holder_gone(program)
    again = member.program("tcp:5000")
    ask = State(0, 100, ask=True, in_program=True, to_program=True)
    member.streams.carried(again, Carry(8, N0, 5, 0, wire.encode(ask)), None)
    member.wait()
    resets = [number for _, number, said in member.sent if isinstance(said, Reset)]
    assert resets == [7]
    member.hear(N0, 8, ask)
    assert again.told[-1].number == 8


def test_a_program_that_has_all_its_ends_refuses_more_and_takes_new_ones_when_some_are_over(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it refused itself is over, too: else a server would have no room left some day."""
    monkeypatch.setattr(streams, "MOST_ENDS", 1)
    program = member.program("tcp:5000")
    for number in (7, 8, 9):
        member.hear(N0, number, Connect("tcp:5000", 100, in_program=False))
    assert [reply.number for reply in program.told] == [7, 8]
    ((to, number, refusal),) = member.sent
    assert (to, number, isinstance(refusal, Reset)) == (N0, 9, True)
    member.streams.carried(program, Carry(7, N0, 5, 0, wire.encode(Reset("no room"))), None)
    member.hear(N0, 10, Connect("tcp:5000", 100, in_program=False))
    assert program.told[-1].number == 10


def test_who_asks_for_what_a_program_held_is_answered_when_it_is_back(member: Member) -> None:
    """Also of an end that it does not ask about itself, as that is over."""
    ask = State(0, 100, ask=True, in_program=True, to_program=True)
    member.hear(N0, 7, ask)
    assert member.sent == []
    program = Program()
    member.streams.hold(program, Hold(VERSION, "program", (), ()))
    assert [reply.number for reply in program.told if isinstance(reply, Carry)] == [7]
    member.wait()
    assert isinstance(member.sent[-1][2], Reset)


def test_a_dead_programs_ends_are_reset_at_once(member: Member) -> None:
    """The system has told that it is dead."""
    program = member.program("tcp:5000")
    member.hear(N0, 7, Connect("tcp:5000", 100, in_program=True))
    program.died = True
    member.streams.holder_gone(program)
    member.loop.call_later(0, member.loop.stop)
    member.loop.run()
    (reset,) = [said for _, _, said in member.sent if isinstance(said, Reset)]
    assert reset.reason == "the program on 'n2' that had the other end is gone"
    assert reset.absent  # whoever has heard of no answer may try again, as with the next program


def test_no_member_gets_to_what_it_may_not_name(member: Member) -> None:
    """Not even with the number of a stream that leads to a program already."""
    program = member.program("tcp:5000", "other")
    member.hear(N0, 7, Connect("other", 100, in_program=True))
    assert program.told.pop().number == 7
    for service in ("tcp:22", "nonsense"):
        member.hear(N0, 7, Connect(service, 100, in_program=True))
        member.hear(N1, 7, Connect("tcp:5000", 100, in_program=True))
        assert program.told == []
        assert isinstance(member.sent.pop()[2], Reset)
    member.hear(N0, 7, Connect("other", 100, in_program=True))  # as it has not been heard
    assert program.told.pop().number == 7


@pytest.mark.parametrize("serves", [True, False])
def test_a_service_has_a_name_that_the_links_carry(member: Member, *, serves: bool) -> None:
    """A longer one would be waited for in vain."""
    for length in (64, 65):
        name = "x" * length
        hold = Hold(
            VERSION, "program", (name,) if serves else (), () if serves else (("n0", name),)
        )
        refusal = member.streams.hold(Program(), hold)
        assert refusal == ("" if length == 64 else "a service's name has up to 64 characters")


def test_a_daemon_that_stops_listens_no_more(member: Member, tmp_path: Path) -> None:
    """Not even when it is told to reload while it waits for the ops under way."""
    (port,) = free_ports(1)
    path = tmp_path / "ringd.toml"
    path.write_text(f'{CONFIG}[[streams]]\nto = "n0:5001"\nlisten = {port}\n')
    config = load(path, "n2")
    member.streams.reload(config)
    socket.create_connection(("127.0.0.1", port)).close()
    member.streams.close("it stops")
    member.streams.reload(config)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
