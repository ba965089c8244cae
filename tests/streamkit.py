"""Programs that speak TCP, for the tests of streams."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.cluster import PATIENCE, wait_until

PIECE = 1 << 16


class Server:
    """Serves each connection with *serve*, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Server:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection)


def echo(connection: socket.socket) -> None:
    """Send back all that comes."""
    while data := connection.recv(PIECE):
        connection.sendall(data)


def speech(seed: int, size: int) -> Iterator[bytes]:
    """Give *size* bytes that follow from *seed*, piece by piece."""
    random = Random(seed)
    block = random.randbytes(PIECE)
    for number in range(0, size, PIECE):
        piece = number.to_bytes(8, "little") + block[8:]
        yield piece[: size - number]


def digest(seed: int, size: int) -> str:
    """Return what :func:`hear` returns of such a speech."""
    total = hashlib.blake2b()
    for piece in speech(seed, size):
        total.update(piece)
    return total.hexdigest()


def say(connection: socket.socket, seed: int, size: int) -> None:
    """Say it all, and that it is all."""
    for piece in speech(seed, size):
        connection.sendall(piece)
    connection.shutdown(socket.SHUT_WR)


def hear(connection: socket.socket) -> str:
    """Return the digest of all that comes."""
    total = hashlib.blake2b()
    while data := connection.recv(1 << 18):
        total.update(data)
    return total.hexdigest()


def connect(port: int) -> socket.socket:
    """Connect to a port of loopback, as soon as somebody is there."""

    def attempt() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        except ConnectionRefusedError:
            return None

    found = wait_until(attempt, f"a listener on port {port}")
    assert isinstance(found, socket.socket)
    return found


def exactly(connection: socket.socket, count: int) -> bytes:
    """Return the next *count* bytes; MSG_WAITALL gives fewer where there is a timeout."""
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError(f"{len(data)} bytes of {count}")
        data += piece
    return bytes(data)


def ask(connection: socket.socket, question: bytes) -> bytes:
    """Send a question, and return as many bytes of answer."""
    connection.sendall(question)
    return exactly(connection, len(question))


def _peer(client: socket.socket) -> list[str]:
    """Return what the kernel says of the other end of *client*, on this machine (Linux)."""
    ends = f":{client.getpeername()[1]:04X}", f":{client.getsockname()[1]:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    rows = [line.split() for line in lines]
    [row] = [row for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])]
    return row


def unread(client: socket.socket) -> int:
    """Return how many bytes of *client* its peer has not read."""
    return int(_peer(client)[4].partition(":")[2], 16)


def let_in(client: socket.socket, pid: int) -> bool:
    """Whether the process *pid* has accepted *client*, and sleeps again since."""
    accepted = _peer(client)[9] != "0"
    return accepted and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
