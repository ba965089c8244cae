"""What the tests of ringd.net share: loops with deadlines, socket pairs, links that record."""

from __future__ import annotations

import socket
from pathlib import Path

from ringd.loop import Loop
from ringd.net.link import Link
from ringd.wire.link import frames
from ringd.wire.link.agreement import Cipher, Protection, Secrets
from ringd.wire.link.frames import FrameType, Header
from ringd.wire.link.handshake import Identity, Peer

MEMBERS = ("a", "b", "c")
KEY = b"k" * 32
PEER = Peer("b", 1, 8, "link")


def identity(rank=0, **changes):
    """Return the identity of one of three members."""
    values = {"ring": "home", "members": MEMBERS, "rank": rank, "incarnation": 7 + rank}
    return Identity(**(values | changes))


def run_until(loop: Loop, condition, timeout=120.0):
    """Run *loop* until *condition* holds; fail when it does not within *timeout* seconds."""
    deadline = loop.now() + timeout

    def look():
        if condition() or loop.now() > deadline:
            loop.stop()
        else:
            loop.call_later(0.002, look)

    loop.call_soon(look)
    loop.run()
    assert condition()


def every_turn(loop: Loop, callback):
    """Call *callback* in each turn of the loop, before it may sleep."""
    settle = loop._settle

    def turn():
        callback()
        return settle()

    loop._settle = turn


def tcp_pair():
    """Return two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


def listening(listener):
    """Return the sockets that a listener accepts on."""
    return [at.listener for ats in listener._acceptors.values() for at in ats]


def bound(listener):
    """Return the (host, port) pairs that *listener* listens on."""
    return [sock.getsockname()[:2] for sock in listening(listener)]


def welcome(_peer, _address, verdict):
    """Let everybody in, in the place of a listener's owner."""
    verdict("")


def open_fds():
    """Return the number of open descriptors of this process."""
    return len(list(Path("/dev/fd").iterdir()))


class Recorder:
    """A link handler that keeps what it is told."""

    def __init__(self):
        self.frames = []
        self.buffers = {}
        """By index: where DATA goes; a missing one is discarded."""
        self.received = []
        self.to_send = []
        self.sent = []
        self.lost = []
        self.asked = []
        self.on_frame = lambda _link, _header: None

    def frame_received(self, link, header, payload):
        """Keep the frame, whose payload is to stay as it is."""
        self.frames.append((header, payload))
        self.on_frame(link, header)

    def data_buffer(self, _link, header):
        """Look the buffer up."""
        self.asked.append(header.index)
        return self.buffers.get(header.index)

    def data_received(self, _link, header):
        """Keep the index."""
        self.received.append(header.index)

    def next_data(self, _link):
        """Give what is to be sent."""
        return self.to_send.pop(0) if self.to_send else None

    def data_sent(self, _link, header):
        """Keep the index."""
        self.sent.append(header.index)

    def link_lost(self, _link, reason):
        """Keep the reason."""
        self.lost.append(reason)


def secrets(
    protect: Protection, cipher: Cipher = "AES-256-GCM"
) -> tuple[Secrets, Secrets] | tuple[None, None]:
    """Return those of both ends of a link; None where it is not sealed."""
    if protect == "off":
        return None, None
    encrypt = protect == "encrypt"
    return (
        Secrets(cipher, encrypt, b"1" * 32, b"2" * 32),
        Secrets(cipher, encrypt, b"2" * 32, b"1" * 32),
    )


def make_link(loop, sock, side="left", peer=PEER, **changes):
    """Return a link and its recorder."""
    recorder = Recorder()
    values = {"address": "x:1", "handler": recorder, "heartbeat": 60.0, "lost_after": 180.0}
    return Link(loop, sock, peer, side=side, **(values | changes)), recorder


def control(payload, seq=0):
    """Return the header of a GROUP frame that carries *payload*."""
    return Header(FrameType.GROUP, len(payload), seq=seq)


def data(index, payload, **fields):
    """Return a DATA frame as ``next_data`` gives it."""
    view = memoryview(payload)
    return Header(FrameType.DATA, len(view), index=index, **fields), view


def framed(header, payload=b"", number=0):
    """Return the bytes of a frame that *number* others go before."""
    return frames.pack(header, number) + bytes(payload)
