"""What the tests of the border share: a client made of bare sockets."""

import os
import socket

import zmq

from ringd.collective.call import Call
from ringd.host import memory
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border
from ringd.wire.border.stream import LENGTH

EIGHT = bytes(8)


class Raw:
    """A client made of bare sockets; one with *call_socket* is spoken to there."""

    def __init__(
        self,
        daemon,
        *,
        attach=True,
        group="g",
        with_lifeline=True,
        call_socket=False,
        rcvhwm=1000,
        routing_id=None,
    ):
        self.daemon = daemon
        self.context = zmq.Context.instance()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.dealer.setsockopt(zmq.RCVHWM, rcvhwm)
        if routing_id is not None:
            self.dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        self.dealer.connect(f"ipc://{daemon.path}")
        self.lifeline = self.call_end = None
        self.token = b""
        self.group = group
        if with_lifeline:
            self.lifeline = socket.socket(socket.AF_UNIX)
            self.lifeline.settimeout(10)
            self.lifeline.connect(daemon.path + lifeline.SUFFIX)
            self.token, fds, *_ = socket.recv_fds(self.lifeline, border.TOKEN_BYTES, 1)
            for fd in fds:
                self.call_end = socket.socket(fileno=fd)
                self.call_end.settimeout(10)
        self.call_socket = call_socket
        if attach:
            assert isinstance(self.ask(self.attach()), border.Attached)

    def attach(self, **changes):
        """Return an Attach, with changes."""
        fields = {
            "version": border.VERSION,
            "token": self.token,
            "group": self.group,
            "join_id": 5,
            "next_seq": 0,
            "released": 0,
            "on_loss": "wait",
            "pid": os.getpid(),
            "program": "raw",
            "session": (5, 1, 2),
            "call_socket": self.call_socket,
        }
        return border.Attach(**{**fields, **changes})

    def submit(self, **changes):
        """Return a Submit of two float32, with changes."""
        fields = {
            "join_id": 5,
            "seq": 0,
            "call": Call("all_reduce", "sum", "float32", (2,), ""),
            "timeout": None,
            "source": None,
            "target": None,
            "acked": 0,
            "hold": False,
            "outcome": "",
            "message": "",
        }
        return border.Submit(**{**fields, **changes})

    def send(self, message, payload=None):
        """Send a message, or bytes."""
        self.dealer.send(message if isinstance(message, bytes) else border.pack(message, payload))

    def receive(self, timeout=10.0):
        """Return the next reply; its payload is in :attr:`payload`."""
        if self.call_socket:
            self.call_end.settimeout(timeout)
            frame = self.take(*LENGTH.unpack(self.take(LENGTH.size)))
        else:
            assert self.dealer.poll(timeout * 1000), "no reply"
            frame = self.dealer.recv()
        reply, payload = border.unpack_reply(frame)
        self.payload = None if payload is None else bytes(payload)
        return reply

    def take(self, count):
        """Return the next *count* bytes of the call socket."""
        data = b""
        while len(data) < count:
            piece = self.call_end.recv(count - len(data))
            assert piece, "the daemon has closed the call socket"
            data += piece
        return data

    def call(self, message, payload=None):
        """Send over the call socket."""
        frame = message if isinstance(message, bytes) else border.pack(message, payload)
        self.call_end.sendall(LENGTH.pack(len(frame)) + frame)

    def ask(self, message, payload=None):
        """Send, and return the reply."""
        self.send(message, payload)
        return self.receive()

    def pass_segment(self, number, size, fd=None, record=None):
        """Send a segment; make it if *fd* is None."""
        made = memory.create_segment(size) if fd is None else fd
        record = record or lifeline.pack(lifeline.ADD, number, size)
        socket.send_fds(self.lifeline, [record], [made])
        mapping = memory.map_segment(made, size) if fd is None else None
        if fd is None:
            os.close(made)
        return mapping

    def leave(self, join_id=5):
        """Leave a group in good order."""
        assert self.ask(border.Detach(join_id)) == border.Detached(join_id)

    def hung_up(self):
        """Whether the daemon ends the lifeline."""
        try:
            return self.lifeline.recv(1) == b""
        except ConnectionError:
            return True

    def close(self):
        """Close both sockets."""
        self.dealer.close(0)
        if self.lifeline is not None:
            self.lifeline.close()
        if self.call_end is not None:
            self.call_end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
