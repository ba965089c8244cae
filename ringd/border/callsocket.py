"""The daemon's end of a client's call socket: its messages in, and ours out."""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable

from ringd.border.accounts import Share
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.wire.border.messages import MAX_TAIL
from ringd.wire.border.stream import LENGTH

_READ = 100 << 10  # bytes in one system call: a message of 64 KiB and some
_READ_ON = 128 << 10  # likewise, of the rest of a message, straight to its place
_BATCH = 8  # messages of one client taken in one go, then the others and the links have their turn
_READS = 8  # likewise, of messages that are not complete
_LARGE = 1 << 20  # bytes; messages that have more count in the account before they are here
_MOST_QUEUED = 1 << 18  # messages, for one that does not read; those of calls are counted

Part = bytes | memoryview
_NOTHING = memoryview(b"")


class CallSocket:
    """Owns *connection*.

    Args:
        loop: the daemon's.
        connection: a stream.
        max_message: bytes of one message at most.
        messages: the account in which count the bytes of a large message that is arriving, and of
            those that wait for the other side to read.
        on_message: called with each one; or, when there was no room for one, with its end alone,
            up to :data:`MAX_TAIL` bytes, and why. May be set once this is made.
        on_end: called once, when it is closed: with the reason, if the other side broke the rules
            or reads nothing; with none if that has closed its end.
    """

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        *,
        max_message: int,
        messages: Share,
        on_end: Callable[[str], None],
        on_message: Callable[[bytes | memoryview, str], None] = lambda *_: None,
    ) -> None:
        self._loop = loop
        self._socket = connection
        self._max_message = max_message
        self._messages = messages
        self.on_message = on_message
        self._on_end = on_end
        self._stream = _NOTHING
        """What has arrived, from the beginning of a message on."""
        self._whole: memoryview | None = None
        """In its place, a message that is arriving, where it will stand."""
        self._filled = 0
        """Bytes of that which are here."""
        self._reserved = 0
        """Bytes that count in the account, of the message that is arriving."""
        self._cut: _Cut | None = None
        """In its place, a message for which there is no room."""
        self._going_on = False
        """Messages that have arrived are to be taken in soon."""
        self._out: deque[bytes | memoryview] = deque()
        """What the socket has had no room for."""
        self._waiting = 0
        """Bytes of that."""
        self._events = EVENT_READ
        self._open = True
        connection.setblocking(False)
        loop.add(connection, EVENT_READ, self._ready)

    def close(self) -> None:
        """Release the socket; harmless once more."""
        if self._open:
            self._open = False
            self._loop.remove(self._socket)
            self._socket.close()
            self._drop()
            self._whole = None
            self._messages.give(self._reserved)
            self._reserved = 0
            self.on_message = self._on_end = _ignore  # they know the client, which knows us

    def _end(self, reason: str) -> None:
        on_end = self._on_end
        self.close()
        on_end(reason)

    # --- in ---------------------------------------------------------------------------

    def drain(self, most: int = _BATCH) -> bool:
        """Take in up to *most* messages that have arrived; return whether there may be more here.

        Of what is still in the socket, the loop tells.
        """
        reads, more = 0, True
        while most:
            begun = self._stream or self._whole is not None or self._cut is not None
            if begun and (message := self._first()) is not None:
                self.on_message(*message)
                most -= 1
            elif not more or reads == _READS or not self._open:
                return False
            else:
                more = self._read()
                reads += 1
        return True

    def _first(self) -> tuple[bytes | memoryview, str] | None:
        """Return the first message that has arrived, as for ``on_message``; None if none has."""
        if (cut := self._cut) is not None:
            if cut.left:
                return None
            self._cut = None
            return cut.tail(), cut.reason
        if (whole := self._whole) is not None:
            if self._filled < len(whole):
                return None
            self._whole = None
            self._messages.give(self._reserved)
            self._reserved = 0
            return whole.toreadonly(), ""
        stream = self._stream
        if len(stream) < LENGTH.size or not self._open:
            return None
        nbytes: int = LENGTH.unpack_from(stream)[0]
        size = LENGTH.size + nbytes
        if nbytes and size <= len(stream):
            self._stream = stream[size:] or _NOTHING
            # Copied: its payload, which is in front, is aligned then, and stays with the call.
            return bytes(stream[LENGTH.size : size]), ""
        if nbytes > self._max_message:
            self._end(f"it sent a message of more than {self._max_message} bytes")
        elif nbytes:
            self._expect(size)
        else:
            self._end("it sent an empty message")  # which would never be complete
        return None

    def _expect(self, size: int) -> None:
        """Have the rest of a message of *size* bytes, which has begun to arrive, go to its place.

        A large one counts in the account from now on.
        """
        stream, self._stream = self._stream, _NOTHING
        if size > _LARGE:
            if refusal := self._messages.refusal(size):
                self._cut = _Cut(size, refusal)
                self._cut.take(stream)
                return
            self._reserved = size
            self._messages.take(size)
        self._whole = memoryview(bytearray(size - LENGTH.size))
        self._filled = len(stream) - LENGTH.size
        self._whole[: self._filled] = stream[LENGTH.size :]

    def _read(self) -> bool:
        """Read once; return whether there may be more."""
        whole, data = self._whole, b""
        room = _READ if whole is None else min(_READ_ON, len(whole) - self._filled)
        try:
            if whole is None:
                data = self._socket.recv(room)
                got = len(data)
            else:
                got = self._socket.recv_into(whole[self._filled :], room)
        except BlockingIOError:
            return False
        except OSError:
            got = 0
        if not got:
            self._end("")
        elif whole is not None:
            self._filled += got
        else:
            rest = memoryview(data) if self._cut is None else self._cut.take(memoryview(data))
            self._stream = memoryview(b"".join((self._stream, rest))) if self._stream else rest
        return got == room

    # --- out --------------------------------------------------------------------------

    def send(self, parts: tuple[Part, ...], *, most_waiting: float = math.inf) -> None:
        """Send the message that *parts* make, which are copied if they have to wait.

        Once the other side is gone it is dropped: of that the lifeline tells.

        Args:
            parts: of one message.
            most_waiting: bytes that may wait, for one that does not read; beyond that, this ends.
        """
        if not self._open:
            return
        nbytes = sum(map(len, parts))
        parts = (LENGTH.pack(nbytes), *parts)
        if self._out:
            self._wait(b"".join(parts), most_waiting)
            return
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < LENGTH.size + nbytes:
            self._watch(EVENT_READ | EVENT_WRITE)
            self._wait(_behind(parts, sent), most_waiting)

    def _wait(self, message: Part, most_waiting: float) -> None:
        refusal = self._messages.refusal(len(message))
        self._out.append(message)
        self._waiting += len(message)
        self._messages.take(len(message))
        if refusal:
            self._end(f"it does not read what the daemon sends: {refusal}")
        elif len(self._out) > _MOST_QUEUED or self._waiting > most_waiting:
            self._end("it does not read what the daemon sends")

    def _drop(self) -> None:
        self._out.clear()
        self._messages.give(self._waiting)
        self._waiting = 0

    def _flush(self) -> None:
        out = self._out
        try:
            while out:
                sent = self._socket.send(out[0])
                self._waiting -= sent
                self._messages.give(sent)
                if sent < len(out[0]):
                    out[0] = memoryview(out[0])[sent:]
                    return
                out.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._drop()
        self._watch(EVENT_READ)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._loop.modify(self._socket, events)

    def _ready(self, events: int) -> None:
        if events & EVENT_WRITE and self._open:
            self._flush()
        if events & EVENT_READ and not self._going_on and self.drain():
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        self._ready(EVENT_READ)


def _behind(parts: tuple[Part, ...], sent: int) -> bytes:
    """Return what follows the first *sent* bytes of *parts*."""
    rest = []
    for part in parts:
        rest.append(memoryview(part)[sent:])
        sent = max(0, sent - len(part))
    return b"".join(rest)


class _Cut:
    """A message for which there is no room: its end is kept, which says what it is."""

    def __init__(self, size: int, reason: str) -> None:
        self.left = size
        """Bytes that have yet to come."""
        self.reason = reason
        self._pieces: deque[Part] = deque()
        self._kept = 0

    def take(self, data: memoryview) -> memoryview:
        """Take what has arrived, and return what stands behind the message."""
        piece = data[: self.left]
        self.left -= len(piece)
        self._pieces.append(bytes(piece))
        self._kept += len(piece)
        while self._kept - len(self._pieces[0]) >= MAX_TAIL:
            self._kept -= len(self._pieces.popleft())
        return data[len(piece) :]

    def tail(self) -> bytes:
        """Return its end."""
        return b"".join(self._pieces)[-MAX_TAIL:]


def _ignore(*_: str | bytes | memoryview) -> None:
    """It is closed."""
