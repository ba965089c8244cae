"""Pairs of Unix streams: with room on both systems, and without a signal that ends programs."""

import contextlib
import socket

import pytest

from ringd.host import streampair

ONE_CALL = 64 << 10  # bytes; what travels inside a message


@pytest.fixture
def pair():
    """Give both ends."""
    with contextlib.ExitStack() as stack:
        ends = streampair.stream_pair()
        yield tuple(stack.enter_context(end) for end in ends)


def test_small_calls_fit_at_once(pair):
    """Each way: who sends one need not wait for who reads it."""
    for sender, receiver in (pair, pair[::-1]):
        sender.setblocking(False)
        assert sender.send(bytes(ONE_CALL)) == ONE_CALL
        assert len(receiver.recv(ONE_CALL, socket.MSG_WAITALL)) == ONE_CALL


def test_a_system_that_allows_no_such_room_gives_what_it_has(monkeypatch):
    """It is slower then."""

    def refused(*_):
        raise OSError(105, "No buffer space available")

    monkeypatch.setattr(streampair, "silence", lambda _stream: None)
    monkeypatch.setattr(socket.socket, "setsockopt", refused)
    for end in streampair.stream_pair():
        end.close()


@pytest.mark.parametrize(
    ("flag", "asked"),
    [(0, [(socket.SOL_SOCKET, 0x1022, 1)]), (16384, [])],
    ids=["macOS", "Linux"],
)
def test_one_of_two_ways_keeps_the_signal_off(monkeypatch, flag, asked):
    """A flag of each send, or where there is none an option of the socket."""

    class Stream:
        def __init__(self):
            self.asked = []

        def setsockopt(self, *option):
            self.asked.append(option)

    monkeypatch.setattr(streampair, "NO_SIGNAL", flag)
    stream = Stream()
    streampair.silence(stream)
    assert stream.asked == asked
