"""The program's end of its call socket: messages out and in, whatever interrupts come.

An interrupt comes between two calls into C, and never within one. So a system call and the store of
what it did are one here, as in ``list.extend(map(recv, ...))``: no byte is lost, nor sent twice.
"""

from __future__ import annotations

import errno
import socket
from collections import deque

from ringd.host.streampair import NO_SIGNAL, silence
from ringd.wire.border.stream import LENGTH

_READ = (100 << 10,)  # the arguments of one call of recv: a message of 64 KiB and some
_WRITES = 8  # system calls in one go, of a daemon that reads as fast as we write

Part = bytes | memoryview


class CallSocket:
    """Owns *connection*. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        silence(connection)
        self._socket = connection
        self.unsent: deque[tuple[tuple[Part, ...], list[int]]] = deque()
        """Messages that wait here until the daemon reads, and how many bytes of each went with the
        last call, if it was one since that was noted."""
        self.holds: list[Part] = []
        """What has arrived and is not taken; the first piece begins with a message."""
        self._size = 0
        """Bytes of that message, with its length, as :meth:`receive` has read them last."""
        self._short = False
        """The last call had room for more than there was: ask no more in this turn."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Release the descriptor."""
        self._socket.close()

    # --- out --------------------------------------------------------------------------

    def send(self, parts: tuple[Part, ...] = ()) -> None:
        """Send what waits, and behind it the message that *parts* make, if they are any.

        As far as the socket takes that; never blocks.

        Raises:
            OSError: the daemon is gone.
        """
        unsent = self.unsent
        if parts:
            unsent.append(((LENGTH.pack(sum(map(len, parts))), *parts), []))
        for _ in range(_WRITES):
            if not unsent:
                return
            parts, sent = unsent[0]
            if not sent:
                try:
                    sent.extend(map(self._socket.sendmsg, (parts,), ((),), (NO_SIGNAL,)))
                except BlockingIOError:
                    return
            if sent[0] == sum(map(len, parts)):
                unsent.popleft()
            else:
                whole = parts[0] if len(parts) == 1 else b"".join(parts)
                unsent[0] = ((memoryview(whole)[sent[0] :],), [])

    # --- in ---------------------------------------------------------------------------

    def receive(self) -> bytes | None:
        """Return the next message; None when it has not come. The same one until it is taken.

        Raises:
            OSError: the daemon has closed its end, and all that it sent is taken; or it sent what
                can be no message.
        """
        pieces = self.holds
        while True:
            if pieces:
                first = pieces[0]
                whole = len(first) >= LENGTH.size
                size = LENGTH.size + (LENGTH.unpack_from(first)[0] if whole else 0)
                self._size = size
                if LENGTH.size < size <= len(first):
                    return bytes(first[LENGTH.size : size])  # aligned, as a payload is in front
                if size == LENGTH.size <= len(first):
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

    def taken(self) -> bool:
        """The message that :meth:`receive` returned has been acted on.

        Returns:
            Whether to ask for the next one: False where none was there when this one came.
        """
        pieces = self.holds
        if self._size < len(pieces[0]):
            pieces[0] = memoryview(pieces[0])[self._size :]
            return True
        del pieces[0]
        if pieces or not self._short:
            return True
        self._short = False
        return False
