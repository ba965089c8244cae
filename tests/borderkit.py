"""What the tests of the border share: a client made of bare sockets."""

import os
import socket

import zmq

from ringd.collective.call import Call
from ringd.host import memory
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border

EIGHT = bytes(8)


class Raw:
    """A client made of bare sockets."""

    def __init__(self, daemon, *, attach=True, group="g", with_lifeline=True):
        self.daemon = daemon
        self.context = zmq.Context.instance()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.dealer.connect(f"ipc://{daemon.path}")
        self.lifeline = None
        self.token = b""
        self.group = group
        if with_lifeline:
            self.lifeline = socket.socket(socket.AF_UNIX)
            self.lifeline.settimeout(10)
            self.lifeline.connect(daemon.path + lifeline.SUFFIX)
            self.token = self.lifeline.recv(border.TOKEN_BYTES)
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
        assert self.dealer.poll(timeout * 1000), "no reply"
        reply, payload = border.unpack_reply(self.dealer.recv())
        self.payload = None if payload is None else bytes(payload)
        return reply

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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
