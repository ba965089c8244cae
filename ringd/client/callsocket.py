"""The program's end of its call socket: messages out and in, whatever interrupts come.

An interrupt comes between two calls into C, and never within one. So a system call and the store of
what it did are one here, as in ``list.extend(map(recv, ...))``: no byte is lost, nor sent twice.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque

from ringd.host.streampair import NO_SIGNAL, silence
from ringd.wire.border.stream import LENGTH, missing

_READ = (100 << 10,)  # the arguments of one call of recv: a message of 64 KiB and some
_WRITES = 8  # system calls in one go, of a daemon that reads as fast as we write

Part = bytes | memoryview


class CallSocket:
    """Owns *connection*. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        silence(connection)
        self._socket = connection
        self._out: deque[tuple[tuple[Part, ...], list[int]]] = deque()
        """Messages on their way, and how many bytes of each went with the last call, if it was one
        since that was noted."""
        self._in: list[Part] = []
        """What has arrived and is not taken; the first piece begins with a message."""
        self._short = False
        """The last call had room for more than there was: ask no more in this turn."""

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
        if not out:
            return
        with contextlib.suppress(BlockingIOError):
            for _ in range(_WRITES):
                if not out:
                    return
                parts, sent = out[0]
                if not sent:
                    sent.extend(map(self._socket.sendmsg, (parts,), ((),), (NO_SIGNAL,)))
                if sent[0] == sum(map(len, parts)):
                    out.popleft()
                else:
                    whole = parts[0] if len(parts) == 1 else b"".join(parts)
                    out[0] = ((memoryview(whole)[sent[0] :],), [])

    # --- in ---------------------------------------------------------------------------

    def receive(self) -> bytes | None:
        """Return the next message; None when it has not come. The same one until it is taken.

        Raises:
            OSError: the daemon has closed its end, and all that it sent is taken; or it sent what
                can be no message.
        """
        pieces = self._in
        while True:
            size = missing(pieces[0]) if pieces else LENGTH.size
            if pieces and LENGTH.size < size <= len(pieces[0]):
                return bytes(pieces[0][LENGTH.size : size])  # aligned, as a payload is in front
            if pieces and size == LENGTH.size <= len(pieces[0]):
                raise OSError(errno.EPROTO, "the daemon sent an empty message")
            if len(pieces) > 1 and size <= sum(map(len, pieces)):
                pieces[:] = [b"".join(pieces)]
                continue
            if self._short:  # nothing was left behind what came last
                self._short = False
                return None
            try:
                pieces.extend(map(self._socket.recv, _READ))
            except BlockingIOError:
                return None
            if not pieces[-1]:
                del pieces[-1]
                raise ConnectionResetError(errno.ECONNRESET, "the daemon hung up")
            self._short = len(pieces[-1]) < _READ[0]

    def taken(self) -> None:
        """The message that :meth:`receive` returned has been acted on."""
        first = self._in[0]
        size = missing(first)
        if size == len(first):
            del self._in[0]
        else:
            self._in[0] = memoryview(first)[size:]
