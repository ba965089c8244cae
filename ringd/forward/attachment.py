"""A program's way to its daemon, for the streams whose ends it has.

The daemon may end and come back any number of times: the ends stay here, and go on from where they
are as soon as there is a way again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ringd.border.accounts import unlimited
from ringd.border.callsocket import CallSocket
from ringd.forward.forwarder import Accepts, Forwarder
from ringd.host.streampair import silence
from ringd.host.trust import StrangerError, check_daemon
from ringd.loop import EVENT_READ, Loop
from ringd.streams.end import End
from ringd.wire.border import lifeline
from ringd.wire.border.messages import (
    MAX_CARRIED,
    TOKEN_BYTES,
    VERSION,
    Carry,
    DecodeError,
    Denied,
    Held,
    Hold,
    Over,
    Reply,
    RingState,
    parts,
    unpack_reply,
)
from ringd.wire.link import streams as wire
from ringd.wire.link.control import DecodeError as StreamDecodeError
from ringd.wire.link.streams import StreamMessage
from ringd.wire.text import printable

AGAIN = 0.2
"""Seconds between tries to reach a daemon."""

DENIED_AGAIN = 1.0
"""Likewise, after one has refused."""

_CONNECT_WITHIN = 2.0  # seconds; a healthy daemon takes microseconds
_MAX_MESSAGE = 2 * MAX_CARRIED
_MAX_DENIAL = 1024
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # absent on macOS


class Trouble(Protocol):
    """Is told of trouble with the daemon."""

    def __call__(self, reason: str, *, denied: bool) -> None:
        """*denied*: whether it is there, and has refused what was asked for."""


class Attachment:
    """See the module's docstring. :meth:`start` it, once.

    Args:
        loop: Where it runs.
        path: Of the daemon's socket.
        program: Its name, for people.
        serves: The services to which others' streams are to lead here.
        reaches: (member, service) of those that streams are to lead to.
        accepts: As for :class:`~ringd.forward.forwarder.Forwarder`.
        on_held: Called with the members' names each time that a daemon has taken this in.
        on_trouble: Told why there is no daemon, or why it has denied what is asked for. It is tried
            again.
        on_reset: As for :class:`~ringd.forward.forwarder.Forwarder`.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        program: str,
        *,
        serves: tuple[str, ...],
        reaches: tuple[tuple[str, str], ...],
        accepts: Accepts,
        on_held: Callable[[tuple[str, ...], int], None],
        on_trouble: Trouble,
        on_reset: Callable[[End, str], None],
    ) -> None:
        self.forwarder = Forwarder(
            loop,
            send=self._send,
            accepts=accepts,
            on_reset=on_reset,
            in_program=True,
            on_over=self._over,
        )
        self._loop = loop
        self._path = path
        self._hold = Hold(VERSION, program, serves, reaches)
        self._on_held = on_held
        self._on_trouble = on_trouble
        self._lifeline: socket.socket | None = None
        self._calls: CallSocket | None = None
        self._generation = 0  # of the ring; 0 while there is none
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether the ring is there, as far as this program knows."""
        return self._generation > 0

    def start(self) -> None:
        """Look for the daemon."""
        if self._closed:
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_WITHIN)
        try:
            connection.connect(str(self._path) + lifeline.SUFFIX)
            check_daemon(connection, self._path)  # each time: another one may be in its place
        except StrangerError as stranger:
            connection.close()
            self._lost(str(stranger.strerror))
            return
        except OSError as error:
            connection.close()
            self._lost(f"no daemon at {self._path}: {error.strerror or error}")
            return
        connection.setblocking(False)
        self._lifeline = connection
        self._loop.add(connection, EVENT_READ, self._opened)

    def close(self) -> None:
        """Part with the daemon for good."""
        self._closed = True
        self._hang_up()

    # --- the two sockets --------------------------------------------------------------

    def _opened(self, _events: int) -> None:
        """The daemon's first word is here: the token, with the call socket; or why not."""
        assert self._lifeline is not None  # noqa: S101 - it is what was readable
        try:
            word, fds, _, _ = socket.recv_fds(
                self._lifeline, lifeline.MAX_REASON, 1, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return
        except OSError:
            word, fds = b"", []
        if len(word) < TOKEN_BYTES or word.startswith(lifeline.REFUSED) or not fds:
            for fd in fds:
                os.close(fd)
            reason = word[len(lifeline.REFUSED) :].decode(errors="replace")
            self._lost(printable(reason, lifeline.MAX_REASON) or f"{self._path}: its daemon ended")
            return
        os.set_inheritable(fds[0], False)
        calls = socket.socket(fileno=fds[0])
        silence(calls)
        self._loop.remove(self._lifeline)
        self._loop.add(self._lifeline, EVENT_READ, self._life)
        self._calls = CallSocket(
            self._loop,
            calls,
            max_message=_MAX_MESSAGE,
            messages=unlimited(),
            on_message=lambda frame, _refusal: self._heard(frame),
            on_end=lambda _reason: self._lost(f"{self._path}: its daemon hung up"),
        )
        self._calls.send(parts(self._hold))

    def _life(self, _events: int) -> None:
        """The lifeline ends with the daemon; all else that it says is for programs in groups."""
        assert self._lifeline is not None  # noqa: S101 - it is what was readable
        try:
            if self._lifeline.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lost(f"{self._path}: its daemon ended")

    def _lost(self, reason: str, *, denied: bool = False) -> None:
        self._hang_up()
        if not self._closed:
            self._loop.call_later(DENIED_AGAIN if denied else AGAIN, self.start)
            self._on_trouble(reason, denied=denied)

    def _hang_up(self) -> None:
        self._no_way()
        if self._calls is not None:
            self._calls.close()
            self._calls = None
        if self._lifeline is not None:
            self._loop.remove(self._lifeline)
            self._lifeline.close()
            self._lifeline = None

    # --- messages ---------------------------------------------------------------------

    def _heard(self, frame: bytes | memoryview) -> None:
        try:
            reply, payload = unpack_reply(frame)
            self._obey(reply, payload)
        except (*DecodeError, *StreamDecodeError):
            text = "install the same release of ringd for both"
            self._lost(f"its daemon speaks another version of the protocol; {text}")

    def _obey(self, reply: Reply, payload: memoryview | None) -> None:
        if isinstance(reply, Carry):
            if reply.generation == self._generation:
                message = wire.decode(reply.body)
                data = memoryview(b"") if payload is None else payload
                self.forwarder.table.received(
                    reply.member, reply.number, reply.offset, message, data
                )
        elif isinstance(reply, RingState):
            if reply.state == "ready":
                self._generation = reply.generation
                self.forwarder.table.up()
            else:
                self._no_way()
        elif isinstance(reply, Held):
            self._on_held(reply.nodes, reply.rank)
        elif isinstance(reply, Denied):
            self._lost(printable(reply.message, _MAX_DENIAL), denied=True)

    def _no_way(self) -> None:
        self._generation = 0
        self.forwarder.table.down()

    def _send(
        self, member: int, number: int, offset: int, message: StreamMessage, data: bytes
    ) -> None:
        if self._calls is not None:
            carry = Carry(number, member, self._generation, offset, wire.encode(message))
            self._calls.send(parts(carry, data or None))

    def _over(self, number: int) -> None:
        if self._calls is not None:
            self._calls.send(parts(Over(number)))
