"""A TCP proxy for tests: stands before a daemon's port and disturbs what goes through it.

One thread per proxy. Counters and switches may be used from any thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable

_PIECE = 64 << 10
_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class Proxy:
    """Forwards each connection to *port* on loopback; listens at :attr:`port`, any or *listen*.

    ``cut`` resets what is open; ``strand`` keeps it open for ever and moves nothing, while new ones
    go through; ``stall`` keeps connections but moves nothing any more (a pulled cable), ``resume``
    moves on, and nothing is lost. ``stall_after(n)`` stalls by itself once *n* more bytes went to
    the daemon, so that a test can stop in the middle of a message. With *hole*, nothing more
    goes to the daemon on a connection that has carried so many bytes there: the rest is too large.
    All bytes go through :attr:`through`, in the proxy's thread.
    """

    def __init__(self, port: int, *, listen: int = 0, hole: int | None = None) -> None:
        self._target = port
        self._hole = hole
        self._passed: dict[socket.socket, int] = {}
        self._listener = socket.create_server(("127.0.0.1", listen), backlog=64)
        if hole is not None:  # else the system would take what does not get through
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.port: int = self._listener.getsockname()[1]
        self.forwarded = 0
        """Bytes that went to the daemon."""
        self.through: Callable[[bool, bytes], bytes] = lambda _down, data: data
        """Given whether they go to the daemon, and bytes, returns those that go in their place."""
        self.stalled = threading.Event()
        self._limit: int | None = None
        self._peer: dict[socket.socket, socket.socket] = {}
        self._downstream: set[socket.socket] = set()
        self._cut = False
        self._strand = False
        self._stranded: list[socket.socket] = []
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- switches ---------------------------------------------------------------------

    def cut(self) -> None:
        """Reset all connections that are open; new ones are let through."""
        self._cut = True
        self._wake()

    def strand(self) -> None:
        """Keep all connections that are open, and forget them; new ones are let through."""
        self._strand = True
        self._wake()

    def stall(self) -> None:
        """Move nothing more, in either direction; new connections are accepted and wait too."""
        self.stalled.set()

    def stall_after(self, count: int) -> None:
        """Stall once *count* more bytes went to the daemon."""
        self._limit = self.forwarded + count

    def resume(self) -> None:
        """Move on."""
        self._limit = None
        self.stalled.clear()
        self._wake()

    def fill(self) -> None:
        """Let everything through from now on, also what is too large for the *hole*."""
        self._hole = None
        self.cut()

    def close(self) -> None:
        """Reset everything and end."""
        self._closed = True
        self._wake()
        self._thread.join()
        os.close(self._wake_read)  # not in the thread, which may end before it is woken
        os.close(self._wake_write)

    # --- the thread -------------------------------------------------------------------

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._peer:
                    self._forward(key.fileobj)
            if self._cut:
                self._cut = False
                self._drop_all()
            if self._strand:
                self._strand = False
                for sock in self._peer:
                    self._selector.unregister(sock)
                    self._stranded.append(sock)
                self._peer.clear()
                self._downstream.clear()
        self._drop_all()
        for sock in self._stranded:
            self._reset(sock)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            self._reset(near)
            return
        for sock, other in ((near, far), (far, near)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(5)
            self._peer[sock] = other
            self._selector.register(sock, selectors.EVENT_READ)
        self._downstream.add(near)

    def _forward(self, sock: socket.socket) -> None:
        if self.stalled.is_set():
            self._sleep_until_resumed()
            return
        down = sock in self._downstream
        room = _PIECE if self._hole is None else 4096
        limit = self._limit
        if down and limit is not None:
            room = min(room, limit - self.forwarded)
        if room <= 0:
            self.stalled.set()
            if self._limit is None:  # it was just told to move on
                self.stalled.clear()
            return
        try:
            data = sock.recv(room)
            if data:
                self._peer[sock].sendall(self.through(down, data))
        except OSError:
            self._drop(sock, reset=True)
            return
        if not data:
            self._drop(sock, reset=False)
        elif down:
            self.forwarded += len(data)
            self._passed[sock] = self._passed.get(sock, 0) + len(data)
            if self._hole is not None and self._passed[sock] > self._hole:
                self._selector.unregister(sock)

    def _sleep_until_resumed(self) -> None:
        """Wait for the switches alone: readable sockets would wake the selector for ever."""
        while self.stalled.is_set() and not self._cut and not self._closed:
            os.read(self._wake_read, 4096)

    def _drop(self, sock: socket.socket, *, reset: bool) -> None:
        other = self._peer.pop(sock)
        del self._peer[other]
        for end in (sock, other):
            with contextlib.suppress(KeyError):  # of a connection with a hole
                self._selector.unregister(end)
            self._passed.pop(end, None)
            self._downstream.discard(end)
            if reset:
                self._reset(end)
            end.close()

    def _drop_all(self) -> None:
        for sock in list(self._downstream):
            self._drop(sock, reset=True)

    @staticmethod
    def _reset(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            sock.close()
