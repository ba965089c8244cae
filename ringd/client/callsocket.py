"""The program's end of its call socket: messages out and in, whatever interrupts come.

An interrupt comes between two calls into C, and never within one. So a system call and the store of
what it did are one here, as in ``list.extend(map(recv, ...))``: no byte is lost, nor sent twice.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque

from ringd.wire.border.stream import LENGTH, missing

_READ = (100 << 10,)  # the arguments of one call of recv: a message of 64 KiB and some

Part = bytes | memoryview


class CallSocket:
    """Owns *connection*. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._out: deque[tuple[tuple[Part, ...], list[int]]] = deque()
        """Messages on their way, and how many bytes of each were sent, call by call."""
        self._in: list[Part] = []
        """What has arrived and is not taken; the first piece begins with a message."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Release the descriptor."""
        self._socket.close()

    # --- out --------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether something waits here until the daemon reads."""
        return bool(self._out)

    def send(self, parts: tuple[Part, ...]) -> None:
        """Send the message that *parts* make, behind those that wait; never blocks.

        Raises:
            OSError: the daemon is gone.
        """
        self._out.append(((LENGTH.pack(sum(map(len, parts))), *parts), []))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it; raises OSError as :meth:`send` does."""
        out = self._out
        with contextlib.suppress(BlockingIOError):
            while out:
                parts, sent = out[0]
                rest = (memoryview(b"".join(parts))[sum(sent) :],) if sent else parts
                if rest[0]:
                    sent.extend(map(self._socket.sendmsg, (rest,)))
                if sum(sent) == sum(map(len, parts)):
                    out.popleft()

    # --- in ---------------------------------------------------------------------------

    def receive(self) -> bytes | None:
        """Return the next message; None when it has not come. The same one until it is taken.

        Raises:
            OSError: the daemon has closed its end, and all that it sent is taken.
        """
        pieces = self._in
        while True:
            size = missing(pieces[0]) if pieces else LENGTH.size
            if pieces and LENGTH.size < size <= len(pieces[0]):
                return bytes(pieces[0][LENGTH.size : size])  # aligned, as a payload is in front
            if len(pieces) > 1 and size <= sum(map(len, pieces)):
                pieces[:] = [b"".join(pieces)]
                continue
            try:
                pieces.extend(map(self._socket.recv, _READ))
            except BlockingIOError:
                return None
            if not pieces[-1]:
                del pieces[-1]
                raise ConnectionResetError(errno.ECONNRESET, "the daemon hung up")

    def taken(self) -> None:
        """The message that :meth:`receive` returned has been acted on."""
        first = self._in[0]
        size = missing(first)
        if size == len(first):
            del self._in[0]
        else:
            self._in[0] = memoryview(first)[size:]
