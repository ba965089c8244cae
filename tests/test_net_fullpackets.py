"""Whether full packets arrive: said of one that takes them, of one that does not, and of nobody."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

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


IP = shutil.which("ip")

SERVE = """
import socket, sys
with socket.create_server(("10.9.0.2", 5680)):
    print("listening", flush=True)
    sys.stdin.read()
"""
REACH = """
from ringd.net.fullpackets import reach
print(reach("10.9.0.2", 5680, within=1.0).full)
"""


def ip(*words: str) -> None:
    """Run ``ip``, of iproute2."""
    assert IP is not None
    subprocess.run([IP, *words], check=True)


@pytest.fixture
def way() -> Iterator[dict[str, str]]:
    """Give the ends of a way in network namespaces, and the bridge on it, by name."""
    if IP is None or os.geteuid():
        pytest.skip("network namespaces need root and iproute2")
    names = {part: f"ringd-{part}-{os.getpid()}" for part in ("here", "there", "bridge")}
    try:
        for name in names.values():
            ip("netns", "add", name)
        ip("-n", names["bridge"], "link", "add", "name", "switch", "type", "bridge")
        ip("-n", names["bridge"], "link", "set", "switch", "up")
        for end, address in (("here", "10.9.0.1/24"), ("there", "10.9.0.2/24")):
            peer = ("peer", "name", end, "netns", names["bridge"])
            ip("link", "add", "name", "eth0", "netns", names[end], "type", "veth", *peer)
            ip("-n", names["bridge"], "link", "set", end, "master", "switch", "up")
            ip("-n", names[end], "addr", "add", address, "dev", "eth0")
            # As a network card would: each packet for itself, none larger than the MTU.
            ip("-n", names[end], "link", "set", "eth0", "gso_max_segs", "1", "up")
        yield names
    finally:
        for name in names.values():
            ip("netns", "del", name)


def test_a_real_black_hole(way: dict[str, str]) -> None:
    """A bridge with a smaller MTU drops without a word what is larger, and is found out."""

    def within(end: str, code: str) -> list[str]:
        return [str(IP), "netns", "exec", way[end], sys.executable, "-c", code]

    with subprocess.Popen(
        within("there", SERVE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        for mtu, full in (("1280", "False\n"), ("1500", "True\n")):
            ip("-n", way["bridge"], "link", "set", "there", "mtu", mtu)
            done = subprocess.run(
                within("here", REACH), stdout=subprocess.PIPE, text=True, check=True
            )
            assert done.stdout == full
        server.communicate("")
