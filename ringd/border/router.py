"""The daemon's ZeroMQ socket, a ROUTER, and the gate before it: frames in and frames out.

What is sent counts in the account of its connection, which the gate keeps.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from ringd.border.accounts import Account
from ringd.border.admission import Admission
from ringd.border.endpoint import Endpoint
from ringd.border.gate import Gate
from ringd.border.selfcheck import SelfCheck
from ringd.loop import EVENT_READ, Loop
from ringd.observe.counters import Counters
from ringd.wire.border.messages import COPY_SMALL

# As plain numbers: an operator of pyzmq's own flags takes nearly as long as a call of its.
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_MORE_NOBLOCK = int(zmq.SNDMORE | zmq.NOBLOCK)

_BATCH = 64  # messages taken in one go, then the links have their turn
_MOST_QUEUED = 1 << 18  # messages, for a connection that does not read; those of calls are counted
_MOST_READ_AHEAD = 1  # messages of a connection, that libzmq has taken and the daemon has not


class Router:
    """Listens where *endpoint* does, from its making to :meth:`close`.

    Args:
        loop: The daemon's.
        endpoint: Where programs connect, and where the ROUTER listens behind the gate.
        max_message: Bytes.
        admission: Lets connections in.
        counters: Where those that speak something else are counted, and replies to nobody.
        on_frame: Called with the routing id and each message of one frame, which stays valid while
            it is referenced.
        on_fault: Called with the routing id and what is wrong with a message that has more.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: Endpoint,
        *,
        max_message: int,
        admission: Admission,
        counters: Counters,
        on_frame: Callable[[bytes, bytes | memoryview], None],
        on_fault: Callable[[bytes, str], None],
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._counters = counters
        self._on_frame = on_frame
        self._on_fault = on_fault
        self._alert = False
        """The socket is about to be looked at."""
        self._closed = False
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self.selfcheck = SelfCheck(self._context, self._socket)
        """Whether what programs send is read."""
        self._prepare(max_message)
        self._gate = Gate(
            loop,
            endpoint.socket,
            endpoint.inner_path,
            max_message=max_message,
            admit=admission.to_gate,
            leave=admission.leave_gate,
            refused=counters.refused_programs,
        )
        self._fd = int(self._socket.getsockopt(zmq.FD))
        loop.add(self._fd, EVENT_READ, lambda _events: self._look_soon())

    def account(self, routing_id: bytes) -> Account | None:
        """Return the account of a connection; None if it has ended."""
        return self._gate.account(routing_id)

    def all_heard(self, routing_id: bytes) -> bool:
        """Return whether all that a connection has said was taken in."""
        return self._gate.all_heard(routing_id)

    def hang_up(self, routing_id: bytes) -> None:
        """End a connection; harmless if it has."""
        self._gate.hang_up(routing_id)

    def send(self, routing_id: bytes, frame: bytes) -> str:
        """Send *frame*; return why it is not to be had, as its reader does not read, if so.

        One to a connection that has ended is dropped and counted.
        """
        account = self._gate.account(routing_id)
        if account is None:
            self._counters.dropped_replies += 1
            return ""
        if refusal := account.messages.refusal(len(frame)):
            return refusal
        self._look_soon()
        try:
            self._socket.send(routing_id, _MORE_NOBLOCK)
            # As a copy: for others pyzmq keeps a thread and a context, seven files, for good.
            self._socket.send(frame, _NOBLOCK)
        except zmq.Again:
            return f"{_MOST_QUEUED} messages are unread"
        except zmq.ZMQError:  # gone; its lifeline is about to tell why
            self._counters.dropped_replies += 1
            return ""
        account.messages.take(len(frame))
        return ""

    def let_in_at_renewed(self) -> None:
        """Have the gate accept at the endpoint's socket, which is a new one."""
        self._gate.use(self._endpoint.socket)

    def listen_at_renewed(self, *, keep_old: bool) -> None:
        """Listen at the endpoint's inner socket, which is a new one, too.

        Those whom the old one has accepted are hung up on if it is not kept, which costs a file.
        """
        if not keep_old:
            self._socket.unbind(self._bound)
        self._listen()

    def close(self) -> None:
        """Hang up on everybody."""
        self._closed = True
        self._gate.close()
        self._loop.remove(self._fd)
        self.selfcheck.close()
        self._socket.close(linger=0)
        self._context.term()

    def _prepare(self, max_message: int) -> None:
        socket = self._socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, max_message)
        # A full receive queue makes the sender wait, and is never a loss. What is sent counts in
        # the accounts. These stay as they are: libzmq crashes when the limits of a socket change
        # while connections end.
        socket.setsockopt(zmq.RCVHWM, _MOST_READ_AHEAD)
        socket.setsockopt(zmq.SNDHWM, _MOST_QUEUED)
        self._listen()

    def _listen(self) -> None:
        # libzmq owns the descriptor from here on, and leaves the file alone.
        self._socket.setsockopt(zmq.USE_FD, self._endpoint.inner_socket.detach())
        self._socket.bind(f"ipc://{self._endpoint.inner_path}")
        # By the name that the socket was made under, beside its place: always the same one.
        self._bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._look_soon()

    def _look_soon(self) -> None:
        """Take in what has arrived, or arrives meanwhile, before the loop sleeps.

        The ROUTER's descriptor is edge-triggered, and whatever is done with the socket takes the
        edge away: after that, only a look at the socket tells. It is costly, so there is none else.
        """
        if not self._alert:
            self._alert = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        for _ in range(_BATCH):
            if self._closed or not int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN:
                self._alert = False
                return
            self._receive()
        self._loop.call_soon(self._drain)

    def _receive(self) -> None:
        socket = self._socket
        routing_id = socket.recv(_NOBLOCK)
        frame = socket.recv(_NOBLOCK, copy=False)
        if self.selfcheck.is_ours(routing_id):
            return
        self._gate.heard(routing_id)
        if not frame.more:
            self._on_frame(routing_id, frame.bytes if len(frame) < COPY_SMALL else frame.buffer)
            return
        more = True
        while more:
            part = socket.recv(_NOBLOCK, copy=False)
            self._gate.heard(routing_id)
            more = part.more
        self._on_fault(routing_id, "a message has one frame")
