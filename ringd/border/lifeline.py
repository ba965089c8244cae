"""The daemon's side of the lifelines: who is there, their memory segments, and their end."""

from __future__ import annotations

import array
import contextlib
import os
import secrets
import socket
from collections.abc import Callable

from ringd.border.accounts import Account
from ringd.border.segments import SegmentAbuse, SegmentTable
from ringd.host.credentials import Credentials, peer_credentials
from ringd.host.limits import OpenFiles
from ringd.host.process import ending
from ringd.host.streampair import stream_pair
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.wire.border import lifeline as wire
from ringd.wire.border.messages import TOKEN_BYTES

DESCRIPTORS = 3
"""That a lifeline takes, with the call socket and that of a segment that is on its way."""

_RECORDS_PER_EVENT = 256  # then the others have their turn
_RECORDS_PER_CALL = 4096  # more than a socket holds, and than a decent client has to say
_MOST_UNREAD = 1 << 20  # bytes that wait for a client that is stopped, beside what the socket has
_FDS_PER_RECORD = 4  # more than the one that belongs there, so that the others get closed
_ANCILLARY = socket.CMSG_SPACE(_FDS_PER_RECORD * array.array("i").itemsize)
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # absent on macOS


class Lifeline:
    """One client's stream: its token, its credentials and its segments.

    ``on_end(reason)`` is called from the loop, once, when the other side is gone or broke the
    rules; never after :meth:`close`, and never from within :meth:`drain`.
    """

    def __init__(
        self, loop: Loop, connection: socket.socket, account: Account, open_files: OpenFiles
    ) -> None:
        """Take over *connection*, and *account*, in which its segments count.

        Raises:
            OSError: the other side is gone already, or there is no room for more open files.
        """
        self.credentials: Credentials = peer_credentials(connection)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.account = account
        self.segments = SegmentTable(account, open_files)
        self.on_end: Callable[[str], None] | None = None
        self.parted = False
        """Whether the other side said that it hangs up and lives on."""
        self.died = False
        """Whether the stream ended with its process."""
        self._loop = loop
        self._connection = connection
        self._partial = b""
        self._unsent = bytearray()
        """What the socket has had no room for."""
        self._fds: list[int] = []  # of the record that is under way
        self._fd_lost = False
        self._open = True
        connection.setblocking(False)
        self.calls, theirs = stream_pair()
        """The daemon's end of the call socket."""
        try:
            with theirs:  # an empty socket takes 16 bytes
                socket.send_fds(connection, [self.token], [theirs.fileno()])
        except OSError:
            self.calls.close()
            raise
        self._events = EVENT_READ
        loop.add(connection, EVENT_READ, self._ready)

    def drain(self, wanted: int | None = None) -> None:
        """Take in records that have arrived; does not block, nor go on for ever.

        *wanted*: stop once this segment is mapped.
        """
        for _ in range(_RECORDS_PER_EVENT if wanted is None else _RECORDS_PER_CALL):
            if not self._open or (wanted is not None and wanted in self.segments):
                return
            try:
                data, ancillary, flags, _ = self._connection.recvmsg(
                    wire.RECORD_BYTES - len(self._partial), _ANCILLARY, _RECEIVE_FLAGS
                )
            except BlockingIOError:
                return
            except OSError as error:
                self._ended(f"its lifeline broke: {error.strerror}")
                return
            self._take_fds(ancillary)
            if len(self._fds) > 1:  # else the descriptors of a record without end would pile up
                self._end("it broke the lifeline's protocol: two descriptors for one record")
                return
            self._fd_lost |= bool(flags & socket.MSG_CTRUNC)
            if not data:
                self._ended("its lifeline ended without a word")
                return
            self._partial += data
            if len(self._partial) == wire.RECORD_BYTES:
                self._record()

    def send(self, record: bytes) -> None:
        """Send *record*, at once: it arrives even if this process dies now.

        Only where hundreds are unread, as by a program that was stopped in hundreds of groups, it
        waits here, behind those before it.
        """
        if not self._open:
            return
        waiting = bool(self._unsent)
        self._unsent += record
        if not waiting:
            self._send()
        if len(self._unsent) > _MOST_UNREAD:
            self._end("it does not read what the daemon sends")

    def _send(self) -> None:
        """Send what waits, as far as there is room for it."""
        try:
            del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._unsent.clear()  # what it has said is yet to be read, and then its end
        except OSError as error:
            self._end(f"its lifeline broke: {error.strerror}")
            return
        events = EVENT_READ | EVENT_WRITE if self._unsent else EVENT_READ
        if events != self._events:
            self._events = events
            self._loop.modify(self._connection, events)

    @property
    def ended(self) -> bool:
        """Whether the other side is gone; known here before ``on_end`` is called."""
        self.drain()
        return not self._open

    def close(self) -> None:
        """Hang up; the client reads the end of the stream. Segments stay while views do."""
        self._hang_up()
        self.segments.clear()
        self.on_end = None  # it knows the client, which knows us: no work for the collector

    def _ready(self, events: int) -> None:
        if events & EVENT_WRITE:
            self._send()
        self.drain()

    def _record(self) -> None:
        try:
            self._obey(*wire.unpack(self._partial))
        except (SegmentAbuse, ValueError) as error:
            self._end(f"it broke the lifeline's protocol: {error}")
        finally:
            self._partial = b""
            self._fd_lost = False
            self._close_fds()

    def _obey(self, operation: int, segment: int, size: int) -> None:
        fds = len(self._fds)
        if operation == wire.ADD:
            if fds == 0 and not self._fd_lost:
                raise SegmentAbuse("a segment came without a descriptor")
            self.segments.add(segment, size, self._fds[0] if fds else None)
        elif fds:
            raise SegmentAbuse("a descriptor came where none belongs")
        elif operation == wire.PART:
            self.parted = True
        elif operation == wire.BEAT:
            self.send(wire.NOTHING)
        else:
            self.segments.drop(segment)

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _hang_up(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove(self._connection)
            self._connection.close()
            self._close_fds()

    def _ended(self, reason: str) -> None:
        # The word may be missing where this side had read nothing for long: ask the system too.
        if self.parted:
            reason = "the program hung up"
        elif ending(self.credentials.pid):
            self.died = True
            reason = "the process ended"
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._open:
            self._hang_up()
            # Not at once: a call that is being handed over right now may have led here. Segments
            # stay till then, for calls that are on their way on the other connection.
            self._loop.call_soon(lambda: self.on_end(reason) if self.on_end else None)


def turn_away(connection: socket.socket, reason: str) -> None:
    """Tell a newcomer why it gets no lifeline, if it is still there, and hang up."""
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(wire.pack_refusal(reason))  # an empty socket takes it
    connection.close()
