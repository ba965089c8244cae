"""What a connection's other side has not acknowledged, as either system tells it."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest
from netkit import tcp_pair

from ringd.host import tcp


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_bytes_that_nobody_takes_are_counted():
    """Nothing at first; what does not fit into the other side's memory is not acknowledged."""
    one, other = tcp_pair()
    with one, other:
        assert tcp.unacknowledged(one) == 0
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(1 << 20))
        assert tcp.unacknowledged(one) > 10_000


class Socket:
    """A socket of macOS."""

    def __init__(self, answer):
        self._answer = answer

    def getsockopt(self, level, option):
        """Return the bytes in the send buffer."""
        assert (level, option) == (socket.SOL_SOCKET, 0x1024)
        if isinstance(self._answer, OSError):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(("answer", "expected"), [(77, 77), (OSError("invalid"), 0)])
def test_macos_says_it_by_an_option(monkeypatch, answer, expected):
    """There, SO_NWRITE tells; a socket that is gone has nothing."""
    monkeypatch.setattr(tcp.sys, "platform", "darwin")
    assert tcp.unacknowledged(Socket(answer)) == expected


@pytest.mark.parametrize(("platform", "option"), [("linux", "-M do"), ("darwin", "-D")])
def test_the_ping_that_is_not_cut(monkeypatch, platform, option):
    """Each system's ping has an option of its own against fragments."""
    monkeypatch.setattr(tcp.sys, "platform", platform)
    assert tcp.large_ping("10.0.0.2") == f"ping {option} -s 1472 10.0.0.2"
