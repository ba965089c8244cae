"""Whether full packets arrive: said of one that takes them, of one that does not, and of nobody."""

from __future__ import annotations

import errno
import socket
import struct
import threading

from ringd.net.fullpackets import reach


def test_they_arrive() -> None:
    """Whoever listens need not even accept."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = reach("127.0.0.1", server.getsockname()[1], within=5.0)
    assert (reached.full, reached.error, reached.errno) == (True, "", 0)
    assert reached.seconds is not None
    assert 0 < reached.seconds < 5


def test_small_ones_arrive_and_large_ones_do_not() -> None:
    """As on a way that loses them: here the receiver has no room for more than the head."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        reached = reach("127.0.0.1", server.getsockname()[1], within=0.3)
    assert (reached.full, reached.error) == (False, "")


def test_nobody_listens() -> None:
    """The system's error, in words and by its number."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        reached = reach("127.0.0.1", taken.getsockname()[1], within=5.0)
    assert reached.errno == errno.ECONNREFUSED
    assert reached.error.startswith("connection refused")
    assert (reached.seconds, reached.full) == (None, None)


def test_one_that_hangs_up() -> None:
    """Nothing is concluded from another program."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def slam() -> None:
            visitor, _ = server.accept()
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            visitor.recv(1)
            visitor.close()

        thread = threading.Thread(target=slam)
        thread.start()
        reached = reach("127.0.0.1", server.getsockname()[1], within=5.0)
        thread.join()
    assert reached.seconds is not None
    assert reached.full in {None, True}
