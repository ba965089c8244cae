"""Sockets for links: no congestion control that sends by timers, unless that is asked for."""

from __future__ import annotations

import socket
import sys

import pytest

from ringd.host import tcp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux alone")


def _congestion(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


class Kernel:
    """A socket of a kernel that lets only some algorithms be chosen."""

    def __init__(self, current: bytes, allowed: set[bytes]) -> None:
        self.current = current
        self._allowed = allowed

    def getsockopt(self, _level: int, _option: int, _size: int) -> bytes:
        """Return the algorithm as the kernel does, padded."""
        return self.current.ljust(16, b"\0")

    def setsockopt(self, _level: int, _option: int, name: bytes) -> None:
        """Choose the algorithm *name*, if that is allowed."""
        if name not in self._allowed:
            raise PermissionError
        self.current = name


@pytest.mark.parametrize(
    ("current", "allowed", "expected"),
    [
        (b"bbr", {b"cubic", b"reno", b"bbr"}, b"cubic"),
        (b"bbr", {b"reno", b"bbr"}, b"reno"),
        (b"bbr", {b"bbr"}, b"bbr"),
        (b"dctcp", {b"cubic", b"reno"}, b"dctcp"),
    ],
)
def test_bbr_alone_is_replaced_by_the_best_that_is_allowed(
    current: bytes, allowed: set[bytes], expected: bytes
) -> None:
    """Cubic, else reno, takes the place of bbr; every other choice of the system stays."""
    kernel = Kernel(current, allowed)
    tcp._avoid_pacing(kernel)  # type: ignore[arg-type]
    assert kernel.current == expected


def test_system_leaves_the_choice_of_the_system() -> None:
    """With "system" a link's socket has what any other socket has."""
    with socket.socket() as plain, tcp.link_socket(socket.AF_INET, "system") as ours:
        assert _congestion(ours) == _congestion(plain)


def test_both_ends_of_a_connection_go_without_bbr() -> None:
    """What is accepted has the choice of the socket that listens."""
    with (
        tcp.link_socket(socket.AF_INET, "auto") as listening,
        tcp.link_socket(socket.AF_INET, "auto") as dialing,
    ):
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        dialing.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            assert not _congestion(dialing).startswith(b"bbr")
            assert _congestion(accepted) == _congestion(listening) == _congestion(dialing)
