"""One connection to one daemon process: a ZeroMQ DEALER, a lifeline and a call socket.

Over ZeroMQ a program asks to be let into a group; all else goes over the call socket. A channel
ends with the daemon; the connection (:mod:`ringd.client.connection`) then opens the next one and
offers again what was under way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from ringd.client.callsocket import CallSocket, Part
from ringd.client.pool import Segment
from ringd.client.waker import Waker
from ringd.host.credentials import check_socket_path
from ringd.host.limits import make_sure_of_room
from ringd.host.streampair import NO_SIGNAL, silence
from ringd.host.trust import check_daemon
from ringd.wire.border import lifeline as wire
from ringd.wire.border.messages import (
    TOKEN_BYTES,
    Reply,
    unpack_reply,
)
from ringd.wire.text import printable

_LIFELINE_BYTES = (4096,)  # the arguments of one call of recv

_CONNECT_TIMEOUT = 2.0  # seconds; a healthy daemon answers in microseconds
_SEND_TIMEOUT = 2.0  # seconds, for a record on the lifeline
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # absent on macOS
_DESCRIPTORS = 4  # that ZeroMQ opens for a socket and its connection, at most; it aborts, or never
_FIRST_DESCRIPTORS = (
    16  # says so, where it cannot; and with its threads, which the first one starts
)
_LIFELINE_DESCRIPTORS = 2  # with the call socket, which is lost where there is no room for it
_LONGEST_LISTEN = 0.02  # seconds, to wait for another thread that listens

Payload = bytes | memoryview


class _Contexts:
    """One ZeroMQ context per process: I/O threads do not survive a fork."""

    pid = 0
    context: zmq.Context[zmq.Socket[bytes]] | None = None


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    new = _Contexts.context is None or _Contexts.pid != os.getpid()
    make_sure_of_room(_FIRST_DESCRIPTORS if new else _DESCRIPTORS)
    if _Contexts.context is None or new:
        _Contexts.pid = os.getpid()
        _Contexts.context = zmq.Context()
    return _Contexts.context


class TurnedAwayError(OSError):
    """A daemon is there and takes nobody in now; the message is its word."""


class Channel:
    """Connects when made; *path* is that of the daemon's socket.

    Sending and receiving is for one thread at a time; :meth:`poll` and :meth:`wait_end` may run
    beside that, and touch no ZeroMQ.
    """

    def __init__(self, path: str, waker: Waker, keeper_waker: Waker) -> None:
        """Connect.

        Args:
            path: of the daemon's main socket.
            waker: ends a :meth:`poll`.
            keeper_waker: likewise a :meth:`wait_end`.

        Raises:
            TurnedAwayError: the daemon takes nobody in now.
            OSError: nobody listens there, or it may not be used, or it does not answer in time.
        """
        self.path = path
        self._waker = waker
        self._keeper_waker = keeper_waker
        self.attached = False
        """Set by the owner once the daemon has taken it in."""
        self.unanswered = 0
        """Beats sent since the daemon was heard last."""
        self.heard_at = time.monotonic()
        """When that was."""
        self.heard: list[bytes] = []
        """What the lifeline has said, until :meth:`sessions` takes it."""
        self._listening = threading.RLock()  # a signal handler may wait above a thread that does
        try:
            with contextlib.ExitStack() as undo:
                self.lifeline = undo.enter_context(_open_lifeline(path))
                self.token, connection = _read_token(self.lifeline)
                self.calls = CallSocket(undo.enter_context(connection))
                self._dealer = undo.enter_context(_open_dealer(path))
                self._poller = self._make_poller()
                self._end_poller = select.poll()
                self._end_poller.register(self.lifeline, select.POLLIN)
                self._end_poller.register(keeper_waker.reader, select.POLLIN)
                undo.pop_all()
        except zmq.ZMQError as error:  # which is no OSError
            raise OSError(error.errno, error.strerror) from error
        except ValueError as error:  # the path: a zero byte, or what is no UTF-8
            raise OSError(errno.EINVAL, f"no socket can have this path: {error}") from error

    def ask_in(self, parts: tuple[Part, ...]) -> None:
        """Send the request that *parts* make, of a stay that the daemon has not taken in yet.

        Never blocks.

        Raises:
            OSError: the sockets are closed, or the system has no memory.
        """
        try:
            self._dealer.send(b"".join(parts))
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror) from error

    def wake(self) -> None:
        """End all sleep: something is to be sent, for which those who sleep do not look."""
        self._waker.wake()
        self._keeper_waker.wake()

    def receive(self) -> tuple[Reply, Payload | None] | None:
        """Return the next message and its payload; None when there is none now.

        The same one until it is taken from :attr:`calls`.

        Raises:
            OSError: as by :meth:`CallSocket.send`.
        """
        message = self.calls.receive()
        if message is None:
            return None
        self.unanswered = 0
        self.heard_at = time.monotonic()
        return unpack_reply(message)

    def pass_segment(self, segment: Segment) -> None:
        """Hand *segment* to the daemon.

        Raises:
            OSError: the daemon is gone, or takes nothing for seconds.
        """
        record = wire.pack(wire.ADD, segment.number, segment.size)
        self._send_record(record, [segment.fd])
        segment.passed_to = self

    def drop_segment(self, number: int) -> None:
        """Tell the daemon to forget a segment; raises OSError as :meth:`pass_segment` does."""
        self._send_record(wire.pack(wire.DROP, number, 0), [])

    def beat(self) -> None:
        """Ask for a sign of life on the lifeline."""
        self.unanswered += 1
        with contextlib.suppress(OSError):  # full: it has much to answer; or it has just ended
            self.lifeline.send(wire.pack(wire.BEAT, 0, 0), NO_SIGNAL)

    def poll(self, timeout: float | None) -> bool:
        """Sleep until a message, the daemon's end, a wake-up or *timeout* (seconds).

        Or until the daemon takes what waits to be sent.

        Returns:
            Whether the daemon is gone.
        """
        milliseconds = None if timeout is None else max(0, int(timeout * 1000) + 1)
        lifeline = self.lifeline.fileno()
        gone = False
        try:
            poller = self._make_poller() if self.calls.unsent else self._poller
            try:
                ready = poller.poll(milliseconds)
            except RuntimeError:  # beneath this signal handler its thread sleeps on that one
                ready = self._make_poller().poll(milliseconds)
        except ValueError:  # another thread has closed this channel since it was looked at
            return True
        for fd, _events in ready:
            if fd == lifeline:
                gone = self._listen()
            elif fd == self._waker.reader:
                self._waker.drain()
        return gone

    def _make_poller(self) -> select.poll:
        poller = select.poll()
        poller.register(self.calls, select.POLLIN | (select.POLLOUT if self.calls.unsent else 0))
        for file in (self.lifeline, self._waker.reader):
            poller.register(file, select.POLLIN)
        return poller

    def wait_end(self, timeout: float) -> bool:
        """Sleep until the lifeline speaks, a wake-up or *timeout* (seconds).

        Returns:
            Whether the daemon is gone.
        """
        gone = False
        for fd, _events in self._end_poller.poll(timeout * 1000):
            if fd == self._keeper_waker.reader:
                self._keeper_waker.drain()
            else:
                gone = self._listen()
        return gone

    def sessions(self, meet: Callable[[int, tuple[int, ...], tuple[int, ...]], None]) -> bool:
        """Call *meet* with what the lifeline has said: (join id, its peers', where they are).

        With some of it again, if an interrupt ends this. Returns whether there was something.
        """
        heard = self.heard
        if not heard:
            return False
        chunks = tuple(heard)  # others may come behind them meanwhile
        stream = bytearray(b"".join(chunks))
        while (session := wire.take_session(stream)) is not None:
            meet(*session)
        heard[: len(chunks)] = [bytes(stream)] if stream else []
        return True

    def _listen(self) -> bool:
        """Take in what the lifeline says; whether it has ended."""
        if threading.get_ident() == threading.main_thread().ident:
            with self._listening:  # others hold it for a moment only; no interrupt comes between
                return self._take_in()
        # A signal handler may keep the main thread in there, and wait for what this one is to do.
        if not self._listening.acquire(timeout=_LONGEST_LISTEN):
            return False
        try:
            return self._take_in()
        finally:
            self._listening.release()

    def _take_in(self) -> bool:
        heard = self.heard
        while True:
            # One call into C receives and stores, so that no interrupt comes between.
            arriving = map(self.lifeline.recv, _LIFELINE_BYTES)
            try:
                heard.extend(arriving)
            except BlockingIOError:
                return False
            except OSError:
                return True
            # Acted on and gone, perhaps, by another thread or a signal handler; an end comes again.
            if heard[-1:] == [b""]:
                return True
            self._hear()

    def _hear(self) -> None:
        self.unanswered = 0
        self.heard_at = time.monotonic()

    def hang_up(self) -> None:
        """End the lifeline, so that both sides see its end; from any thread."""
        with contextlib.suppress(OSError):  # the other side was first
            self.lifeline.send(wire.pack(wire.PART, 0, 0), NO_SIGNAL)
        with contextlib.suppress(OSError):
            self.lifeline.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the sockets."""
        self._dealer.close(linger=0)
        self.calls.close()
        self.lifeline.close()

    def in_child(self) -> None:
        """Let go, in the child of a fork, of what would keep the parent alive."""
        self.lifeline.close()
        self.calls.close()

    def _send_record(self, record: bytes, fds: list[int]) -> None:
        deadline = time.monotonic() + _SEND_TIMEOUT
        while True:
            try:
                sent = socket.send_fds(self.lifeline, [record], fds, NO_SIGNAL)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the daemon takes no segments") from None
                ready = select.poll()
                ready.register(self.lifeline, select.POLLOUT)
                ready.poll(100)
                continue
            if sent < len(record):  # no system cuts records of a few bytes
                raise OSError(errno.EPROTO, "the lifeline took a part of a record")
            return


def _open_lifeline(path: str) -> socket.socket:
    try:
        check_socket_path(path + wire.SUFFIX)
    except ValueError as error:
        raise OSError(errno.ENAMETOOLONG, str(error)) from error
    make_sure_of_room(_LIFELINE_DESCRIPTORS)
    lifeline = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        silence(lifeline)
        lifeline.settimeout(_CONNECT_TIMEOUT)
        lifeline.connect(path + wire.SUFFIX)
        check_daemon(lifeline, Path(path))
    except BaseException:
        lifeline.close()
        raise
    return lifeline


def _open_dealer(path: str) -> zmq.Socket[bytes]:
    dealer = _context().socket(zmq.DEALER)
    try:
        dealer.setsockopt(zmq.LINGER, 0)
        # Without a high-water mark no credit is passed back and forth, and none wakes us up.
        # The daemon's window bounds what is under way.
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.connect(f"ipc://{path}")
    except BaseException:
        dealer.close(linger=0)
        raise
    return dealer


def _read_token(lifeline: socket.socket) -> tuple[bytes, socket.socket]:
    """Return what the daemon opens with: the token, and our end of the call socket."""
    token, fds, flags, _ = socket.recv_fds(lifeline, TOKEN_BYTES, 1, _CLOSE_ON_EXEC)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with contextlib.ExitStack() as undo:
        for fd in fds:
            os.set_inheritable(fd, False)
            connection = undo.enter_context(socket.socket(fileno=fd))
        while len(token) < TOKEN_BYTES:
            data = lifeline.recv(TOKEN_BYTES - len(token))
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the daemon hung up")
            token += data
        if token == wire.REFUSED:
            reason = b""
            while (data := lifeline.recv(wire.MAX_REASON)) and len(reason) <= wire.MAX_REASON:
                reason += data
            text = printable(reason.decode(errors="replace"), wire.MAX_REASON)
            raise TurnedAwayError(errno.EAGAIN, text)
        if not fds:
            text = "the daemon passes no call socket: restart it, if it is an older ringd"
            raise OSError(errno.EPROTO, text)
        lifeline.setblocking(False)
        undo.pop_all()
        return token, connection
